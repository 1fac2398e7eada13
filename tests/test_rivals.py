"""Methods side by side: processes of their own, failures as rows, what is resumed, the tables; anomalib's methods."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made_nets import weights_file
from uflow import cli
from uflow.evaluate import datasets, rival_methods, rivals
from uflow.evaluate.cross_scale import CrossScaleFlow, train_cross_scale_flow
from uflow.evaluate.method_maps import read_maps
from uflow.evaluate.rivals import METHODS, Result, Settings
from uflow.files import sha256
from uflow.recipe import Recipe, TrainingSettings

MADE = '''
import os
from pathlib import Path

def bright(images, settings, seed):
    """Scores by brightness, of which the defects of the test set have more."""
    Path("learnt").write_text(f"{len(images)} {seed} {settings.backbone}")
    return (32, 48), lambda batch: (batch.mean(1), batch.mean(1).amax((1, 2)))

def killed(images, settings, seed):
    os.kill(os.getpid(), 9)

def wrong(images, settings, seed):
    raise KeyError("no such | layer\\nin this net" + 60 * " and more")
'''


@pytest.fixture
def category(dataset: Path) -> datasets.Dataset:
    return datasets.read_mvtec(dataset)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been run: no process is started, and every method is right about 0.9 of the pixels."""
    ran: list[str] = []

    def measure(category, method, seed, epochs, settings, logs, kept) -> Result:
        ran.append(f"{method} {seed}")
        figures = {"pixel_auroc": 0.9, "aupro": 0.8, "image_auroc": 0.7, "miou_fair": 0.2, "miou_best": 0.3}
        costs = {"fit_s": 2.0, "fit_cpu_s": 1.0, "predict_ms": 4.0, "predict_cpu_ms": 3.0, "memory_mb": 500.0}
        result = Result(category.name, method, seed, epochs, category.layout, **figures, **costs)
        return replace(result, pixel_auroc=0.8, aupro=0.81 + seed / 10) if method == "fre" else result

    monkeypatch.setattr(rivals, "_in_own_process", measure)
    monkeypatch.setattr(rivals, "check_methods", lambda methods: None)
    return ran


def test_methods_run_in_processes_of_their_own(category, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text(MADE)
    said: list[str] = []
    killed, bright, wrong = rivals.compare(
        [category],
        ["made:killed", "made:bright", "made:wrong"],
        [7],
        tmp_path / "out",
        Settings("resnet18"),
        partial(rivals.measure_in_turn, on_start=said.append),
    )
    assert killed.failure is not None
    assert wrong.failure is not None
    assert "SIGKILL" in killed.failure
    assert wrong.failure.startswith("KeyError: 'no such | layer")
    assert "\n" not in wrong.failure
    assert wrong.failure.count("and more") == 60  # the whole message
    assert "Traceback" in (tmp_path / "out/logs/grating-made.wrong-7.log").read_text()
    assert said == [f"{i + 1}/3 grating, made:{m}, seed 7" for i, m in enumerate(("killed", "bright", "wrong"))]

    assert (tmp_path / "learnt").read_text() == "30 7 resnet18"
    assert bright.failure is None
    assert bright.pixel_auroc is not None
    assert bright.pixel_auroc > 0.8  # defects are brighter
    assert (bright.miou, bright.iou_defective, bright.pixel_f1) == (None, None, None)  # no threshold of its own
    assert (bright.good_flagged, bright.defective_flagged) == (None, None)
    assert bright.miou_fair is not None
    assert bright.miou_best is not None
    assert 0 <= bright.miou_fair <= bright.miou_best
    assert bright.fit_s is not None
    assert bright.fit_s < 5  # without the imports
    assert bright.predict_ms is not None
    assert bright.predict_ms > 0
    if sys.platform == "linux":
        assert bright.memory_mb is not None
        assert 100 < bright.memory_mb < 2000

    table = (tmp_path / "out/comparison.md").read_text().splitlines()
    widths = {line.replace("\\|", "").count("|") for line in table[:5]}
    assert len(widths) == 1  # failures too fill the table's columns
    assert "failed: its process was ended by signal SIGKILL" in table[3]


def test_what_is_done_is_not_done_again(category, tmp_path: Path, ran: list[str]) -> None:
    rivals.compare([category], ["fre", "neighbours"], [0, 1], tmp_path)
    assert ran == ["fre 0", "fre 1", "neighbours 0", "neighbours 1"]
    ran.clear()
    results = rivals.compare([category], ["neighbours", "fre", "padim"], [1, 2], tmp_path)
    assert ran == ["neighbours 2", "fre 2", "padim 1", "padim 2"]
    assert [(r.method, r.seed) for r in results] == [(m, s) for m in ("neighbours", "fre", "padim") for s in (1, 2)]
    kept = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert len(kept) == 8  # those not asked for the second time stay

    ran.clear()
    rivals.compare([category], ["fre", "padim"], [1], tmp_path, Settings(epochs=3))
    assert ran == ["fre 1"]  # of other epochs: another row; padim is not trained by epochs
    content = json.loads((tmp_path / "comparison.json").read_text())
    content["results"] = [{**r, "failure": "no memory"} if r["method"] == "padim" else r for r in content["results"]]
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    ran.clear()
    rivals.compare([category], ["padim"], [0, 1], tmp_path)
    assert ran == ["padim 0", "padim 1"]  # a failure is tried again

    with pytest.raises(ValueError, match=r"other settings \(.*image_size balanced; not .*image_size 320\)"):
        rivals.compare([category], ["padim"], [0], tmp_path, Settings(image_size=320))


def test_epochs_of_trained_methods_make_as_many_steps_whatever_the_number_of_images() -> None:
    steps = rivals.STEPS
    assert rivals._epochs("cflow", 33, Settings()) == steps // 2
    assert rivals._epochs("cflow", 16 * steps, Settings()) == 1
    assert rivals._epochs("cflow", 5, Settings()) == steps
    assert rivals._epochs("cflow", 700, Settings(epochs=3)) == 3
    assert rivals._epochs("patchcore", 700, Settings(epochs=3)) is None
    assert rivals._epochs("uflow", 700, Settings(epochs=3)) is None


def test_tables(category, tmp_path: Path, ran: list[str]) -> None:
    rivals.compare([category], ["fre", "neighbours"], [0, 1], tmp_path, Settings(epochs=5))
    table = (tmp_path / "comparison.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    assert rows[0][:7] == ["category", "method", "epochs", "seeds", "pixel AUROC", "AUPRO", "image AUROC"]
    assert rows[0][7:] == [
        *("mIoU auto", "defect IoU", "pixel F1", "mIoU fair", "mIoU best", "good flagged", "defects flagged"),
        *("learning", "an image", "memory"),
    ]
    assert rows[3][:14] == [
        *("grating", "fre", "5", "0 1", "0.800", "**0.860**", "**0.700**"),
        *("-", "-", "-", "**0.200**", "**0.300**", "-", "-"),  # no mask of its own
    ]
    assert rows[2][:7] == ["grating", "neighbours", "-", "0 1", "**0.900**", "0.800", "**0.700**"]
    assert rows[2][14:] == ["1 s", "3 ms", "500 MB"]  # of processors
    published = {row[0]: row[1:] for row in rows[4:]}
    assert published["method (published)"] == ["pixel AUROC", "AUPRO", "mIoU auto", "mIoU fair", "mIoU best"]
    assert published["U-Flow, MS-CaiT"] == ["0.987", "0.952", "0.541", "-", "0.545"]
    assert published["CS-Flow"] == ["0.943", "0.799", "-", "0.328", "0.392"]
    assert {"SPADE", "PatchSVDD", "PEFM"} < set(published)
    assert "Published, not measured here" in table

    with (tmp_path / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"], line["epochs"]) for line in lines][:3] == [
        ("neighbours", "0", ""),
        ("neighbours", "1", ""),
        ("fre", "0", "5"),
    ]
    assert lines[2]["pixel_auroc"] == "0.8"
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["machine"]["threads"] == str(torch.get_num_threads())
    assert content["published"]["means"]["SPADE"] == {"pixel_auroc": 0.9603, "aupro": 0.9173}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uflow", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        return (exit_info.value.code or 0, *capsys.readouterr())

    return call


def test_command(run, dataset: Path, tmp_path: Path, ran: list[str]) -> None:
    code, out, err = run(dataset, "--methods", "neighbours, fre", "--seeds", "3,4", "--epochs", 2, "-o", "c")
    assert code == 0, err
    assert ran == ["neighbours 3", "neighbours 4", "fre 3", "fre 4"]
    assert "| grating | fre | 2 | 3 4 |" in out
    assert all((tmp_path / "c" / f"comparison.{suffix}").is_file() for suffix in ("md", "csv", "json"))
    ran.clear()
    code, out, err = run(dataset, "-o", "c")
    assert code == 0, err
    assert ran == [f"{method} 0" for method in METHODS]
    code, _, err = run(dataset, "--epochs", 0)
    assert (code, err) == (1, "uflow: error: epochs must be at least 1, got 0\n")
    code, _, err = run(dataset, "--categories", "bottle")
    assert (code, err.count("\n")) == (1, 1)
    assert "no category bottle: it has grating" in err


def test_mistakes_are_one_line(run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(dataset, "--methods", "uflow,spede")
    assert (code, err.count("\n")) == (1, 1)
    assert "unknown method 'spede'; known: uflow, neighbours, spade, cs_flow, patchcore," in err
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "anomalib" else find(name))
    code, _, err = run(dataset, "--methods", "uflow,cflow,padim")
    assert (code, err.count("\n")) == (1, 1)
    assert 'cflow, padim need anomalib: pip install "uflow-ad[compare]"' in err


def test_a_category_without_masks_is_named_and_the_others_too(run, dataset: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for name in ("marked", "unmarked"):
        shutil.copytree(dataset, both / name)
    shutil.rmtree(both / "unmarked/ground_truth")
    code, _, err = run(both, "--methods", "fre")
    assert (code, err.count("\n")) == (1, 1)
    assert "unmarked has no ground_truth (read as mvtec); read alone, it needs no masks; compare the others with" in err


def test_neighbours(category) -> None:
    size, score = rival_methods.neighbours(category.train, Settings(image_size=64), seed=0)
    assert size == (64, 64)
    learnt, test = (next(Settings().read_images(paths, size)) for paths in (category.train, [category.test[-1].path]))
    maps, scores = score(test)
    assert maps.shape == (1, 256, 256)
    assert float(scores) == float(maps.max())
    good, _ = score(learnt[:1])
    assert float(good.max()) < 1e-2 * float(scores)  # every vector of so few images is kept
    assert float(maps[0, 80:140, 90:150].mean()) > 2 * float(maps[0, 200:].mean())  # where the square is


def test_all_methods_see_16_bit_images_as_u_flow_does(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1024, (8, 9), dtype=np.uint16)
    values[0, 0] = 1023
    Image.fromarray(values).save(tmp_path / "a.png")
    settings = Settings(image_size=8).for_images([tmp_path / "a.png"])
    assert settings.bit_depth == 10
    seen = next(settings.read_images([tmp_path / "a.png"], (8, 9)))
    assert seen.shape == (1, 3, 8, 9)
    assert torch.allclose(seen[0, 0], torch.from_numpy(values / 1023).float(), atol=0.5 / 255)


def scores_of(category, learn, **settings) -> tuple[list[float], torch.Tensor]:
    """Scores of the test images, and the map of the last, which has a square."""
    size, score = learn(category.train, Settings(image_size=64, **settings), 0)
    with torch.inference_mode():
        found = [score(batch) for batch in Settings().read_images([s.path for s in category.test], size)]
    maps, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert maps.shape == (8, 256, 256)
    return scores.tolist(), maps[-1]


def test_spade_finds_what_no_good_image_has(category) -> None:
    scores, of_square = scores_of(category, rival_methods.spade)
    good = [score for score, sample in zip(scores, category.test, strict=True) if not sample.is_anomalous]
    assert min(set(scores) - set(good)) > max(good)
    assert float(of_square[80:140, 90:150].mean()) > 2 * float(of_square[200:].mean())
    size, score = rival_methods.spade(category.train, Settings(image_size=64), 0)
    learnt = next(Settings().read_images(category.train, size))
    maps, _ = score(learnt[:1])
    assert float(maps.max()) < 0.1 * float(of_square.max())  # its own cells are among the nearest
    assert score.vectors.shape == (30, 320)
    vectors = score.vectors[:1] - score.vectors
    assert float(score(learnt[:1])[1]) == pytest.approx(float(vectors.norm(dim=1).mean()), rel=1e-3)


def test_the_cross_scale_flow_learns_and_its_seed_decides() -> None:
    """Features of two scales, the coarser a part of the finer: normal ones become likelier, others do not."""
    rng = torch.Generator().manual_seed(1)

    def features(count: int) -> list[torch.Tensor]:
        fine = torch.randn(count, 4, 8, 8, generator=rng).cumsum(dim=1)
        return [fine, torch.nn.functional.avg_pool2d(fine, 2)]

    shown, other = [features(8) for _ in range(4)], features(8)
    start, *flows = CrossScaleFlow([4, 4]), *(train_cross_scale_flow(shown, 12, seed, hidden=16) for seed in (5, 5, 6))
    with torch.inference_mode():
        first, same, another = (flow.loss(other).item() for flow in flows)
        assert first == same != another
        assert first < start.loss(other).item() - 0.01
        assert flows[0].loss([2 * x.flip(1) for x in other]).item() > first + 0.5


def test_the_cross_scale_flow_is_a_bijection_whose_log_det_is_right() -> None:
    torch.manual_seed(0)
    flow = CrossScaleFlow([6, 8], hidden=4).double()
    for gain in [p for name, p in flow.named_parameters() if "gains" in name]:
        torch.nn.init.normal_(gain)
    shapes = [(6, 4, 4), (8, 2, 2)]

    def forward(x: torch.Tensor) -> torch.Tensor:
        latents, _ = flow([x[:96].view(1, *shapes[0]), x[96:].view(1, *shapes[1])])
        return torch.cat([z.flatten() for z in latents])

    x = torch.randn(128, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(forward, x)
    _, log_det = flow([x[:96].view(1, *shapes[0]), x[96:].view(1, *shapes[1])])
    assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-8)
    assert abs(log_det.item()) > 0.1
    assert float(jacobian[:96, 96:].abs().max()) > 1e-3  # the coarser scale has a say in the finer
    assert float(jacobian[96:, :96].abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["neighbours", "spade", "cs_flow"])
def test_methods_take_any_backbone(category, name: str, tmp_path: Path) -> None:
    """A plain transformer with given weights, whose strides are its own."""
    settings = Settings("test_vit", 64, epochs=1, weights=(weights_file(tmp_path, "test_vit"),))
    size, score = METHODS[name](category.train[:4], settings, 0)
    maps, scores = score(torch.rand(2, 3, 64, 64))
    assert size == (64, 64)
    assert maps.shape == (2, 256, 256)
    assert maps.isfinite().all()
    assert scores.shape == (2,)


def test_anomalib_methods_say_that_a_plain_transformer_has_no_pyramid(category, tmp_path: Path) -> None:
    settings = Settings("test_vit", 64, epochs=1, weights=(weights_file(tmp_path, "test_vit"),))
    with pytest.raises(ValueError, match=r"pyramid of feature maps, which test_vit has not; .*: uflow, neighbours"):
        METHODS["patchcore"](category.train, settings, 0)


def test_uflow_follows_the_recipe_asked_for(tmp_path: Path) -> None:
    paper = rivals._uflow_recipe("carpet", 3, Settings(image_size=64, recipe="paper", epochs=2))
    assert (paper.held_out, paper.alpha, paper.settings.batch_size, paper.settings.epochs) == (0, None, 13, 2)
    assert (paper.settings.seed, paper.image_size) == (3, (64, 64))
    plain = rivals._uflow_recipe("carpet", 3, Settings(image_size=64))
    assert plain == Recipe(image_size=(64, 64), settings=TrainingSettings(seed=3))
    published = rivals._uflow_recipe("carpet", 0, Settings(image_size=64, paper_map=True, paper_test=True))
    assert (published.alpha, published.settings.memory_size, published.settings.augment) == (None, 0, False)
    weights = weights_file(tmp_path, "test_vit")
    common = rivals._common(Settings("test_vit", 64, weights=(weights,), recipe="paper", paper_map=True))
    assert common == {
        **{"backbone": "test_vit", "image_size": 64, "weights": [sha256(weights)], "recipe": "paper"},
        "paper_map": True,
    }


def test_the_paper_stands_beside_others_with_maps_of_all(category, tmp_path: Path) -> None:
    """In this process: neither is slow to import. The rivals' maps, masks, and one picture of all."""
    weights = weights_file(tmp_path, "test_vit")
    settings = Settings("test_vit", 64, epochs=1, recipe="paper", weights=(weights,))
    for method in ("uflow", "spade"):
        figures = rivals._measure(category, method, 0, settings, rivals._maps_file(tmp_path, "grating", method, 0))
        assert (figures["miou"] is None) == (method == "spade")
    rivals._draw(category, ["uflow", "spade", "missing"], 0, tmp_path)
    ours, theirs = (read_maps(rivals._maps_file(tmp_path, "grating", name, 0)) for name in ("uflow", "spade"))
    assert ours["index"].tolist() == theirs["index"].tolist() == [4, 5, 6, 7]  # the defective ones
    assert ours["maps"].shape == theirs["maps"].shape == (4, 256, 256)
    assert ours["masks"].dtype == bool
    assert "masks" not in theirs
    with Image.open(tmp_path / "pictures/grating.png") as picture:
        assert picture.height > picture.width * 5 / 4 * 0.5  # image, truth, two rows of ours, one of SPADE


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is None, reason='needs anomalib: pip install "uflow-ad[compare]"'
)
def test_anomalib_methods_learn_and_score(dataset: Path, tmp_path: Path) -> None:
    """One process for all of them: they import for seconds, and warn of much."""
    script = (
        "import json, sys; from uflow.evaluate import datasets, rival_methods, rivals\n"
        "category = datasets.read_mvtec(sys.argv[1]); settings = rivals.Settings(image_size=128, epochs=2)\n"
        "found = {name: rivals._measure(category, name, 0, settings) for name in rival_methods.ANOMALIB}\n"
        "open(sys.argv[2], 'w').write(json.dumps(found))"
    )
    answer = tmp_path / "answer.json"
    ended = subprocess.run([sys.executable, "-c", script, str(dataset), str(answer)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(answer.read_text())
    assert list(found) == [name for name in METHODS if name not in ("uflow", "neighbours", "spade", "cs_flow")]
    for name, figures in found.items():
        assert 0 <= figures["pixel_auroc"] <= 1, name
        assert figures["miou"] is None, name
        assert figures["miou_fair"] is not None, name
    for name in ("patchcore", "mh_patchcore", "padim"):  # our weights are in them: random ones find less
        assert found[name]["pixel_auroc"] > 0.9, (name, found[name])
