"""product.toml: what it says, and what is wrong with one, in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from conftest import call_command
from test_fuzz import JUNK, QUICK, changed, survives
from test_predictor import brightness, noise_pictures
from uflow.connections import Mqtt, Secret, WatchedFolder, Webhook
from uflow.detector import Detector, load
from uflow.images import read_image
from uflow.predictor import Predictor
from uflow.product import Pictures, Product, read_product
from uflow.recipe import Recipe
from uflow.roi import RegionOfInterest
from uflow.schema import write_json

WHOLE = """
name = "bracket, line 2"
model = "models/bracket.uflow"
alpha = 0.02
look_alpha = 0.1
min_area = 12
tile = true
bit_depth = 12
gain = 1.3

[roi]
size = [60, 80]
polygons = [[[4, 4], [76, 4], [76.5, 50], [4, 50]]]
ignore = [[[10, 10], [20, 10], [20, 20]]]

[pictures]
keep_flagged = false
keep_every = 100
days = 30

[watch]
folder = "incoming"
move_to = "judged"
settle_s = 2
results = true

[[webhook]]
url = "https://mes.local/parts?line=2"
only = "flagged"
headers = { "X-Line.1" = "2", "x!" = "" }
token = { env = "MES_TOKEN" }

[[mqtt]]
host = "broker.local"
topic = "line 2/bracket"
qos = 2
tls = true
ca = "ca.pem"
user = "uflow"
password = { file = "mqtt.password" }
timeout_s = 2.5
"""
LEAST = 'name = "a"\nmodel = "a.uflow"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "product.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_all_of_a_product(tmp_path: Path) -> None:
    found = read_product(write(tmp_path, WHOLE))

    square = ((4.0, 4.0), (76.0, 4.0), (76.5, 50.0), (4.0, 50.0))
    roi = RegionOfInterest((60, 80), polygons=(square,), ignore=(((10.0, 10.0), (20.0, 10.0), (20.0, 20.0)),))
    assert found == Product(
        "bracket, line 2",
        tmp_path / "models/bracket.uflow",
        alpha=0.02,
        look_alpha=0.1,
        roi=roi,
        min_area=12,
        tile=True,
        bit_depth=12,
        gain=1.3,
        pictures=Pictures(keep_flagged=False, keep_every=100, days=30),
        watch=WatchedFolder(tmp_path / "incoming", tmp_path / "judged", tmp_path / "judged/failed", 2.0, results=True),
        sinks=(
            Webhook(
                "https://mes.local/parts?line=2",
                only="flagged",
                headers={"X-Line.1": "2", "x!": ""},
                token=Secret(env="MES_TOKEN"),
            ),
            Mqtt(
                "broker.local",
                "line 2/bracket",
                qos=2,
                tls=True,
                ca=tmp_path / "ca.pem",
                user="uflow",
                password=Secret(file=tmp_path / "mqtt.password"),
                timeout_s=2.5,
            ),
        ),
    )
    assert [sink.name for sink in found.sinks] == ["webhook", "mqtt"]
    assert "mes.local" not in repr(found), "an address can hold a secret"


def test_all_but_name_and_model_may_be_left_out(tmp_path: Path) -> None:
    assert read_product(write(tmp_path, LEAST)) == Product("a", tmp_path / "a.uflow")


def test_the_tables_of_the_guide_are_read(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs/guide/service.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    watch, sinks = (block for block in blocks if "[watch]" in block or "[[mqtt]]" in block)
    found = read_product(write(tmp_path, LEAST + watch + sinks))
    assert found.watch is not None
    assert len(found.sinks) == 2


@pytest.mark.parametrize("text", [WHOLE, LEAST])
def test_what_is_written_is_read_back(tmp_path: Path, text: str) -> None:
    found = read_product(write(tmp_path, text))
    assert read_product(write(tmp_path, found.to_toml(tmp_path))) == found
    moved = replace(found, name='a "b" \\ ü', model=Path("/elsewhere/b"))
    assert read_product(write(tmp_path, moved.to_toml(tmp_path))) == moved


def test_the_region_of_interest_may_be_a_picture(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:30] = True
    Image.fromarray(mask).save(tmp_path / "roi.png")
    found = read_product(
        write(tmp_path, LEAST + "[roi]\nmask = 'roi.png'\nignore = [[[8, 5], [12, 5], [12, 9], [8, 9]]]")
    )

    mask[5:9, 8:12] = False
    assert found.roi is not None
    assert np.array_equal(found.roi.pixels((30, 40)), mask)
    assert read_product(write(tmp_path, found.to_toml(tmp_path))) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ('name = "a"', "has no 'model'"),
        (LEAST + "alpah = 0.1", "has an unknown entry 'alpah'"),
        (LEAST + 'alpha = "0.1"', "alpha should be a number, found '0.1'"),
        (LEAST + "alpha = 1.5", "alpha is a probability between 0 and 1, got 1.5"),
        (LEAST + "alpha = nan", "alpha should be a finite number, found nan"),
        (LEAST + "alpha = 0.1\nlook_alpha = 0.05", "look_alpha is a probability between alpha 0.1 and 1, got 0.05"),
        (LEAST + "tile = 1", "tile should be true or false, found 1"),
        (LEAST + "bit_depth = 7", "bit_depth is a number of bits from 8 to 16, got 7"),
        (
            LEAST + "gain = 0",
            "gain is how many times brighter pictures are than a model expects, from 0.25",
        ),
        (LEAST + "gain = 4.5", "from 0.25 to 4, got 4.5"),
        (LEAST + "gain = '2'", "gain should be a number, found '2'"),
        (LEAST + "min_area = -1", "min_area is a number of pixels, got -1"),
        (LEAST + "min_area = 1.5", "min_area should be a whole number, found 1.5"),
        (LEAST.replace('"a"', '" "'), "name is a text of one line, at most 100 characters, got ' '"),
        (LEAST + "pictures = 3", "pictures should be an object, found 3"),
        (LEAST + "[pictures]\nkeep = 3", "pictures has an unknown entry 'keep'"),
        (LEAST + "[pictures]\nkeep_every = -3", "keep_every is a number of parts, or 0 for none, got -3"),
        (LEAST + "[pictures]\ndays = 0", "days must be at least 1, got 0"),
        (LEAST + "[roi]\npolygons = [[[1, 1], [2, 2], [1, 2]]]", "[roi] has no 'size'"),
        (LEAST + "[roi]\nsize = [9]", "roi: size should be a list of 2, found [9]"),
        (LEAST + "[roi]\nsize = [9, 0]", "size is (height, width) of an image"),
        (LEAST + "[roi]\nsize = [99999, 99999]", "size is (height, width) of an image of at most"),
        (LEAST + "[roi]\nsize = [9, 9]\npolygons = [[[1, 1], [2, 2]]]", "a polygon has at least 3 corners"),
        (LEAST + "[roi]\nsize = [9, 9]\npolygons = [[[1, 1], [2], [2, 2]]]", "should be a list of 2, found [2]"),
        (LEAST + "[roi]\nsize = [9, 9]\npolygons = [[[1, 1], [1e300, 1], [2, 2]]]", "corners of polygons are"),
        (LEAST + "[roi]\nsize = [9, 9]\npolygons = [[[20, 1], [30, 1], [30, 8]]]", "has no pixel inside"),
        (LEAST + "[roi]\nsize = [9, 9]\nruns = [0, 9]", "the runs of the mask are 9 pixels"),
        (LEAST + "[roi]\nmask = 'none.png'", "no such file"),
        (LEAST + "[roi]\nmask = 'product.toml'", "its content is no known image format"),
        (LEAST + "[roi]\nmask = '.'", "is a folder"),
        (LEAST + "[roi]\nmask = 'a.png'\npolygons = []", "[roi] has a mask and 'polygons': one of them"),
        (LEAST + "[watch]", "watch has no 'folder'"),
        (LEAST + "[watch]\nfolder = ''", "folder is a path, got ''"),
        (LEAST + "[watch]\nfolder = 'a'\nsettle_s = 0", "settle_s is a number of seconds up to 3600, got 0"),
        (LEAST + "[watch]\nfolder = 'a'\nmove_to = './b/../a'", "cannot move to where they are"),
        (LEAST + "[webhook]\nurl = 'http://a'", "webhook should be a list"),
        (LEAST + "[[webhook]]\nurl = 'ftp://a/b'", "url is not one like https://host/path"),
        (LEAST + "[[webhook]]\nurl = 'http://a:b/'", "url is not one like https://host/path"),
        (LEAST + "[[webhook]]\nurl = 'http://me:word@a/'", "a password in it: name the password as token"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\nheaders = { 'a b' = '' }", "headers cannot have 'a b'"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\nheaders = { Host = 'b' }", "headers cannot have 'Host'"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\nheaders = { a = \"b\\nc\" }", "header 'a' is not one line"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\nonly = 'bad'", "only should be one of 'all', 'flagged', found 'bad'"),
        (LEAST.replace('"a"', '".."'), "name is a text of one line, at most 100 characters, got '..'"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\ntoken = 'b'", "the token of [[webhook]] stands in no product file"),
        (LEAST + "[mqtt]\npassword = 'hunter2'", "the password of [[mqtt]] stands in no product file"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\ntoken = {}", "a secret is { env ="),
        (LEAST + "[[webhook]]\nurl = 'http://a'\n[[webhook]]\nurl = 'http://b'", "two sinks are called 'webhook'"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\nname = 'b/c'", "name is a text of one line without /, got 'b/c'"),
        (LEAST + "[[webhook]]\nurl = 'http://a'\ntimeout_s = 1e9", "timeout_s is a number of seconds up to 300"),
        (LEAST + "[[mqtt]]\nhost = 'a'", "has no 'topic'"),
        (LEAST + "[[mqtt]]\nhost = 'mqtt://a'\ntopic = 'b'", "host is a name or an address, got 'mqtt://a'"),
        (LEAST + "[[mqtt]]\nhost = 'a'\ntopic = 'b/#'", "topic is a text without + and #, got 'b/#'"),
        (LEAST + "[[mqtt]]\nhost = 'a'\ntopic = 'b'\nport = 0", "port is a number from 1 to 65535, got 0"),
        (LEAST + "[[mqtt]]\nhost = 'a'\ntopic = 'b'\nqos = 3", "qos should be one of 0, 1, 2, found 3"),
        (LEAST + "[[mqtt]]\nhost = 'a'\ntopic = 'b'\nca = 'c'", "ca is of use with tls = true only"),
        (LEAST + "[[mqtt]]\nhost = 'a'\ntopic = 'b'\npassword = { env = 'c' }", "a password needs a user"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_product(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no product file"):
        read_product(tmp_path / "product.toml")


ENTRIES = (
    "name",
    "model",
    "alpha",
    "look_alpha",
    "min_area",
    "tile",
    "bit_depth",
    "gain",
    "roi",
    "pictures",
    "watch",
    "webhook",
    "mqtt",
    "other",
)
ROI_ENTRIES = st.dictionaries(st.sampled_from(["size", "polygons", "ignore", "runs", "mask"]), JUNK, max_size=3)

SINK_NAMES = [
    "url",
    "host",
    "topic",
    "headers",
    "token",
    "password",
    "ca",
    "qos",
    "port",
    "timeout_s",
    "folder",
    "name",
]
SINK_ENTRIES = st.dictionaries(st.sampled_from(SINK_NAMES), st.one_of(JUNK, st.dictionaries(st.text(max_size=3), JUNK)))
TABLES = st.one_of(JUNK, ROI_ENTRIES, SINK_ENTRIES, st.lists(SINK_ENTRIES, max_size=2))


@QUICK
@given(junk=st.dictionaries(st.sampled_from(ENTRIES), TABLES, min_size=1, max_size=3))
def test_entries_that_a_stranger_changed(junk: dict[str, object], tmp_path: Path) -> None:
    entries = {"name": "a", "model": "a.uflow", **junk}
    try:
        lines = [f"{name} = {inline_toml(value)}" for name, value in entries.items() if value is not None]
    except (ValueError, TypeError):
        return  # no TOML holds it
    path = write(tmp_path, "\n".join(lines).encode("utf-8", "replace").decode())
    survives(lambda: read_product(path), tmp_path)


@QUICK
@given(data=st.data())
def test_a_region_in_a_models_file_that_a_stranger_changed(data: st.DataObject, tmp_path: Path) -> None:
    roi = RegionOfInterest((32, 32), polygons=(((0, 0), (16, 0), (16, 32)),))
    entries = data.draw(changed(roi.to_dict()))
    sides = entries.get("size")
    if isinstance(sides, list) and all(isinstance(side, int) and side > 0 for side in sides):
        assume(math.prod(sides) < 1 << 24)  # as large an image would take more than what is allowed here
    content = {**brightness().to_dict(), "roi": entries}
    survives(lambda: Predictor.from_dict(brightness().network, content), tmp_path)


def inline_toml(value: object) -> str:
    """A value on one line; tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_json(str(k))} = {inline_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline_toml, value))}]"
    return write_json(value)


@QUICK
@given(content=st.binary(max_size=200), cut=st.integers(0, len(WHOLE)))
def test_bytes_that_are_no_toml(content: bytes, cut: int, tmp_path: Path) -> None:
    path = tmp_path / "product.toml"
    path.write_bytes(WHOLE.encode()[:cut] + content)
    survives(lambda: read_product(path), tmp_path)


# What a product asks of a model ---------------------------------------------------------------------------------------


def product(**asked: Any) -> Product:
    return Product("a", Path("a.uflow"), **asked)


def test_a_predictor_judges_as_the_product_asks() -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(30), alpha=0.1)
    found = product(alpha=0.2, look_alpha=0.4, min_area=9, tile=True, bit_depth=12, gain=2).apply(predictor)
    assert (found.threshold.alpha, found.threshold.look_alpha) == (0.2, 0.4)
    assert (found.min_area, found.tile, found.bit_depth, found.gain) == (9, True, 12, 2)
    assert (predictor.threshold.alpha, predictor.min_area, predictor.tile, predictor.bit_depth) == (0.1, 0, False, 16)
    assert predictor.gain == 1
    unchanged = product().apply(predictor)
    assert (unchanged.threshold, unchanged.tile, unchanged.bit_depth) == (predictor.threshold, False, 16)
    assert product().apply(found).gain == 2, "as the model has it"


def test_an_alpha_needs_a_calibration() -> None:
    with pytest.raises(ValueError, match="calibrate on good images"):
        product(alpha=0.1).apply(brightness())


def test_a_region_of_interest_that_the_model_has_not_learnt_is_refused() -> None:
    roi = RegionOfInterest((32, 32), polygons=(((0, 0), (16, 0), (16, 16)),))
    with pytest.raises(ValueError, match=r"a\.uflow has not learnt the region of interest of 'a': train it"):
        product(roi=roi).apply(brightness())
    whole = RegionOfInterest((32, 32))
    assert product(roi=whole).apply(brightness()).roi is None


def test_regions_below_the_smallest_area_are_not_detected() -> None:
    predictor = brightness(tile=True)
    rng = np.random.default_rng(0)
    predictor.calibrate(list(rng.integers(0, 60, (30, 96, 96, 3), np.uint8)), alpha=0.1, look_alpha=0.4)
    image = rng.integers(0, 60, (96, 96, 3), np.uint8)
    image[8:16, 8:16], image[48:72, 48:72] = 250, 250
    every = predictor.predict(image)
    small, large = sorted(region.area for region in every.regions)

    found = product(min_area=small + 1).apply(predictor).predict(image)
    assert [region.area for region in found.regions] == [large]
    assert found.mask.sum() == large
    np.testing.assert_array_equal(found.mask, found.log_nfa < 0)
    none = product(min_area=large + 1).apply(predictor).predict(image)
    assert not none.is_anomalous
    assert none.p_value > 0.1
    assert none.verdict == "look"


# Commands -------------------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]
ROI = "[roi]\nsize = [80, 96]\npolygons = [[[0, 0], [50, 0], [50, 80], [0, 80]]]\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command in an empty folder; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    return partial(call_command, monkeypatch, capsys)


def test_train_asks_for_what_the_file_says_and_the_command_line_wins(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def fit(images: str, recipe: Recipe, *, state_file: Path, **options: Any) -> Any:
        asked.update(recipe=recipe, state_file=state_file)
        return SimpleNamespace(history=[], save=lambda path: Path(path).touch())

    monkeypatch.setattr(Detector, "fit_recipe", fit)
    text = LEAST + "alpha = 0.02\nlook_alpha = 0.1\ntile = true\nbit_depth = 12\ngain = 2\n" + ROI
    code, out, err = run("train", "parts", "--product", write(tmp_path, text), "--alpha", 0.03)
    assert code == 0, err
    assert out.rstrip().endswith(f"Next: uflow predict --product {tmp_path / 'product.toml'} IMAGES")
    roi = read_product(tmp_path / "product.toml").roi
    assert asked["recipe"] == Recipe(alpha=0.03, look_alpha=0.1, tile=True, bit_depth=12, roi=roi, gain=2)
    assert (tmp_path / "a.uflow").exists()
    code, out, err = run("train", "parts", "--product", "product.toml", "--no-tile", "--output", "b.uflow")
    assert code == 0, err
    assert out.endswith("Next: uflow predict b.uflow IMAGES\n")
    assert asked["recipe"] == Recipe(alpha=0.02, look_alpha=0.1, bit_depth=12, roi=roi, gain=2)
    assert (tmp_path / "b.uflow").exists()
    (tmp_path / "options.toml").write_text("[train]\nalpha = 0.04\n")
    files = (("--product", "product.toml"), ("--config", "options.toml"))
    for first, second in (files, files[::-1]):
        run("train", "parts", *first, *second)
        assert asked["recipe"].alpha == 0.04


def test_predict_and_calibrate_take_the_products_model(
    run: Run, detector: Detector, dataset: Path, tmp_path: Path
) -> None:
    detector.save(tmp_path / "a.uflow")
    write(tmp_path, LEAST + "alpha = 0.3\nmin_area = 4\n")
    code, out, err = run("predict", "--product", "product.toml", dataset / "test/square", dataset / "test/good/00.png")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["alpha"] for line in lines] == [0.3] * 5
    assert any(line["regions"] for line in lines)

    write(tmp_path, LEAST + "min_area = 100000\n")
    code, out, _ = run("predict", "--product", "product.toml", dataset / "test/square", "--alpha", 0.4)
    assert [json.loads(line)["regions"] for line in out.splitlines()] == [[]] * 4
    assert json.loads(out.splitlines()[0])["alpha"] == 0.4

    write(tmp_path, LEAST + ROI)
    code, _, err = run("predict", "--product", "product.toml", dataset / "test/square")
    assert code == 1
    assert (
        "uflow: error: a.uflow has not learnt the region of interest of 'a': train it on that (uflow train --product)"
        in err
    )
    code, out, err = run("calibrate", "--product", "product.toml", dataset / "test/good", "--alpha", 0.25)
    assert code == 0, err
    assert "Wrote a.uflow: calibrated for alpha 0.25" in out
    code, out, err = run("predict", "--product", "product.toml", dataset / "test/square/00.png")
    assert code == 0, err
    assert json.loads(out)["alpha"] == 0.25


def test_good_parts_that_were_flagged_join_the_products_model(
    run: Run, detector: Detector, dataset: Path, tmp_path: Path
) -> None:
    """As the service's page teaches them: read as the product's images are, into the same file."""
    teaching = pytest.importorskip("uflow.serve.teaching", reason="needs the extra serve")
    detector.save(tmp_path / "a.uflow")
    detector.save(tmp_path / "b.uflow")
    write(tmp_path, LEAST + "alpha = 0.3\ngain = 0.5\n")
    parts = [dataset / "test/square/00.png", dataset / "test/square/01.png"]
    code, out, err = run("add-good", "--product", "product.toml", *parts)
    assert code == 0, err
    assert "Wrote a.uflow: 2 good images joined its memory and its calibration" in out
    taught = replace(read_product(tmp_path / "product.toml"), model=tmp_path / "b.uflow")
    teaching.teach(taught, parts, "cpu")
    (found, wanted) = (load(tmp_path / name, device="cpu") for name in ("a.uflow", "b.uflow"))
    assert found.predictor.gain == wanted.predictor.gain == 0.5
    assert found.threshold == wanted.threshold
    assert [each.name for each in found.threshold.added] == ["00.png", "01.png"]
    code, _, err = run("add-good", "--product", "product.toml", parts[0], "--output", "c.uflow")
    assert code == 0, err
    assert (tmp_path / "c.uflow").exists()
    assert (tmp_path / "a.uflow").stat().st_mtime < (tmp_path / "c.uflow").stat().st_mtime


def test_pictures_of_another_gain_are_judged_and_calibrated_on_as_before(
    run: Run, detector: Detector, dataset: Path, tmp_path: Path
) -> None:
    for name in ("good", "square"):
        (tmp_path / name).mkdir()
        for path in (dataset / "test" / name).iterdir():
            darker = read_image(path) // 4 * 2  # even, so that twice as much is itself half as much again
            Image.fromarray(darker).save(tmp_path / name / path.name)
            (tmp_path / f"{name}_dark").mkdir(exist_ok=True)
            Image.fromarray(darker // 2).save(tmp_path / f"{name}_dark" / path.name)
    detector.save(tmp_path / "a.uflow")
    write(tmp_path, LEAST)

    def scores(folder: str) -> list[float]:
        code, out, err = run("predict", "--product", "product.toml", folder)
        assert code == 0, err
        return [json.loads(line)["score"] for line in out.splitlines()]

    wanted, dark = scores("square"), scores("square_dark")
    assert wanted != dark
    write(tmp_path, LEAST + "gain = 0.5\n")
    # Maps do not depend on which images pass through the network together, but for float32 rounding.
    assert scores("square_dark") == pytest.approx(wanted, rel=1e-5)
    code, _, err = run("calibrate", "--product", "product.toml", "good_dark", "--alpha", 0.25)
    assert code == 0, err
    assert load(tmp_path / "a.uflow", device="cpu").predictor.gain == 0.5
    detector.save(tmp_path / "b.uflow")
    run("calibrate", "b.uflow", "good", "--alpha", 0.25, "--output", "b.uflow")
    found, same = (load(tmp_path / name, device="cpu").threshold for name in ("a.uflow", "b.uflow"))
    assert found.minima == pytest.approx(same.minima, abs=1e-4)
    assert found.map_maxima == pytest.approx(same.map_maxima, rel=1e-5)
    assert found.weights.latents == pytest.approx(same.weights.latents, rel=1e-5)


def test_what_is_wrong_with_a_product_is_one_line_of_the_command(run: Run, tmp_path: Path) -> None:
    write(tmp_path, LEAST + "alpah = 0.1\n")
    for command in ("train", "predict", "calibrate", "add-good"):
        code, out, err = run(command, "--product", "product.toml", "parts")
        assert (code, out, err) == (1, "", "uflow: error: product.toml has an unknown entry 'alpah'\n")
    code, _, err = run("predict", "--product", "none.toml", "parts")
    assert (code, err) == (1, "uflow: error: there is no product file none.toml\n")
    write(tmp_path, LEAST)
    code, _, err = run("predict", "--product", "product.toml")
    assert (code, err) == (2, "uflow: error: the model is that of product.toml, and there are no images: name them\n")


def test_a_password_in_the_file_is_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + '[[mqtt]]\nhost = "a"\ntopic = "b"\nuser = "c"\npassword = "hunter2"\n')
    with pytest.raises(ValueError, match="password") as error:
        read_product(path)
    assert "hunter2" not in str(error.value)


def test_a_file_of_an_editor_of_windows_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_product(path).model == tmp_path / "a.uflow"
