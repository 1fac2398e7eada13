"""The service's pages in a real browser, of a service that runs: what they show, keep and save."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
from PIL import Image

from conftest import wait_for
from serving import defective_part, good_part, png, result, serve_here, write_product
from uflow import Detector, load
from uflow.product import Product, read_product
from uflow.serve.parts import Outcome
from uflow.serve.recent import Recent
from uflow.serve.security import Tokens
from uflow.serve.service import Service
from uflow.serve.shown import parse_clock, shift_start
from uflow.serve.teaching import teach

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
pytest.importorskip("onnxruntime")
playwright.expect.set_options(timeout=20_000)  # ms, as on a machine that does much else

BAD_NAME = "<img src=x onerror=alert(1)>\"'</script>"
LAMP = "lamp & <b>co?#"  # a product's name
SLIDE = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
NOT_OK = re.compile(r"Failed to load resource: the server responded with a status of (4\d\d)")


@dataclass
class Line:
    """A service in this process, with a product of its own model and one with a name that needs escaping."""

    service: Service
    client: httpx2.Client
    file: Path

    def send(self, content: bytes, name: str = "part", product: str = "tile") -> int:
        path = f"/v1/products/{quote(product, safe='')}/predict"
        answer = self.client.post(path, content=content, params={"name": name})
        assert "uflow-part" in answer.headers, answer.text
        return int(answer.headers["uflow-part"])

    def add(self, name: str, verdict: str, p_value: float) -> int:
        """A part of which only the numbers count."""
        part = self.service.store.accept("tile", name, b"", ".png")
        line = json.dumps({"size": [80, 96], "regions": []})
        self.service.store.settle(Outcome(part.id, "judged", line, verdict, p_value, 0.1, keep_picture=False))  # type: ignore[arg-type]
        return part.id


@pytest.fixture
def line(served_model: Path, tmp_path: Path) -> Iterator[Line]:
    shutil.copytree(served_model, tmp_path / "model")
    file = write_product(tmp_path / "products", "tile", tmp_path / "model", "look_alpha = 0.5\n")
    lamp = write_product(tmp_path / "products", "lamp", tmp_path / "model")
    lamp.write_text(lamp.read_text().replace('"lamp"', json.dumps(LAMP)))
    service = Service([file, lamp], tmp_path / "data", poll_s=0.1)
    with serve_here(service) as client:
        yield Line(service, client, file)


class Opened:
    """Opens pages; what they ask for and say is kept."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.asked: list[str] = []
        self.said: list[str] = []

    def __call__(self, client: httpx2.Client, path: str, **options: Any) -> Any:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.goto(str(client.base_url).rstrip("/") + path)
        ready(page)
        return page

    def refused(self) -> list[str]:
        """The status of each answer that was none, and forget them."""
        found = [match[1] for text in self.said if (match := NOT_OK.match(text))]
        self.said = [text for text in self.said if not NOT_OK.match(text)]
        return found


@pytest.fixture
def open_page(browser: Any) -> Iterator[Opened]:
    """Opens pages; at the end, they must have asked nobody else for anything, and said nothing on the console."""
    opened = Opened(browser)
    yield opened
    for context in opened.contexts:
        context.close()
    assert [url for url in opened.asked if not url.startswith(("http://127.0.0.1:", "data:"))] == []
    assert opened.said == []


def ready(page: Any) -> None:
    page.wait_for_selector("html[data-ready]", state="attached")


def go(page: Any, act: Callable[[], None]) -> None:
    """Do what leads to another page, and wait for that."""
    with page.expect_navigation():
        act()
    ready(page)


# The live view --------------------------------------------------------------------------------------------------------


def test_the_live_view_shows_what_comes(line: Line, open_page: Opened) -> None:
    page = open_page(line.client, "/products/tile")
    assert page.inner_text("#none") == "No part has come yet."
    line.send(defective_part(), "bad one")
    tile = page.locator(".tile").first
    playwright.expect(tile.locator(".name")).to_have_text("bad one")
    playwright.expect(tile).to_have_attribute("data-type", "reject")  # it may have been seen while it was judged
    assert tile.locator("path.line.found").get_attribute("d").startswith("M")
    assert tile.locator(".photo").evaluate("e => e.decode().then(() => e.naturalWidth)") == 96
    playwright.expect(page.locator("#latest .verdict")).to_have_text("Reject")
    line.send(good_part(), "fine one")
    playwright.expect(page.locator("#latest .name")).to_have_text("fine one")
    playwright.expect(page.locator("#count-reject")).to_have_text("1")
    # Good parts' images are not kept on the disk, and are seen all the same as long as they are among the last.
    playwright.expect(page.locator(".tile .photo")).to_have_count(2)
    playwright.expect(page.locator("#chart circle")).to_have_count(2)
    line.client.post("/v1/products/tile/predict", content=good_part()[:2000])
    playwright.expect(page.locator("#count-failed")).to_have_text("1")
    playwright.expect(page.locator("#latest .verdict")).to_have_text("Not judged")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    go(page, lambda: page.keyboard.press("Enter"))
    assert page.inner_text("#large-name") == "fine one"


def test_the_monitors_alarm_is_drawn(line: Line, open_page: Opened) -> None:
    judge = line.service.judges["tile"]
    watch, least = judge.watch, 1 / (judge.live.predictor.threshold.calibration_images + 1)
    for seed in range(60):
        if not watch.alarm:
            line.add(f"{seed}", "reject", least)
            watch.add(least)
    line.add("after it", "reject", least)
    watch.add(least)
    assert watch.alarm
    page = open_page(line.client, "/products/tile")
    assert "The line has changed: more parts are flagged, most likely since part 1" in page.inner_text("#alarm-text")
    at = float(page.locator("#chart line.alarm").get_attribute("x1"))
    part = watch.to_dict()["alarm"]["part"]
    assert at == pytest.approx(float(page.locator("#chart circle").nth(part - 1).get_attribute("cx")), abs=0.1)
    page.click("#restart")
    playwright.expect(page.locator("#alarm")).to_be_hidden()
    assert watch.to_dict()["parts"] == 0


def test_what_is_wrong_is_said(line: Line, open_page: Opened) -> None:
    page = open_page(line.client, "/products/tile")
    assert not page.locator("#trouble").is_visible()
    (line.file.parent.parent / "model/model.json").write_text("{}")
    playwright.expect(page.locator("#trouble")).to_contain_text("model tile: ")
    assert str(line.file.parent.parent) not in page.inner_text("#trouble")
    page.route("**/live.json*", lambda route: route.abort())
    playwright.expect(page.locator("#trouble")).to_contain_text("does not answer")
    assert page.context.pages[0].locator(".tile").count() == 0
    open_page.said = [text for text in open_page.said if "ERR_FAILED" not in text]


def test_names_are_text_everywhere(line: Line, open_page: Opened) -> None:
    number = line.send(defective_part(), BAD_NAME, LAMP)
    page = open_page(line.client, "/")
    assert page.locator(".product h2").all_inner_texts() == ["tile", LAMP]
    go(page, lambda: page.click(f".product:has-text('{LAMP[:4]}')"))
    assert page.inner_text("h1") == LAMP
    playwright.expect(page.locator(".tile .name")).to_have_text(BAD_NAME)
    go(page, lambda: page.click("text=History"))
    assert page.inner_text(".parts .go") == BAD_NAME
    go(page, lambda: page.click(".parts .go"))
    assert page.url.endswith(f"/parts/{number}")
    assert page.inner_text("#large-name") == BAD_NAME
    assert page.title() == f"{BAD_NAME} · {LAMP}"
    go(page, lambda: page.click("text=Region"))
    assert BAD_NAME in page.inner_text(".foot")
    assert page.locator("img[src=x]").count() == 0


# History --------------------------------------------------------------------------------------------------------------


def test_history_is_filtered_and_turned(line: Line, open_page: Opened) -> None:
    numbers = [line.add(f"lot {i // 30} part {i:02}", "reject" if i % 3 == 0 else "good", 0.5) for i in range(63)]
    line.service.store.set_answer(numbers[0], "good", "anna")
    names = ".parts .go"
    page = open_page(line.client, "/products/tile/history")
    first = page.locator(names).all_inner_texts()
    assert first == [f"lot {i // 30} part {i:02}" for i in range(62, 12, -1)]
    go(page, lambda: page.click("#older"))
    assert page.locator(names).all_inner_texts() == [f"lot 0 part {i:02}" for i in range(12, -1, -1)]
    assert page.locator("#older").count() == 0
    go(page, lambda: page.click("#newest"))
    assert page.locator(names).all_inner_texts() == first
    page.select_option("#verdict", "reject")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("lot 1*")
    go(page, lambda: page.keyboard.press("Enter"))
    assert page.locator(names).all_inner_texts() == [f"lot 1 part {i:02}" for i in range(57, 29, -3)]
    assert (page.input_value("#verdict"), page.input_value("#name")) == ("reject", "lot 1*")
    # Arrows in the large view stay among what was chosen.
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("ArrowDown")
    go(page, lambda: page.keyboard.press("Enter"))
    assert page.inner_text("#large-name") == "lot 1 part 57"
    go(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.inner_text("#large-name") == "lot 1 part 54"
    go(page, lambda: page.keyboard.press("ArrowLeft"))
    go(page, lambda: page.keyboard.press("Escape"))
    assert (page.input_value("#verdict"), page.input_value("#name")) == ("reject", "lot 1*")
    go(page, lambda: page.click("#clear"))
    page.select_option("#answer", "good")
    go(page, lambda: page.click("text=Show"))
    assert page.locator(names).all_inner_texts() == ["lot 0 part 00"]
    page.fill("#until", "2020-01-01T00:00")
    go(page, lambda: page.click("text=Show"))
    assert page.inner_text(".empty") == "No part is like that."


def test_questions_that_make_no_sense_are_refused(line: Line) -> None:
    for query in ("verdict=x", "answer=x", "since=x", "since=999999-01-01", "before=x"):
        answer = line.client.get(f"/products/tile/history?{query}")
        assert answer.status_code == 400, query
        assert "Traceback" not in answer.text
    assert line.client.get("/products/none").status_code == 404
    assert line.client.get("/parts/99").status_code == 404
    assert line.client.get(f"/parts/{10**30}").status_code == 404
    for path in ("/static/..%2Fpages.py", "/static/../pages.py", "/static/nothing.js"):
        assert line.client.get(path).status_code == 404
    for text in ("x", "7", "nan", "-1"):
        assert line.client.get("/products/tile/flagged.json", params={"alpha": text}).status_code == 400
    assert line.client.get("/products/tile/live.json?shift=99:00").status_code == 400


# One part -------------------------------------------------------------------------------------------------------------


def test_answers_are_kept(line: Line, open_page: Opened) -> None:
    bad, good = line.send(defective_part()), line.send(good_part())
    store = line.service.store
    page = open_page(line.client, f"/parts/{bad}")
    page.click("text=Good after all")
    playwright.expect(page.locator("#said")).to_have_text("Kept: good after all.")
    assert store.part(bad).answer == "good"
    page.keyboard.press("d")
    playwright.expect(page.locator("#said")).to_have_text("Kept: was defective.")
    assert store.part(bad).answer == "defective"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["Was defective"]
    page.reload()
    ready(page)
    page.keyboard.press("d")
    playwright.expect(page.locator("#said")).to_have_text("The answer is taken back.")
    assert store.part(bad).answer is None
    page = open_page(line.client, f"/parts/{good}")
    assert page.locator("[data-answer=good]").is_disabled()
    page.keyboard.press("d")
    playwright.expect(page.locator("#said")).to_have_text("Kept: was defective.")
    assert line.client.post(f"/v1/parts/{good}/answer", json={"answer": "good"}).status_code == 409
    assert line.client.post(f"/v1/parts/{good}/answer", json={"answer": "x"}).status_code == 400
    assert line.client.post(f"/v1/parts/{good}/answer", content=bytes(300_000)).status_code == 413


def test_a_part_is_shown_as_in_the_report(line: Line, open_page: Opened) -> None:
    number = line.send(defective_part())
    page = open_page(line.client, f"/parts/{number}")
    region = json.loads(line.service.store.part(number).line)["regions"][0]
    assert page.locator("#regions td").nth(2).inner_text() == str(region["area"])
    found = page.locator("#stage path.line.found")
    assert found.is_visible()
    page.keyboard.press("o")
    assert not found.is_visible()
    assert page.locator("#stage .map").count() == 0
    page.keyboard.press("m")
    picture = page.locator("#stage .map")
    assert picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.naturalHeight])") == [96, 80]
    assert picture.evaluate("e => Number(getComputedStyle(e).opacity)") == pytest.approx(0.6)
    playwright.expect(page.locator("#map-words")).to_have_text("")
    layers = page.locator("#stage .layers")
    before = layers.bounding_box()["width"]
    page.keyboard.press("+")
    assert layers.bounding_box()["width"] == pytest.approx(1.5 * before, rel=0.01)
    assert line.service.store.counts("tile", 0).reject == 1  # the map's judgement is no part of the line


def test_pictures_are_bounded_and_by_number_alone(line: Line) -> None:
    big = np.zeros((1500, 1800, 3), np.uint8)
    part = line.send(png(big))
    for size, longer in (("small", 320), ("large", 1600), ("x", 320)):
        answer = line.client.get(f"/v1/parts/{part}/picture?size={size}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(answer.content)).size) == longer
    cut = line.client.post("/v1/products/tile/predict", content=good_part()[:2000]).headers["uflow-part"]
    answer = line.client.get(f"/v1/parts/{cut}/picture")
    assert (answer.status_code, answer.json()["error"][:25]) == (404, "the image cannot be shown")
    assert line.client.get(f"/v1/parts/{cut}/map").status_code == 409
    old = line.add("old", "good", 0.5)
    for what in ("picture", "map"):
        assert line.client.get(f"/v1/parts/{old}/{what}").status_code == 404
    assert line.client.get("/v1/parts/..%2F..%2Fetc/picture").status_code == 404


def test_the_last_images_are_held_in_bounds() -> None:
    recent = Recent(count=3, size=10)
    for part in range(5):
        recent.put(part, b"abc")
    assert recent.parts() == [4, 3, 2]
    recent.put(5, bytes(8))
    assert recent.parts() == [5]
    recent.put(6, bytes(11))
    assert recent.parts() == []
    assert recent.find(6) is None


# Teaching -------------------------------------------------------------------------------------------------------------


def test_parts_that_were_good_after_all_are_taught(line: Line, open_page: Opened) -> None:
    folder = line.file.parent.parent / "model"
    before = (folder / "model.json").read_bytes()
    content = defective_part(5)
    number = line.send(content)
    page = open_page(line.client, "/products/tile/limits")
    assert page.locator("#teach").is_disabled()
    line.service.store.set_answer(number, "good", "anna")
    page.reload()
    ready(page)
    playwright.expect(page.locator("#waiting")).to_have_text("1")
    page.click("#teach")
    playwright.expect(page.locator("#lesson")).to_contain_text("1 good part joined the calibration of model")
    playwright.expect(page.locator("#waiting")).to_have_text("0")
    assert (folder.parent / "model.model.json.before").read_bytes() == before
    (added,) = load(folder).threshold.added
    assert added.name == f"{number:09}.png"
    live = line.service.judges["tile"].live
    wait_for(lambda: live.predictor is not None and len(live.predictor.threshold.added) == 1, 20)
    assert line.client.post("/products/tile/teach").status_code == 409
    assert result(line.client.post("/v1/products/tile/predict", content=content))["p_value"] > 1 / 31


def test_a_model_file_is_taught_whole(detector: Detector, tmp_path: Path) -> None:
    model, image = tmp_path / "tile.uflow", tmp_path / "new.png"
    detector.save(model)
    image.write_bytes(defective_part(5))
    before = model.read_bytes()
    said = teach(Product("tile", model), [image], "cpu")
    assert said.startswith("1 good part joined the memory and the calibration of tile.uflow. Not called good: 1 before")
    assert (tmp_path / "tile.uflow.before").read_bytes() == before
    assert [added.name for added in load(model, device="cpu").threshold.added] == ["new.png"]
    after = model.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=re.escape("new.png")):
        teach(Product("tile", model), [image], "cpu")
    assert model.read_bytes() == after


# Limits ---------------------------------------------------------------------------------------------------------------


def test_the_charts_limits_are_those_that_the_images_support(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a part is rejected, and its point is above the red line."""
    judge = line.service.judges["tile"]
    least = 1 / (1 + len(judge.live.predictor.threshold.minima))
    monkeypatch.setattr(judge.live, "predictor", judge.live.predictor.at(least / 10, look_alpha=least / 5))
    chart = result(line.client.get("/products/tile/live.json"))["chart"]
    assert (chart["alpha"], chart["look"]) == (least, least)


def test_the_slider_counts_what_it_would_have_flagged_and_is_saved(line: Line, open_page: Opened) -> None:
    for i in range(40):
        line.add(f"{i}", "good", (i + 1) / 41)
    page = open_page(line.client, "/products/tile/limits")
    limits = result(line.client.get("/products/tile/state.json"))["limits"]
    assert (limits["alpha"], limits["look_alpha"]) == (0.2, 0.5)
    playwright.expect(page.locator("#alpha-today")).to_have_text("Today: 8 of 40 parts rejected, 20 %.")
    assert page.inner_text("#look-value") == "50 %"
    assert page.locator("#save").is_disabled()
    place = limits["alphas"].index(0.1)
    page.locator("#alpha").evaluate(SLIDE, place)
    assert page.inner_text("#alpha-value") == "10 %"
    playwright.expect(page.locator("#alpha-today")).to_have_text("Today: 4 of 40 parts rejected, 10 %.")
    page.locator("#look").evaluate(SLIDE, place + 1)
    playwright.expect(page.locator("#look-today")).to_have_text("The limit of look is to be above α.")
    assert page.locator("#save").is_disabled()
    page.locator("#look").focus()
    page.keyboard.press("End")
    playwright.expect(page.locator("#look-today")).to_have_text("Today: 16 of 40 parts to look at, 40 %.")
    page.click("#save")
    playwright.expect(page.locator("#said")).to_have_text("Saved, and serves.")
    saved = read_product(line.file)
    assert (saved.alpha, saved.look_alpha) == (0.1, 0.5)
    assert read_product(line.file.with_name("tile.toml.before")).alpha is None
    live = line.service.judges["tile"].live
    assert live.predictor is not None
    assert (live.predictor.threshold.alpha, live.predictor.threshold.look_alpha) == (0.1, 0.5)
    for limits in ({"alpha": 2, "look_alpha": None}, {"alpha": 0.2, "look_alpha": 0.1}, {"alpha": 0.2}):
        assert line.client.post("/products/tile/limits", json=limits).status_code == 400
    assert read_product(line.file) == saved


# The editor -----------------------------------------------------------------------------------------------------------


def polygons(page: Any) -> list[list[list[float]]]:
    """The corners of the chosen polygon, from the page."""
    corners = page.locator("#drawing .corner").evaluate_all(
        "all => all.map((e) => [e.getAttribute('cx'), e.getAttribute('cy')])"
    )
    return [[float(x), float(y)] for x, y in corners]  # type: ignore[list-item]


def test_polygons_are_drawn_by_mouse_and_saved(line: Line, open_page: Opened) -> None:
    line.send(good_part())
    page = open_page(line.client, "/products/tile/region")
    box = page.locator("#drawing").bounding_box()
    at = lambda x, y: (box["x"] + x / 96 * box["width"], box["y"] + y / 80 * box["height"])  # noqa: E731
    page.click("#add-region")
    for corner in ((10, 10), (80, 10), (80, 70), (10, 70)):
        page.mouse.click(*at(*corner))
    page.mouse.click(*at(10.3, 10.3))  # on the first corner: closed
    assert np.allclose(polygons(page), [(10, 10), (80, 10), (80, 70), (10, 70)], atol=0.2)
    page.mouse.move(*at(80, 70))
    page.mouse.down()
    page.mouse.move(*at(90, 75))
    page.mouse.up()
    page.mouse.move(*at(45, 10))  # the dot between two corners
    page.mouse.down()
    page.mouse.move(*at(45, 2))
    page.mouse.up()
    drawn = [(10, 10), (45, 2), (80, 10), (90, 75), (10, 70)]
    assert np.allclose(polygons(page), drawn, atol=0.2)
    page.keyboard.press("Delete")
    assert np.allclose(polygons(page), drawn[:1] + drawn[2:], atol=0.2)
    page.keyboard.press("Control+z")
    page.click("#save")
    playwright.expect(page.locator("#said")).to_contain_text("model has not learnt the region of interest of 'tile'")
    assert str(line.file.parent.parent) not in page.inner_text("#said")
    assert open_page.refused() == ["409"]
    assert read_product(line.file).roi is None
    page.click("text=Save all the same")
    playwright.expect(page.locator("#said")).to_contain_text("Saved in tile.toml, and not yet in use")
    roi = read_product(line.file).roi
    assert roi is not None
    assert roi.size == (80, 96)
    assert np.allclose(roi.polygons[0], drawn, atol=0.2)
    assert read_product(line.file.with_name("tile.toml.before")).roi is None
    assert result(line.client.post("/v1/products/tile/predict", content=good_part()))  # the old one serves on
    page.reload()
    ready(page)
    page.click("text=Region 1")
    assert np.allclose(polygons(page), drawn, atol=0.2)


def test_polygons_are_drawn_by_keys(line: Line, open_page: Opened) -> None:
    line.send(good_part())
    page = open_page(line.client, "/products/tile/region")
    page.keyboard.press("i")  # the cross begins in the middle, 48, 40
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert polygons(page) == [[48, 40], [52, 40], [52, 50]]
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    assert polygons(page) == [[47, 30], [52, 40], [52, 50]]
    page.keyboard.press("+")
    assert polygons(page) == [[47, 30], [49.5, 35], [52, 40], [52, 50]]
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.ariaLabel") == "Corner 2 of 4, at 49, 35"
    page.keyboard.press("Delete")
    assert polygons(page) == [[47, 30], [52, 40], [52, 50]]
    page.click("#undo")
    assert len(polygons(page)) == 4
    page.click("[aria-label='Delete Ignored area 1']")
    assert page.locator("#polygons li").count() == 0
    assert page.locator("#save").is_disabled()


def test_regions_that_cannot_be_are_refused(line: Line) -> None:
    before = line.file.read_bytes()
    whole = {"size": [80, 96], "polygons": [], "ignore": [], "confirmed": False}
    for change in (
        {"polygons": [[[0, 0], [1, 1]]]},
        {"polygons": [[[0, 0], [1e300, 0], [0, 5]]]},
        {"ignore": [[[0, 0], [96, 0], [96, 80], [0, 80]]]},
        {"size": [0, 0], "polygons": [[[0, 0], [5, 0], [0, 5]]]},
        {"polygons": "all"},
    ):
        answer = line.client.post("/products/tile/region", json=whole | change)
        assert answer.status_code == 400, answer.text
    assert line.file.read_bytes() == before
    assert result(line.client.post("/products/tile/region", json=whole)) == {"saved": "tile.toml", "todo": None}


# Who may what ---------------------------------------------------------------------------------------------------------


def test_roles_and_logging_in(open_page: Opened, served_model: Path, tmp_path: Path) -> None:
    secrets = {role: f"{role} " * 5 for role in ("predict", "operate", "administer")}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("".join(f'[{role}]\nrole = "{role}"\ntoken = "{text}"\n' for role, text in secrets.items()))
    tokens.chmod(0o600)
    service = Service([write_product(tmp_path / "products", "tile", served_model)], tmp_path / "data")
    with serve_here(service, Tokens(tokens)) as client:
        header = {"authorization": f"Bearer {secrets['predict'].strip()}"}
        sent = client.post("/v1/products/tile/predict", content=defective_part(), headers=header)
        assert sent.status_code == 401  # not the token: its last space is part of it
        header = {"authorization": f"Bearer {secrets['predict']}"}
        may = {"predict": "", "operate": "answer", "administer": "answer limits region"}
        pages = {}
        for role, secret in secrets.items():
            page = pages[role] = open_page(client, "/products/tile")
            assert page.url.endswith("/login")
            page.fill("#token", "no token of anybody")
            page.keyboard.press("Enter")
            playwright.expect(page.locator("#refused")).to_have_text("Not logged in: this token is not known.")
            assert open_page.refused() == ["403"]
            page.fill("#token", secret)
            go(page, lambda page=page: page.keyboard.press("Enter"))
            page.wait_for_url("**/products/tile")
            assert role in page.inner_text(".masthead .end")
        part = service.judges["tile"].store.accept("tile", "x", defective_part(), ".png").id
        service.store.settle(Outcome(part, "judged", '{"size": [80, 96], "regions": []}', "reject", 0.1, 0.9))
        asked = {
            "answer": (f"/v1/parts/{part}/answer", {"answer": "defective"}),
            "limits": ("/products/tile/limits", {"alpha": 0.2, "look_alpha": None}),
            "region": ("/products/tile/region", {"size": [80, 96], "polygons": [], "ignore": [], "confirmed": False}),
        }
        post = "([path, body]) => fetch(path, { method: 'POST', body: JSON.stringify(body) }).then((e) => e.status)"
        for role, page in pages.items():
            for what, content in asked.items():
                status = page.evaluate(post, list(content))
                assert status == (200 if what in may[role] else 403), (role, what)
        open_page.refused()
        assert service.store.part(part).answer == "defective"
        page = pages["predict"]
        page.goto(f"{client.base_url}/parts/{part}")
        ready(page)
        assert page.locator("[data-answer]:disabled").count() == 2
        go(page, lambda: page.click("text=Log out"))
        assert page.url.endswith("/login")
        for context in open_page.contexts:
            context.close()


# How it looks ---------------------------------------------------------------------------------------------------------


def test_on_a_phone_and_in_the_dark(line: Line, open_page: Opened) -> None:
    number = line.send(defective_part(), "a name that is " + "very " * 12 + "long")
    for path in ("", "/history", "/limits", "/region"):
        page = open_page(line.client, f"/products/tile{path}", color_scheme="dark", **PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    page = open_page(line.client, f"/parts/{number}", **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator("[data-answer]").all():
        assert button.bounding_box()["height"] >= 44
    page.tap("#theme")
    go(page, lambda: page.tap("text=Live"))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # as chosen, on other pages too


def test_a_shift_begins_at_the_last_such_time() -> None:
    now = shift_start((14, 30), 2e9) + 3600
    assert shift_start((14, 30), now) == now - 3600
    assert shift_start((15, 31), now) == pytest.approx(now - 3600 - 24 * 3600 + 61 * 60, abs=3601)
    assert parse_clock("06:05") == (6, 5)
    with pytest.raises(ValueError, match="does not match"):
        parse_clock("6 h")
