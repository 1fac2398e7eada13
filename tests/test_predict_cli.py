"""`uflow predict` in a folder of a user's files: nothing is overwritten, nothing is lost, one bad image is one line."""

import json
import shutil
import tracemalloc
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from test_cli import model, run  # noqa: F401 (fixtures)
from uflow.cli.predict import check_pictures, output_names
from uflow.listing import RESULTS_FILE
from uflow.pictures import ColourScale, map_picture
from uflow.prediction import Prediction, write_prediction

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())
ENDINGS = ("_map.png", "_mask.png", "_overlay.png")


@pytest.fixture
def parts(dataset: Path, tmp_path: Path) -> Path:
    """Three images of the test set."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(dataset / "test/good/00.png", folder / f"{name}.png")
    return folder


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_image_that_cannot_be_read_stops_or_is_skipped(run, model: Path, parts: Path, tmp_path: Path) -> None:  # noqa: F811
    (parts / "b.png").write_bytes((parts / "b.png").read_bytes()[:300])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RESULTS_FILE).write_text("of the run before")

    code, out, err = run("predict", model, parts, "--output", "out")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"uflow: error: cannot read {parts / 'b.png'}: ")
    assert ["error" in line for line in lines(out)] == [False, True]
    assert lines(out)[1].keys() == {"image", "error"}
    assert (tmp_path / "out" / RESULTS_FILE).read_text() == "of the run before"

    code, out, err = run("predict", model, parts, "--output", "out", "--on-error", "skip")
    assert code == 3
    assert "skipped: cannot read" in err
    assert "1 could not be judged" in err
    assert ["error" in line for line in lines(out)] == [False, True, False]
    for line in lines(out):
        jsonschema.validate(line, SCHEMA)
    assert lines((tmp_path / "out" / RESULTS_FILE).read_text()) == lines(out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        RESULTS_FILE, *(f"{name}{ending}" for name in "ac" for ending in ENDINGS)
    }  # fmt: skip
    code, _, err = run("predict", model, parts / "a.png", "--on-error", "ignore")
    assert code == 2
    code, _, err = run("predict", model, parts / "a.png", "--max-pixels", 7000)
    assert (code, "80x96 are 7680 pixels, more than the limit of 7000" in err) == (1, True)


@pytest.fixture(autouse=True)
def usual_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from uflow import images

    monkeypatch.setattr(images, "_max_pixels", images.MAX_PIXELS)


def test_no_file_of_the_user_is_replaced(run, model: Path, parts: Path) -> None:  # noqa: F811
    (parts / "a_mask.png").write_bytes((parts / "b.png").read_bytes())  # the truth of a.png
    before = {path: path.read_bytes() for path in parts.iterdir()}
    for images in ([parts], [parts / "a.png"]):
        code, out, err = run("predict", model, *images, "--output", parts)
        assert (code, out) == (1, "")
        assert f"would replace {parts / 'a_mask.png'}, which no earlier uflow predict wrote" in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in parts.iterdir()} == before


def test_results_below_the_images_stay_results(run, model: Path, parts: Path) -> None:  # noqa: F811
    """And each run, the first and the third, finds the same three images."""
    for images in (parts, parts, f"{parts}/**", parts):
        code, out, err = run("predict", model, images, "--output", parts / "results")
        assert code == 0, err
        assert [Path(str(line["image"])).name for line in lines(out)] == ["a.png", "b.png", "c.png"]
    assert len(list((parts / "results").iterdir())) == 1 + 3 * len(ENDINGS)


def test_names_are_those_given_and_all_distinct(tmp_path: Path) -> None:
    def names(*paths: str) -> list[str]:
        return [name.as_posix() for name in output_names([tmp_path / path for path in paths])]

    assert names("a.png", "a.jpg", "a.png.bmp") == ["a.png", "a.jpg", "a.png.bmp"]
    assert names("a.png", "A.jpg", "b.png") == ["a.png", "A.jpg", "b"]  # a Mac's and Windows' files
    assert names("x/a.png", "y/a.png") == ["x/a", "y/a"]
    (tmp_path / "store").mkdir()
    (tmp_path / "store/1f3a.png").write_bytes(b"")
    for name in ("left.png", "right.png"):  # as DVC and git-annex lay files
        (tmp_path / name).symlink_to(tmp_path / "store/1f3a.png")
    assert names("left.png", "right.png") == ["left", "right"]


def test_pictures_of_an_earlier_run_are_replaced_and_images_never(tmp_path: Path) -> None:
    for name in ("a.png", "out/a_mask.png", "b_mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "out" / RESULTS_FILE).write_text("")
    paths, names = [tmp_path / "a.png"], [Path("a")]
    check_pictures(paths, names, tmp_path / "out")
    check_pictures(paths, names, tmp_path / "new")
    (tmp_path / "link_map.png").symlink_to(tmp_path / "b_mask.png")
    (tmp_path / RESULTS_FILE).write_text("")
    with pytest.raises(ValueError, match=r"would replace .*b_mask\.png, one of the images"):
        check_pictures([tmp_path / "b.png", tmp_path / "b_mask.png"], [Path("b"), Path("b_mask")], tmp_path)
    with pytest.raises(ValueError, match=r"would replace .*link_map\.png, one of the images"):
        check_pictures([tmp_path / "link.png", tmp_path / "b_mask.png"], [Path("link"), Path("c")], tmp_path)


def test_pictures_of_a_large_image_take_few_bytes_a_pixel(tmp_path: Path) -> None:
    """Beside the image and its maps; what Pillow itself takes, 4 a pixel, is not seen here."""
    size, rng = (1500, 2000), np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    values = rng.random(size, np.float32)
    mask = values > 0.9
    prediction = Prediction(1.0, True, values, -values, mask, [], image)
    tracemalloc.start()
    write_prediction(prediction, tmp_path / "part")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / mask.size < 16
    with Image.open(tmp_path / "part_map.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(map_picture(values, ColourScale())))
