"""evaluation.py against the exact twins of reference.py, on files made here; and what is said when a figure lacks."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import reference
from uflow import cli, segmentation
from uflow.evaluate.datasets import Dataset, Sample, read_mvtec
from uflow.evaluate.evaluation import Evaluation, ImageOutput, evaluate, evaluate_predictor
from uflow.evaluate.models import Given
from uflow.evaluate.protocols import Protocol, parse_oracle, published_truth
from uflow.evaluate.study import measure, run
from uflow.images import image_size, resize_mask
from uflow.predictor import Predictor
from uflow.roi import RegionOfInterest
from uflow.scoring import Evidence

SIZES = [(40, 56), (64, 48), (40, 56), (33, 70), (50, 50), (40, 56), (64, 48), (40, 40)]
KINDS = ["good", "scratch", "hole", "good", "scratch", "hole", "hole", "good"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Images of different sizes, some with a marked defect; one of them has two masks."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for i, (kind, size) in enumerate(zip(KINDS, SIZES, strict=True)):
        Image.fromarray(rng.integers(90, 110, (*size, 3), dtype=np.uint8)).save(root / f"{i}.png")
        masks = []
        for part in range(0 if kind == "good" else 1 + (i == 1)):
            mask = np.zeros(size, np.uint8)
            mask[5 + 10 * part : 14 + 10 * part, 8 : 20 + i] = 255
            Image.fromarray(mask).save(root / f"{i}_{part}_mask.png")
            masks.append(root / f"{i}_{part}_mask.png")
        made.append(Sample(root / f"{i}.png", kind, tuple(masks)))
    return made


def truth_of(sample: Sample, shape: tuple[int, int] | None = None) -> np.ndarray:
    truth = sample.truth(image_size(sample.path))
    return truth if shape is None else published_truth(truth, shape)


def make_outputs(samples: list[Sample], size: tuple[int, int] | None = None) -> list[ImageOutput]:
    """Smooth noise, higher on defects, as score and as log NFA of its own; flagged where it is very low."""
    rng, outputs = np.random.default_rng(1), []
    for sample in samples:
        truth = truth_of(sample, size).astype(np.float32)
        noise = gaussian_filter(rng.normal(size=truth.shape), 2)
        anomaly_map = (truth * rng.uniform(0.1, 0.9) + noise + 3).astype(np.float32)
        log_nfa = (200 * (0.5 - truth * rng.uniform(0.2, 0.9) + noise)).astype(np.float32)
        outputs.append(ImageOutput(anomaly_map, float(anomaly_map.max()), log_nfa, bool(log_nfa.min() < -20)))
    return outputs


@pytest.mark.parametrize("protocol", ["paper", "native"])
def test_equals_the_exact_functions(samples: list[Sample], protocol: str) -> None:
    size = (48, 48) if protocol == "paper" else None
    outputs, normal = (
        make_outputs(samples, size),
        [one.anomaly_map - 0.1 for one in make_outputs(samples[:1] * 5, size)],
    )
    truth = [truth_of(sample, size) for sample in samples]
    maps, log_nfa = [one.anomaly_map for one in outputs], [one.log_nfa for one in outputs]

    found = evaluate(samples, iter(outputs), Protocol(protocol, size=48), iter(normal))
    flat, flat_truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truth])
    assert found.pixel_auroc == pytest.approx(reference.auroc(flat, flat_truth), abs=1e-12)
    assert found.aupro == pytest.approx(reference.aupro(maps, truth), abs=1e-12)
    anomalous = [sample.is_anomalous for sample in samples]
    image_auroc = reference.auroc([one.score for one in outputs], anomalous)
    assert found.image_auroc == pytest.approx(image_auroc, abs=1e-12)
    automatic = [m < 0 for m in log_nfa]
    assert found.miou == reference.mean_iou(automatic, truth)
    defective = [i for i, mask in enumerate(truth) if mask.any()]
    assert 0 < len(defective) < len(samples)
    expected = reference.mean_iou([automatic[i] for i in defective], [truth[i] for i in defective])
    assert found.iou_defective == pytest.approx(expected, abs=1e-12)
    assert found.pixel_f1 == pytest.approx(reference.pixel_f1(automatic, truth), abs=1e-12)
    best = reference.best_iou([-m for m in log_nfa], truth)
    assert found.miou_best == pytest.approx(best, abs=1e-12)
    assert reference.mean_iou([m <= found.best_log_nfa for m in log_nfa], truth) == pytest.approx(best)
    scores = np.sort(np.concatenate([m.ravel() for m in normal]))
    assert found.fair_threshold == scores[-len(normal)]  # one false pixel an image
    assert found.miou_fair == reference.mean_iou([m >= scores[-len(normal)] for m in maps], truth)
    assert 0 < found.miou < found.miou_best < 1
    assert 0 < found.miou_fair < 1

    assert found.protocol == protocol
    assert [image["path"] for image in found.images] == [str(sample.path) for sample in samples]
    for image, sample, one, mask in zip(found.images, samples, outputs, truth, strict=True):
        assert image == {
            "path": str(sample.path),
            "defect": sample.defect,
            "score": one.score,
            "log_nfa": one.log_nfa.min(),
            "flagged": one.flagged,
            "iou": reference.iou(one.log_nfa < 0, mask),
        }
    assert list(found.flagged) == ["good", "hole", "scratch"]
    for kind, counts in found.flagged.items():
        flags = [one.flagged for one, sample in zip(outputs, samples, strict=True) if sample.defect == kind]
        assert counts == {"images": len(flags), "share": np.mean(flags)}
    shares = [
        np.mean([one.flagged for one, a in zip(outputs, anomalous, strict=True) if a is kind]) for kind in (False, True)
    ]
    assert [found.good_flagged, found.defective_flagged] == pytest.approx(shares)
    assert found.roc[0] == found.pro[0] == (0, 0)
    assert found.roc[-1] == pytest.approx((1, 1))
    assert found.pro[-1] == pytest.approx((1, 1))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_a_method_without_a_threshold(samples: list[Sample]) -> None:
    outputs = [ImageOutput(one.anomaly_map, one.score) for one in make_outputs(samples)]
    truth = [truth_of(sample) for sample in samples]
    found = evaluate(samples, outputs, "native", normal_maps=[one.anomaly_map for one in outputs[:1]])
    assert (found.miou, found.iou_defective, found.pixel_f1) == (None, None, None)
    assert found.best_log_nfa is None
    assert (found.good_flagged, found.defective_flagged) == (None, None)
    assert found.flagged == {}
    assert found.miou_best == pytest.approx(reference.best_iou([one.anomaly_map for one in outputs], truth), abs=1e-12)
    assert found.miou_best >= found.miou_fair > 0
    assert {image["iou"] for image in found.images} == {image["log_nfa"] for image in found.images} == {None}
    assert evaluate(samples, outputs, "native").miou_fair is None
    assert evaluate(samples, outputs, "native", normal_maps=[]).fair_threshold is None
    assert evaluate(samples, outputs, "native").fair_threshold is None


def test_images_whose_defect_is_not_marked_count_as_images_only(samples: list[Sample]) -> None:
    outputs = make_outputs(samples)
    unmarked = [replace(sample, masks=()) if i in (2, 4) else sample for i, sample in enumerate(samples)]
    found = evaluate(unmarked, outputs, "native")
    kept = [i for i in range(len(samples)) if i not in (2, 4)]
    expected = evaluate([samples[i] for i in kept], [outputs[i] for i in kept], "native")
    for name in (
        "pixel_auroc",
        "aupro",
        "miou",
        "iou_defective",
        "pixel_f1",
        "miou_best",
        "best_log_nfa",
        "roc",
        "pro",
    ):
        assert getattr(found, name) == getattr(expected, name)
    whole = evaluate(samples, outputs, "native")
    assert found.image_auroc == whole.image_auroc
    assert found.flagged == whole.flagged
    assert [image["iou"] is None for image in found.images] == [i in (2, 4) for i in range(len(samples))]


OF_DEFECTS = {"pixel_auroc", "aupro", "iou_defective", "pixel_f1"}  # what needs defective pixels
OF_MASKS = {"miou", "miou_best", "best_log_nfa", "miou_fair"}


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        (lambda s: [one for one in s if not one.is_anomalous], {"image_auroc", *OF_DEFECTS}),
        (lambda s: [one for one in s if one.is_anomalous], {"image_auroc"}),
        (lambda s: [replace(one, masks=()) for one in s if one.is_anomalous], {"image_auroc", *OF_DEFECTS, *OF_MASKS}),
        (lambda s: [replace(one, masks=()) for one in s], {*OF_DEFECTS, *OF_MASKS}),
        (lambda s: [], {"image_auroc", *OF_DEFECTS, *OF_MASKS}),
    ],
)
def test_what_cannot_be_computed_is_none(
    samples: list[Sample], change: Callable[[list[Sample]], list[Sample]], lacking: set[str]
) -> None:
    kept = change(samples)
    of = {sample.path: one for sample, one in zip(samples, make_outputs(samples), strict=True)}
    found = evaluate(kept, [of[sample.path] for sample in kept], "native", normal_maps=[np.ones((4, 4), np.float32)])
    figures = {name for name, value in vars(found).items() if value is None}
    assert figures == lacking
    assert (found.roc == []) == (found.pro == []) == ("aupro" in lacking)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_defect_everywhere_leaves_no_normal_pixel(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "0.png")
    sample = Sample(tmp_path / "0.png", "bad", (tmp_path / "0.png",))
    found = evaluate([sample], [ImageOutput(np.eye(4, dtype=np.float32), 1.0)], Protocol(size=4))
    assert (found.pixel_auroc, found.aupro, found.image_auroc) == (None, None, None)
    assert found.miou_best == 1


def test_images_are_taken_one_at_a_time(samples: list[Sample]) -> None:
    """Those outputs are not kept: an hour's maps do not fit."""
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is not None and self.base.shape == (256, 256):
                alive.append(-1)

    def outputs():
        for i, _ in enumerate(samples * 4):
            assert i + sum(alive) <= 3
            anomaly_map = np.random.default_rng(i).random((256, 256), np.float32).view(Counted)
            yield ImageOutput(anomaly_map, 1.0)
            del anomaly_map

    evaluate(samples * 4, outputs())


ONES = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        ([ImageOutput(ONES, 1.0)], {}, "^8 samples and 1 outputs"),
        ([ImageOutput(ONES, 1.0)] * 9, {}, "8 samples and more outputs"),
        ([ImageOutput(ONES, 1.0)], {"protocol": "mine"}, "protocol must be one of paper, native, not 'mine'"),
        (
            [ImageOutput(ONES, 1.0)],
            {"protocol": Protocol(size=5)},
            r"anomaly map of .*0\.png is \(4, 4\): protocol 'paper' wants \(5, 5\)",
        ),
        ([ImageOutput(ONES, 1.0)], {"protocol": "native"}, r"is \(4, 4\): protocol 'native' wants \(40, 56\)"),
        ([ImageOutput(ONES, 1.0, ONES[1:])], {}, r"log_nfa of .*0\.png is \(3, 4\)"),
        ([], {"normal_maps": [ONES, ONES[1:]]}, r"normal map 1 is \(3, 4\): protocol 'paper' wants \(4, 4\)"),
        ([ImageOutput(ONES * np.nan, 1.0)], {}, r"anomaly map of .*0\.png holds NaN"),
        ([ImageOutput(ONES, float("nan"))], {}, r"score of .*0\.png is NaN"),
        ([ImageOutput(ONES, 1.0, ONES), ImageOutput(ONES, 1.0)], {}, r"log_nfa of some images, not of all: .*1\.png"),
        ([ImageOutput(ONES, 1.0), ImageOutput(ONES, 1.0, ONES)], {}, r"log_nfa of some images, not of all: .*1\.png"),
    ],
)
def test_bad_input_is_one_clear_line(samples: list[Sample], outputs: list[ImageOutput], options, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        evaluate(samples, outputs, **{"protocol": Protocol(size=4), **options})
    assert "\n" not in str(error.value)


# The paper's protocol to the letter -----------------------------------------------------------------------------------


def test_the_truth_goes_the_published_way_to_256() -> None:
    """By torchvision's Resize of a PIL image and torch's interpolation, which the published evaluation uses."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    rng, overlaps = np.random.default_rng(0), []
    for height, width in ((700, 700), (900, 900), (1024, 1024), (233, 391)):
        noise = gaussian_filter(rng.normal(size=(height, width)), 6)
        truth = noise > np.quantile(noise, 0.97)
        grey = transforms.ToTensor()(transforms.Resize((448, 448))(Image.fromarray(truth.astype(np.uint8) * 255)))
        shares = torch.nn.functional.interpolate(grey[None], (256, 256), mode="bilinear", align_corners=False)
        expected = (shares > 0.5)[0, 0].numpy()
        np.testing.assert_array_equal(published_truth(truth, (256, 256), (448, 448)), expected)
        overlaps.append(reference.iou(resize_mask(truth, (256, 256)), expected))
    assert 0.9 < min(overlaps) < max(overlaps) < 1  # one step with antialiasing is not the same
    assert published_truth(np.ones((5, 7), bool), (3, 2)).all()
    with pytest.raises(ValueError, match=r"must be \(H, W\) bool, not \(4, 4\) float32"):
        published_truth(ONES, (2, 2))


def test_the_input_size_is_on_the_way_of_the_truth(category: Path) -> None:
    y, x = np.mgrid[:40, :64]
    for mask in (category / "ground_truth/red").iterdir():
        Image.fromarray(((y - 20) ** 2 / 100 + (x - 31) ** 2 / 300 < 1).astype(np.uint8) * 255).save(mask)
    dataset, protocol = read_mvtec(category), Protocol(size=20)
    defective = [sample for sample in dataset.test if sample.is_anomalous]
    through = [published_truth(sample.truth((40, 64)), (20, 20), (32, 32)) for sample in defective]
    straight = [published_truth(sample.truth((40, 64)), (20, 20)) for sample in defective]
    assert any((a != b).any() for a, b in zip(through, straight, strict=True))
    outputs = [ImageOutput(truth.astype(np.float32), 1.0) for truth in through]
    assert evaluate(defective, outputs, protocol, input_size=(32, 32)).miou_best == 1
    assert evaluate(defective, outputs, protocol).miou_best < 1
    predictor = Predictor(Reddish())
    found = evaluate_predictor(predictor, dataset, protocol=protocol)
    maps = [predictor.run([one.path], lambda _, image, e: predictor.anomaly_map(e, 20)) for one in dataset.test]
    scores = [float(next(iter(one)).max()) for one in maps]
    assert [image["score"] for image in found.images] == scores  # the image's score is that of the map compared
    log_nfa = [next(iter(predictor.run([s.path], lambda _, i, e: predictor.log_nfa(e, 20)))) for s in defective]
    ious = [reference.iou(one < 0, truth) for one, truth in zip(log_nfa, through, strict=True)]
    assert [image["iou"] for image in found.images if image["defect"] == "red"] == ious


def test_the_oracle_tries_a_range_or_any_threshold(samples: list[Sample]) -> None:
    outputs = make_outputs(samples, (48, 48))
    truth, log_nfa = [truth_of(sample, (48, 48)) for sample in samples], [one.log_nfa for one in outputs]
    found = evaluate(samples, outputs, Protocol(size=48, oracle=(-60, 40, 20)))
    by_threshold = {t: reference.mean_iou([m < t for m in log_nfa], truth) for t in range(-60, 41, 20)}
    best = max(by_threshold, key=by_threshold.get)
    assert found.oracle == "-60:40:20"
    assert found.miou_best == pytest.approx(by_threshold[best], abs=1e-12)
    assert found.best_log_nfa == pytest.approx(best, abs=1e-4)
    anywhere = evaluate(samples, outputs, Protocol(size=48))
    assert anywhere.oracle == "any"
    assert anywhere.miou_best > found.miou_best
    assert anywhere.miou == found.miou == pytest.approx(by_threshold[0], abs=1e-12)
    maps_alone = [ImageOutput(one.anomaly_map, one.score) for one in outputs]  # no log NFA: any threshold
    free = evaluate(samples, maps_alone, Protocol(size=48, oracle=(-60, 40, 20)))
    assert free.miou_best == evaluate(samples, maps_alone, Protocol(size=48)).miou_best


def test_the_fair_threshold_is_read_off_as_the_sentence_says_or_at_the_curves_corners(samples: list[Sample]) -> None:
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    outputs = make_outputs(samples, (48, 48))
    normal = [np.round(one.anomaly_map, 2) for one in make_outputs(samples[:1] * 5, (48, 48))]  # with ties
    found = {rule: evaluate(samples, outputs, Protocol(size=48, fair=rule), normal) for rule in ("sentence", "corners")}
    scores = np.concatenate([m.ravel() for m in normal])
    with pytest.warns(Warning, match="No positive samples"):
        rates, _, thresholds = roc_curve(np.zeros(scores.size), scores)
    thresholds[0] = thresholds[1]  # infinite: above everything
    expected = np.interp(1 / 48**2, rates, thresholds)
    assert found["corners"].fair_threshold == pytest.approx(expected, abs=1e-6)
    assert found["sentence"].fair_threshold != pytest.approx(expected, abs=1e-3)
    for rule, one in found.items():
        truth = [truth_of(sample, (48, 48)) for sample in samples]
        assert one.fair_rule == rule
        assert one.miou_fair == reference.mean_iou([o.anomaly_map >= one.fair_threshold for o in outputs], truth)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Protocol(fair="mine"), "fair must be one of sentence, corners, not 'mine'"),
        (lambda: Protocol(size=0), "side of the maps must be at least 1, not 0"),
        (lambda: Protocol(oracle=(1.0, 0.0, 1.0)), "from LOW to HIGH by a STEP above 0"),
        (lambda: parse_oracle("best"), "--oracle is any, or LOW:HIGH:STEP in log10 NFA, got 'best'"),
        (lambda: parse_oracle("published"), "the paper does not say which thresholds"),
    ],
)
def test_a_protocol_that_there_is_not_is_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# evaluate_predictor ---------------------------------------------------------------------------------------------------


class Reddish:
    """A network whose energies are the redness of each cell of 8 x 8 pixels, of 400 channels."""

    image_size, strides, latent_channels = (32, 32), (8,), (400,)

    def evidence(self, images: np.ndarray) -> Evidence:
        red = images[..., 0].astype(np.float32)
        return Evidence([red.reshape(len(red), 4, 8, 4, 8).mean(axis=(2, 4)) * 4], [])


@pytest.fixture
def category(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    for name in ("train/good/0", "train/good/1", "test/good/0", "test/good/1", "test/red/0", "test/red/1"):
        image = rng.integers(70, 100, (40, 64, 3), dtype=np.uint8)
        path = tmp_path / "nut" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if "red" in name:
            image[10:30, 16:48, 0] = 250
            mask = tmp_path / "nut/ground_truth/red" / f"{path.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[..., 0] == 250).astype(np.uint8) * 255).save(mask)
        Image.fromarray(image).save(path)
    return tmp_path / "nut"


def test_pixels_outside_the_region_of_interest_do_not_count(samples: list[Sample]) -> None:
    """As if images, maps and truth had been cut off at its border."""
    chosen = [sample for sample, size in zip(samples, SIZES, strict=True) if size == SIZES[0]]
    roi = RegionOfInterest(SIZES[0], polygons=(((0, 0), (14, 0), (14, 40), (0, 40)),))
    outputs = make_outputs(chosen)
    found = evaluate(chosen, outputs, "native", [one.anomaly_map - 0.1 for one in outputs], roi=roi)
    truth = [truth_of(sample)[:, :14] for sample in chosen]
    maps, log_nfa = [one.anomaly_map[:, :14] for one in outputs], [one.log_nfa[:, :14] for one in outputs]
    assert 0 < sum(each.sum() for each in truth) < sum(truth_of(sample).sum() for sample in chosen)
    flat, flat_truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truth])
    assert found.pixel_auroc == pytest.approx(reference.auroc(flat, flat_truth), abs=1e-12)
    assert found.aupro == pytest.approx(reference.aupro(maps, truth), abs=1e-12)
    assert found.miou == reference.mean_iou([m < 0 for m in log_nfa], truth)
    assert found.miou_fair == reference.mean_iou([m >= np.float32(found.fair_threshold) for m in maps], truth)
    assert found.miou_best == pytest.approx(reference.best_iou([-m for m in log_nfa], truth), abs=1e-12)
    assert found != evaluate(chosen, outputs, "native", [one.anomaly_map - 0.1 for one in outputs])


def test_an_image_whose_defects_all_lie_outside_is_left_out(
    category: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Images of `category` are red in columns 16 to 48; one more is red to the right of the region alone."""
    image, mask = np.full((40, 64, 3), 80, np.uint8), np.zeros((40, 64), np.uint8)
    image[10:30, 52:, 0] = mask[10:30, 52:] = 255
    Image.fromarray(image).save(category / "test/red/2.png")
    Image.fromarray(mask).save(category / "ground_truth/red/2_mask.png")
    dataset = read_mvtec(category)
    roi = RegionOfInterest((40, 64), polygons=(((0, 0), (40, 0), (40, 40), (0, 40)),))
    for predictor, count in ((Predictor(Reddish(), roi=roi), 2), (Predictor(Reddish()), 3)):
        caplog.clear()
        record = measure(dataset, predictor, Path("nut"), "native")
        found = record["evaluation"]
        left_out = "nut: 1 of 5 test images are left out: their defects lie wholly outside the region of interest"
        assert (left_out in caplog.text) == (count == 2)
        red = [Path(each["path"]).name for each in found["images"] if each["defect"] == "red"]
        assert red == ["0.png", "1.png", "2.png"][:count]
        assert record["counts"]["test"] == len(found["images"]) == 2 + count
        assert found["flagged"] == {"good": {"images": 2, "share": 0.0}, "red": {"images": count, "share": 1.0}}
    given = Given(category / "test/red/0.png", Predictor(Reddish(), roi=roi))  # a file that stands for the model's
    for done in ("evaluated", "already evaluated"):
        (result,) = run([dataset], tmp_path / "out", given, Protocol("native"), figures=True)
        assert (result.error, result.done) == ("", done)
        assert (tmp_path / "out/figures/nut/misses.png").is_file()
    unknown = Dataset("nut", [], [replace(sample, masks=()) for sample in dataset.test])
    assert unknown.within(roi) == unknown, "where no mask tells, an image counts"


@pytest.mark.parametrize("protocol", ["paper", "native"])
def test_a_predictor_evaluates_what_it_predicts(category: Path, protocol: str) -> None:
    predictor, dataset = Predictor(Reddish()), read_mvtec(category)
    found = evaluate_predictor(predictor, dataset, protocol=Protocol(protocol, size=64), fair=True, progress=True)
    predictions = [predictor.predict(Path(image["path"])) for image in found.images]
    assert [image["flagged"] for image in found.images] == [one.is_anomalous for one in predictions]
    assert found.flagged == {"good": {"images": 2, "share": 0.0}, "red": {"images": 2, "share": 1.0}}
    assert found.image_auroc == 1
    assert found.miou_best >= found.miou > 0.5
    assert found.miou_best >= found.miou_fair > 0.3
    if protocol == "native":
        assert [image["score"] for image in found.images] == [one.score for one in predictions]
        assert [image["log_nfa"] for image in found.images] == [one.log_nfa.min() for one in predictions]
        training = [predictor.predict(path).anomaly_map for path in sorted((category / "train/good").iterdir())]
        assert sum((one >= np.float32(found.fair_threshold)).sum() for one in training) <= 2
    without = evaluate_predictor(predictor, dataset, protocol=Protocol(protocol, size=64))
    assert without.fair_threshold is None
    assert without == replace(found, miou_fair=None, fair_threshold=None)


def test_a_data_set_may_be_made_of_any_samples(samples: list[Sample]) -> None:
    predictor = Predictor(Reddish())
    found = evaluate_predictor(predictor, Dataset("mixed", [], samples), protocol="native")
    assert len(found.images) == len(samples)
    assert isinstance(found, Evaluation)
    with pytest.raises(ValueError, match="protocol must be one of"):
        evaluate_predictor(predictor, Dataset("mixed", [], samples), protocol="mine")


def test_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import uflow.evaluate.evaluation"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_evaluate_judges_any_model_by_the_papers_test_with_the_tail_asked_for(
    detector, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.save(tmp_path / "one.uflow")
    found, asked, judge = {}, set(), segmentation.log_nfa_from_energies
    monkeypatch.setattr(
        segmentation, "log_nfa_from_energies", lambda *of, **how: asked.add(how["tail"]) or judge(*of, **how)
    )
    for tail in ("exact", "chernoff-unguarded"):
        arguments = ["evaluate", tmp_path / "one.uflow", category, "--tail", tail, "-o", tmp_path / f"{tail}.json"]
        monkeypatch.setattr(sys, "argv", ["uflow", *map(str, arguments), "--oracle", "0:0:1", "--fair", "corners"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        found[tail] = json.loads((tmp_path / f"{tail}.json").read_text())
        assert (found[tail]["oracle"], found[tail]["fair_rule"]) == ("0:0:1", "corners")
        assert found[tail]["miou_best"] == pytest.approx(found[tail]["miou"])  # the oracle tries 0 alone
        assert found[tail]["alpha"] is None
    assert asked == {"exact", "chernoff-unguarded"}
