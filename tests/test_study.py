"""Runs over many categories: what is trained, taken up again, refused, or reported as failed; and the summary."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.progress import Progress

import uflow
from uflow import model_file
from uflow.evaluate import published, study
from uflow.evaluate.datasets import Dataset, find_categories
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.evaluate.metrics import PixelMetrics
from uflow.evaluate.protocols import published_truth
from uflow.evaluate.study import Given, Result, TestSelection, Trained
from uflow.evaluate.summary import summarise
from uflow.evaluate.tables import FIGURES
from uflow.images import digest, read_image, resize_image
from uflow.model_file import load_model, save_model
from uflow.network import TorchNetwork
from uflow.predictor import Predictor
from uflow.recipe import Recipe, TrainingSettings
from uflow.scoring import anomaly_map_from_energies
from uflow.threshold import PaperThreshold

Make = Callable[..., Trained]


def make_data(dataset: Path, folder: Path) -> Path:
    """Two categories: a part of grating, and a copy of it that bears the name of one of MVTec AD's."""
    for name in ("grating", "tile"):
        shutil.copytree(dataset, folder / name)
        for path in (folder / name / "train/good").iterdir():
            if int(path.stem) >= 10:
                path.unlink()
    return folder


def make_models(folder: Path, epochs: int = 1, select_on_test: bool = False, **options) -> Trained:
    """Models that take seconds to train."""
    settings = TrainingSettings(epochs, batch_size=8, augment=False)
    recipe = Recipe(**{"image_size": 64, "settings": settings, "alpha": 0.3, **options})
    return Trained(folder, recipe, device="cpu", select_on_test=select_on_test)


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    return make_data(dataset, tmp_path / "data")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def trained(output: Path) -> Make:
    return lambda epochs=1, folder=output / "models", **options: make_models(folder, epochs, **options)


@pytest.fixture(scope="session")
def results_of_before(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    results = run(make_data(dataset, folder / "data"), folder, make_models(folder / "models"))
    assert done(results) == {"grating": "trained, evaluated", "tile": "trained, evaluated"}
    shutil.rmtree(folder / "data")
    return folder


@pytest.fixture
def before(results_of_before: Path, output: Path) -> None:
    """A run with one epoch was here before, with the same images in another folder."""
    shutil.copytree(results_of_before, output)


def run(data: Path, output: Path, models: study.Models, protocol: str = "paper", **options) -> list[Result]:
    datasets = find_categories(data)
    study.check(datasets, output, models, protocol)
    return list(study.run(datasets, output, models, protocol, **options))


def done(results: list[Result]) -> dict[str, str]:
    return {result.category: result.error or result.done for result in results}


@pytest.mark.usefixtures("before")
def test_what_is_there_is_taken_if_it_is_the_same(data: Path, output: Path, trained: Make) -> None:
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert set(files) == {
        *("models/grating.uflow", "models/tile.uflow", "evaluations/grating.json", "evaluations/tile.json")
    }
    again = run(data, output, trained())
    assert done(again) == {"grating": "already evaluated", "tile": "already evaluated"}
    saved = json.loads(files["evaluations/tile.json"])
    assert again[1].record["evaluation"] == saved["evaluation"]
    (output / "evaluations/tile.json").unlink()
    anew = run(data, output, trained())
    assert done(anew) == {"grating": "already evaluated", "tile": "evaluated"}
    assert anew[1].record["evaluation"]["pixel_auroc"] == pytest.approx(saved["evaluation"]["pixel_auroc"], abs=1e-6)
    assert all(
        (output / name).read_bytes() == content for name, content in files.items() if name != "evaluations/tile.json"
    )


@pytest.mark.usefixtures("before")
def test_what_was_made_otherwise_is_refused_before_anything_is_done(data: Path, output: Path, trained: Make) -> None:
    refused = [
        (trained(epochs=2), "paper", r"grating\.uflow was trained with epochs 1, not 2: give another --models"),
        (trained(image_size=96), "paper", r"image_size \[64, 64\], not \[96, 96\]"),
        (trained(tile=True), "paper", "tile False, not True"),
        (trained(alpha=None), "paper", "alpha 0.3, not None"),
        (trained(select_on_test=True), "paper", "select_on_test False, not True"),
        (trained(), "native", r"grating\.json was made with protocol paper, not native: give another --output"),
        (
            trained(folder=output / "other"),
            "paper",
            r"grating\.json is of a model that is gone, .*models.grating\.uflow",
        ),
    ]
    for models, protocol, message in refused:
        with pytest.raises(ValueError, match=message) as error:
            run(data, output, models, protocol)
        assert "\n" not in str(error.value)
    tensors, config = load_model(output / "models/tile.uflow")
    save_model(output / "models/tile.uflow", tensors, config | {"history": []})
    with pytest.raises(ValueError, match=r"tile\.json was made with other model"):
        run(data, output, trained())
    save_model(output / "models/tile.uflow", tensors, config | {"record": {}})
    with pytest.raises(ValueError, match=r"tile\.uflow does not say how it was trained: delete it, or give another"):
        run(data, output, trained())


@pytest.mark.usefixtures("before")
def test_other_images_are_not_mixed_with_those_of_before(data: Path, output: Path, trained: Make) -> None:
    mask = data / "tile/ground_truth/square/00_mask.png"
    shutil.copy(data / "tile/test/good/00.png", mask)
    shutil.copy(data / "grating/train/good/00.png", data / "grating/train/good/01.png")
    results = run(data, output, trained())
    assert "grating.uflow was trained with other images: give another --models" in results[0].error
    assert "tile.json was made with other test images: give another --output, or delete it" in results[1].error
    assert not any(result.record for result in results)


def test_a_category_that_fails_does_not_stop_the_others(data: Path, output: Path, trained: Make) -> None:
    (data / "grating/test/square/01.png").write_bytes(b"not an image")
    failed, good = run(data, output, trained())
    assert "square/01.png" in failed.error
    assert "\n" not in failed.error
    assert good.done == "trained, evaluated"
    assert [path.name for path in (output / "evaluations").iterdir()] == ["tile.json"]
    found = summarise([failed, good])
    assert found["means"][-1]["categories"] == ["tile"]


def test_a_fault_of_the_program_does_not_either(
    data: Path, output: Path, trained: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_, **__):
        raise KeyError("strides")

    monkeypatch.setattr(uflow.Detector, "fit_recipe", fail)
    assert done(run(data, output, trained())) == {"grating": "'strides'", "tile": "'strides'"}
    assert "Traceback" in caplog.text


def test_a_killed_training_goes_on(
    data: Path, output: Path, trained: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = model_file.save_training_state

    def save_then_die(path, state, run):
        save(path, state, run)
        if path.name == "tile.uflow.state" and state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "save_training_state", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            run(data, output, trained(epochs=3))
    caplog.set_level("INFO", logger="uflow")
    assert done(run(data, output, trained(epochs=3))) == {"grating": "already evaluated", "tile": "trained, evaluated"}
    assert "tile.uflow.state after epoch 2" in caplog.text
    grating, tile = (load_model(output / f"models/{name}.uflow") for name in ("grating", "tile"))
    assert all((grating[0][name] == tensor).all() for name, tensor in tile[0].items())  # the same images
    assert not list(output.rglob("*.state"))


def test_a_model_chosen_on_the_test_set_says_so_everywhere(data: Path, output: Path, trained: Make) -> None:
    (data / "grating").rename(data.parent / "grating")
    models = trained(epochs=2, select_on_test=True)
    (result,) = run(data, output, models)
    assert result.record["selected_on_test"]
    assert json.loads((output / "evaluations/tile.json").read_text())["selected_on_test"]
    with pytest.raises(ValueError, match="select_on_test True, not False"):
        run(data, output, trained(epochs=2))
    given = Given(models.path("tile"), uflow.load(models.path("tile"), device="cpu"))
    found = summarise(run(data, output.with_name("given"), given))
    assert found["selected_on_test"]
    assert found["not_fair"].startswith("NOT A FAIR FIGURE: each epoch chosen by pixel AUROC on the test set")
    assert done(run(data, output, models)) == {"tile": "already evaluated"}


def test_a_selection_is_the_pixel_auroc_of_the_latents_alone(detector, dataset: Path) -> None:
    (category,) = find_categories(dataset)
    network, pixels = detector.network, PixelMetrics()
    assert network.memory is not None  # it has no part in the choice
    for sample in category.test:
        evidence = network.evidence(resize_image(read_image(sample.path), network.image_size)[None])
        (latent_map,) = anomaly_map_from_energies(evidence.energies, network.latent_channels, 256)
        pixels.update(latent_map, published_truth(sample.truth((80, 96)), (256, 256), network.image_size))
    with TestSelection(category) as selection:
        alone = TorchNetwork(network.backbone, network.flow, device="cpu")
        assert selection(alone) == pytest.approx(pixels.auroc(), abs=1e-4)  # features are kept in float16
        assert selection(alone) == selection(alone)
    assert selection.digest == digest(category.test_files)


def test_a_selection_is_by_aupro_or_by_miou_of_the_papers_test_too(detector, dataset: Path) -> None:
    (category,) = find_categories(dataset)
    alone = TorchNetwork(detector.network.backbone, detector.network.flow, device="cpu")
    predictor = Predictor(alone, PaperThreshold("exact"))
    found = evaluate_predictor(predictor, category)
    recipe = Recipe(alpha=None, tail="exact", settings=TrainingSettings(precision="float32"))
    for figure in ("pixel_auroc", "aupro", "miou"):
        with TestSelection(category, recipe, figure) as selection:
            assert selection(alone) == pytest.approx(getattr(found, figure), abs=1e-6)
            assert selection.figure == figure
    with pytest.raises(ValueError, match="chosen by one of pixel_auroc, aupro, miou, not 'f1'"):
        TestSelection(category, recipe, "f1")


def test_each_category_may_have_its_own_recipe(data: Path, output: Path) -> None:
    def recipe_of(category: str) -> Recipe:
        recipe = Recipe.paper(category, "efficientnet_lite0", image_size=64)
        return replace(recipe, settings=replace(recipe.settings, epochs=1))

    models = Trained(output / "models", recipe_of, device="cpu", select_on_test=True, select_by="aupro")
    results = run(data, output, models)
    assert done(results) == {"grating": "trained, evaluated", "tile": "trained, evaluated"}
    for result in results:
        settings = result.record["trained_with"]["settings"]
        assert settings == asdict(recipe_of(result.category).settings)
        assert result.record["selected_by"] == "aupro"
    summary = summarise(results)
    assert summary["not_fair"].startswith("NOT A FAIR FIGURE: each epoch chosen by AUPRO on the test set")
    assert done(run(data, output, models)) == {"grating": "already evaluated", "tile": "already evaluated"}
    with pytest.raises(ValueError, match="batch_size 30, not 8"):
        run(data, output, replace(models, recipe=lambda category: recipe_of("nut")))
    with pytest.raises(ValueError, match="was trained with selected_by aupro, not miou"):
        run(data, output, replace(models, select_by="miou"))[0]


def test_a_figure_to_choose_by_is_never_ignored(output: Path) -> None:
    with pytest.raises(ValueError, match=r"select_by aupro .* needs select_on_test \(--select-on-test\)"):
        Trained(output, select_by="aupro")
    with pytest.raises(ValueError, match="chosen by one of pixel_auroc, aupro, miou, not 'f1'"):
        Trained(output, select_on_test=True, select_by="f1")  # type: ignore[arg-type]
    assert Trained(output).select_by == "pixel_auroc"


def test_one_model_for_all_categories(detector, data: Path, output: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "one.uflow")
    given = Given(tmp_path / "one.uflow", detector)
    assert done(run(data, output, given)) == {"grating": "evaluated", "tile": "evaluated"}
    assert done(run(data, output, given)) == {"grating": "already evaluated", "tile": "already evaluated"}
    tiled = Given(tmp_path / "one.uflow", detector, {"tile": True})
    with pytest.raises(ValueError, match="made with tile None, not True: give another --output"):
        run(data, output, tiled)
    run(data, output.with_name("tiled"), tiled)
    with pytest.raises(ValueError, match="made with tile True, not None: give another --output"):
        run(data, output.with_name("tiled"), given)


def test_the_alpha_said_is_that_of_the_last_calibration() -> None:
    record = {**result("tile").record, "trained_with": {"alpha": None}, "alpha": 0.1}
    found = summarise([replace(result("tile"), record=record)])
    assert found["trained_with"]["alpha"] == 0.1


def test_bars_of_a_category_go_when_it_is_done(detector, data: Path, output: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "one.uflow")
    progress = Progress(disable=True)
    bar = progress.add_task("Categories")
    seen = []
    add_task = progress.add_task
    progress.add_task = lambda name, **options: (seen.append(name), add_task(name, **options))[1]  # type: ignore
    run(data, output, Given(tmp_path / "one.uflow", detector), progress=progress)
    assert seen == ["Normal images", "Evaluating"] * 2
    assert progress.task_ids == [bar]


def test_figures_are_drawn_where_they_are_missing(
    detector, data: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uflow.evaluate import figures

    drawn = []

    def write_category(predictor, dataset, evaluation, folder):
        drawn.append((dataset.name, evaluation.protocol, len(evaluation.images), folder.relative_to(output).as_posix()))
        if dataset.name == "tile":
            raise OSError("the disk is full")
        folder.mkdir(parents=True)
        (folder / "curves.png").touch()

    monkeypatch.setattr(figures, "write_category", write_category)
    detector.save(tmp_path / "one.uflow")
    given = Given(tmp_path / "one.uflow", detector)
    run(data, output, given)
    results = run(data, output, given, figures=True)
    assert drawn == [("grating", "paper", 8, "figures/grating"), ("tile", "paper", 8, "figures/tile")]
    assert (results[1].done, results[1].error) == ("already evaluated", "the disk is full")  # its figures stand
    run(data, output, given, figures=True)
    assert [name for name, *_ in drawn] == ["grating", "tile", "tile"]


def test_what_cannot_be_read_is_said(data: Path, output: Path, trained: Make) -> None:
    file = output / "evaluations/tile.json"
    file.parent.mkdir(parents=True)
    for content in ("", '{"kind": ', "[]", "{}"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"tile\.json is no evaluation, or was cut short: delete it"):
            run(data, output, trained())
    file.write_text('{"kind": "uflow evaluation", "version": 9}')
    with pytest.raises(ValueError, match="of version 9, not 1: delete it"):
        run(data, output, trained())
    with pytest.raises(ValueError, match="the category 'a/b' cannot be the name of a file"):
        study.check([Dataset("a/b", [], [])], output, trained(), "paper")


# The summary ----------------------------------------------------------------------------------------------------------


def result(category: str, layout: str = "mvtec", **figures) -> Result:
    """A result with made figures."""
    values = {field: 0.5 for field in FIGURES if not field.endswith("flagged")} | {"best_log_nfa": -2.0} | figures
    flagged = {"good": {"images": 10, "share": 0.1}, "a": {"images": 1, "share": 1.0}, "b": {"images": 3, "share": 0.0}}
    train, test = published.IMAGES.get(category, (30, 8))
    record = {
        "category": category,
        "counts": {"train": train, "test": test},
        "model": f"{category}.uflow",
        "selected_on_test": False,
        "alpha": 0.05,
        "trained_with": {"backbone": "mcait", "alpha": 0.05, "images": category},
        "epochs": 16,
        "training_seconds": 3.0,
        "evaluation": {"protocol": "paper", "flagged": flagged, "images": [], **values},
    }
    return Result(category, layout, record, "evaluated")


def test_published_figures_are_those_of_the_paper() -> None:
    assert tuple(published.MVTEC_AD) == (*published.TEXTURES, *published.OBJECTS) == tuple(published.IMAGES)
    found = summarise([result(name) for name in published.MVTEC_AD])
    textures, objects, whole = found["means"]
    assert [len(mean["categories"]) for mean in found["means"]] == [5, 10, 15]
    means = {"pixel_auroc": 0.9874, "aupro": 0.9519, "miou": 0.5408, "miou_best": 0.5453}  # as printed in the paper
    assert whole["published"] == pytest.approx(means, abs=5.1e-5)
    assert textures["published"]["pixel_auroc"] == pytest.approx((99.42 + 98.49 + 99.59 + 97.54 + 97.49) / 500)
    assert (sum(train for train, _ in published.IMAGES.values()), objects["name"]) == (3629, "objects")
    assert sum(test for _, test in published.IMAGES.values()) == 1725


def test_summary_is_in_the_papers_order_with_its_means() -> None:
    names = ["zebra", "wood", "cable", "apple", "carpet"]
    results = [result(name, pixel_auroc=0.1 * (i + 1)) for i, name in enumerate(names)]
    results.append(Result("bottle", "mvtec", error="bottle/test/broken/1.png has no mask"))
    found = summarise(results)
    assert [row["category"] for row in found["categories"]] == ["carpet", "wood", "bottle", "cable", "apple", "zebra"]
    means = {mean["name"]: mean for mean in found["means"]}
    assert list(means) == ["textures", "objects", "MVTec AD", "all"]
    assert means["textures"]["categories"] == ["carpet", "wood"]
    assert means["textures"]["pixel_auroc"] == pytest.approx((0.5 + 0.2) / 2)
    assert means["objects"]["categories"] == ["cable"]  # bottle failed, here and in the published mean
    assert means["objects"]["published"] == published.MVTEC_AD["cable"]
    assert means["all"]["pixel_auroc"] == pytest.approx(0.3)
    assert means["all"]["published"] == {}  # not all of them have been published
    assert means["all"]["good_flagged"] == pytest.approx(0.1)
    assert found["categories"][0]["defective_flagged"] == pytest.approx(0.25)
    assert found["trained_with"] == {"backbone": "mcait", "alpha": 0.05}
    assert "SPADE" in found["published_methods"]
    assert json.loads(json.dumps(found)) == found


def test_a_mean_needs_the_figure_of_every_category() -> None:
    found = summarise([result("a"), result("b", aupro=None, miou=0.7)])
    (mean,) = found["means"]
    assert (mean["aupro"], mean["miou"]) == (None, pytest.approx(0.6))
    assert found["published_methods"] == {}


def test_published_figures_stand_beside_the_same_data_only() -> None:
    (row,) = summarise([result("tile", layout="folder")])["categories"]
    assert (row["group"], row["published"]) == ("", {})
    other = result("tile")
    other.record["counts"]["train"] = 12
    (note,) = summarise([other, result("wood")])["notes"]
    assert note.startswith("Published figures of another set: MVTec AD has other numbers of images")
    assert note.endswith("(tile, 12 and 117, not 230 and 117).")
    btad = summarise([result(name, layout="btad") for name in ("01", "02", "03")])
    assert btad["means"][0]["published"] == {
        "pixel_auroc": 0.9813,
        "aupro": 0.8179,
        "miou": 0.5482,
        "miou_best": 0.5638,
    }
    assert btad["categories"][0]["published"] == {}
    mri = summarise([result("lgg-mri", layout="lgg-mri")])
    assert mri["means"][0]["published"]["aupro"] == 0.7174


def test_other_protocols_are_noted() -> None:
    native = result("wood")
    native.record["evaluation"]["protocol"] = "native"
    assert "The published figures are at 256 x 256" in summarise([native])["notes"][0]
