"""The pictures show the right images in the right order, are whole PNGs of what they should show, and fit any image."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from uflow.evaluate import figures
from uflow.evaluate.datasets import Dataset, Sample
from uflow.images import read_image
from uflow.prediction import Prediction

YELLOW = (255, 232, 0)


class Predictor:
    """Bright pixels are anomalous."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stream(self, paths: Sequence[Path], batch_size: int) -> Iterator[Prediction]:
        for path in paths:
            self.seen.append(path.stem)
            image = read_image(path)
            anomaly_map = image[..., 0].astype(np.float32) / 255
            log_nfa = 3 - 8 * anomaly_map
            mask = log_nfa < 0
            yield Prediction(float(anomaly_map.max()), bool(mask.any()), anomaly_map, log_nfa, mask, [], image, path)


def made(
    folder: Path, images: dict[str, tuple[str, bool, float, float | None]], shape: tuple[int, int] = (40, 60)
) -> tuple[Dataset, Any]:
    """A category of pictures with a bright square, and an evaluation: name -> defect, flagged, log_nfa, iou."""
    samples, found = [], []
    for name, (defect, flagged, log_nfa, iou) in images.items():
        pixels = np.full((*shape, 3), 60, np.uint8)
        pixels[5:15, 5:20] = 240 if flagged else 60
        path, masks = folder / f"{name}.png", ()
        Image.fromarray(pixels).save(path)
        if defect != "good" and iou is not None:
            truth = np.zeros(shape, np.uint8)
            truth[5:15, 5:20] = 255
            masks = (folder / f"{name}_mask.png",)
            Image.fromarray(truth).save(masks[0])
        samples.append(Sample(path, defect, masks))
        found.append({"path": str(path), "defect": defect, "flagged": flagged, "score": 0.5 - log_nfa / 1000} |
                     {"log_nfa": log_nfa, "iou": iou})  # fmt: skip
    curve = [(0.0, 0.0), (0.1, 0.8), (0.3, 1.0)]
    both = len({sample.is_anomalous for sample in samples}) == 2
    evaluation = SimpleNamespace(
        images=found,
        roc=[*curve, (1.0, 1.0)] if both else [],
        pro=curve if both else [],
        pixel_auroc=0.9,
        image_auroc=0.8,
        aupro=0.7,
    )
    return Dataset("tile", [], samples), evaluation


MIXED: dict[str, tuple[str, bool, float, float | None]] = {
    "fine": ("good", False, 4.0, 1.0),
    "odd": ("good", False, 0.5, 1.0),
    "alarm": ("good", True, -2.0, 0.0),
    "loud": ("good", True, -60.0, 0.0),
    "missed": ("crack", False, 1.0, 0.0),
    "missed clearly": ("hole", False, 3.0, 0.0),
    "beside": ("crack", True, -5.0, 0.0),
    "poor": ("hole", True, -500.0, 0.1),
    "well": ("crack", True, -5.0, 0.8),
    "empty truth": ("crack", False, 2.0, 1.0),  # both masks empty count 1, and yet it is a miss
    "no truth": ("hole", True, -5.0, None),
}


def names(dataset: Dataset, choice: figures.Choice) -> list[str]:
    return [dataset.test[i].path.stem for i in choice[0]]


def test_the_worst_come_first(tmp_path: Path) -> None:
    dataset, evaluation = made(tmp_path, MIXED)
    misses = figures._misses(evaluation.images)
    assert names(dataset, misses) == ["missed clearly", "empty truth", "missed", "beside", "poor", "well"]
    assert misses[1] == "worst misses"
    assert "not flagged: 3 of 7 defective images" in misses[2]
    assert "beside the defect only: 1" in misses[2]
    alarms = figures._false_alarms(evaluation.images)
    assert names(dataset, alarms) == ["loud", "alarm", "odd", "fine"]
    assert "flagged: 2 of 4 good images" in alarms[2]


def test_without_a_mistake_the_nearest_to_one_is_shown_and_said(tmp_path: Path) -> None:
    right = {name: MIXED[name] for name in ("fine", "odd", "well", "poor")}
    dataset, evaluation = made(tmp_path, right)
    misses = figures._misses(evaluation.images)
    assert names(dataset, misses) == ["poor", "well"]
    assert misses[1] == "no miss, nearest to one"
    alarms = figures._false_alarms(evaluation.images)
    assert names(dataset, alarms) == ["odd", "fine"]
    assert alarms[1] == "no false alarm, nearest to one"


def test_examples_are_the_medians_of_every_kind(tmp_path: Path) -> None:
    ious = {f"{kind}{i}": (kind, True, -5.0, i / 10) for kind in "abcdef" for i in range(1, 6)}
    goods = {f"good{i}": ("good", False, float(i), 1.0) for i in range(3)}
    dataset, evaluation = made(tmp_path, goods | ious)
    assert names(dataset, figures._typical(evaluation.images)) == [*(f"{k}3" for k in "abcdef"), "good1"]
    few, evaluation = made(tmp_path, {name: value for name, value in (goods | ious).items() if name[0] in "ag"})
    assert names(few, figures._typical(evaluation.images)) == ["a1", "a3", "a5", "good0", "good1", "good2"]


def test_many_kinds_are_cut_to_the_most_frequent(tmp_path: Path) -> None:
    images = {f"{kind}{i}": (kind, True, -5.0, 0.5) for n, kind in enumerate("abcdefghij") for i in range(n + 1)}
    dataset, evaluation = made(tmp_path, images)
    indices, _, below = figures._typical(evaluation.images)
    assert [dataset.test[i].defect for i in indices] == list("cdefghij")
    assert "8 most frequent of 10 kinds" in below


def drawn(path: Path) -> np.ndarray:
    """Read a picture back, and fail where it is a blank sheet."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    pixels = read_image(path)
    grey = pixels.mean(axis=-1)
    assert (grey < 128).mean() > 0.002  # text and lines at least
    assert len(np.unique(grey)) > 50
    return pixels


def test_a_category_gets_four_pictures(tmp_path: Path) -> None:
    dataset, evaluation = made(tmp_path, MIXED)
    folder = tmp_path / "new/figures"
    predictor = Predictor()
    written = figures.write_category(predictor, dataset, evaluation, folder)
    assert [path.stem for path in written] == ["examples", "misses", "false_alarms", "curves"]
    assert sorted(written) == sorted(folder.iterdir())  # no temporary file
    assert len(predictor.seen) == len(set(predictor.seen)) <= len(MIXED)  # each image shown is predicted once
    yellow = [(drawn(path) == YELLOW).all(-1).sum() for path in written]
    assert yellow[1] > 500  # the truth is outlined
    assert yellow[2] == 0


def test_only_images_shown_are_predicted(tmp_path: Path) -> None:
    dataset, evaluation = made(tmp_path, {f"{i}": ("good", False, float(i), 1.0) for i in range(40)})
    predictor = Predictor()
    figures.write_category(predictor, dataset, evaluation, tmp_path / "out")
    assert len(predictor.seen) <= 2 * figures.ROWS


@pytest.mark.parametrize("missing", ["good", "defects"])
def test_a_picture_with_nothing_to_show_is_left_out(missing: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in MIXED.items() if (value[0] == "good") == (missing == "defects")}
    dataset, evaluation = made(tmp_path, kept)
    written = figures.write_category(Predictor(), dataset, evaluation, tmp_path / "out")
    which = "misses" if missing == "good" else "false_alarms"
    assert [path.stem for path in written] == ["examples", which, "curves"]
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert len(drawn(written[-1])) < 2.5 * figures.DPI  # curves.png holds one histogram only


def test_evaluation_of_other_images_is_refused(tmp_path: Path) -> None:
    dataset, evaluation = made(tmp_path, MIXED)
    evaluation.images.pop()
    with pytest.raises(ValueError, match="10 images were evaluated, but tile has 11"):
        figures.write_category(Predictor(), dataset, evaluation, tmp_path)


@pytest.mark.parametrize("shape", [(900, 90), (90, 900), (30, 30), (1200, 1600)])
def test_images_keep_their_proportions(shape: tuple[int, int], tmp_path: Path) -> None:
    """The pixels of the bright image tell where it was drawn: as tall as its shape says, and inside the picture."""
    image = np.full((*shape, 3), (10, 200, 10), np.uint8)
    log_nfa = np.full(shape, 5, np.float32)
    mask = np.zeros(shape, bool)
    prediction = Prediction(0.0, False, np.zeros(shape, np.float32), log_nfa, mask, [], image)
    example = figures.Example.from_prediction("$\\no{$ formula" * 30, prediction, None)
    assert max(example.image.shape) <= 3 * figures.DPI * figures.TALLEST
    figures.write_examples([example], tmp_path / "a.png", "heading")
    picture = read_image(tmp_path / "a.png")
    found = np.argwhere((picture == (10, 200, 10)).all(-1))
    height, width = np.ptp(found, axis=0) + 1
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.08)
    assert picture.shape[1] == figures.WIDTH * figures.DPI
    assert picture.shape[0] < 6 * figures.DPI


def test_one_defective_pixel_of_a_large_image_shows(tmp_path: Path) -> None:
    shape = (2000, 3000)
    truth = np.zeros(shape, bool)
    truth[777, 1234] = True
    anomaly_map = truth.astype(np.float32)
    log_nfa = np.where(truth, -7, 3).astype(np.float32)
    prediction = Prediction(1.0, True, anomaly_map, log_nfa, truth, [], np.zeros((*shape, 3), np.uint8))
    example = figures.Example.from_prediction("tiny", prediction, truth)
    assert example.mask.sum() == example.truth.sum() == 1
    assert (example.anomaly_map.max(), example.log_nfa.min()) == (1, -7)
    figures.write_examples([example], tmp_path / "a.png", "heading")
    assert (np.abs(read_image(tmp_path / "a.png").astype(int) - YELLOW).sum(-1) < 60).sum() >= 4


def test_a_title_is_plain_text_of_bounded_length(tmp_path: Path) -> None:
    path = f"/data/crack/$x_1$ {'very long ' * 20}.png"
    image = {"path": path, "defect": "crack", "score": 0.5, "log_nfa": -3.25, "flagged": True, "iou": 0.5}
    title = figures._title(image, np.ones((2, 2), bool))
    assert title.startswith("crack/$x_1$ very")
    assert ".png:  flagged,  score 0.50,  log10 NFA -3.2,  IoU 0.50" in title
    assert len(title) < 130
    assert figures._title(image, None).endswith("truth unknown")
    assert figures._title(image, np.zeros((2, 2), bool)).endswith("truth empty")


@pytest.mark.parametrize("values", [[-500.0, -0.1, 0.0, 12.0], [3.0], [-1e-3]])
def test_no_bar_of_a_histogram_lies_on_both_sides_of_the_threshold(values: list[float]) -> None:
    figure = figures.Figure()
    axis = figure.add_subplot()
    figures._histograms([axis], {"good": [{"log_nfa": value, "flagged": value < 0} for value in values]})
    patches = [bar for bar in axis.patches if isinstance(bar, Rectangle)]  # to matplotlib 3.8 the shaded half is none
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in patches if bar.get_height()]
    counted = [bar for bar in bars if bar[0] != axis.get_xlim()[0] or bar[1] != 0]  # not the shaded half
    assert not [bar for bar in counted if bar[0] < -1e-9 and bar[1] > 1e-9]
    assert sum(h for left, right, h in counted if right <= 1e-9) == sum(value < 0 for value in values)
