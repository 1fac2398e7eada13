"""Report pages in a real browser: opened from the disk, sorted, filtered, moved through by keys, printed."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from uflow.evaluate.tables import Table
from uflow.pages import Card, Facts, Finding, OutlinedRegion, PageTable, Promise, Report, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")

SIZE = (256, 320)  # (H, W)
ALPHA = 0.05
BAD_NAME = "<img src=x onerror=alert(1)>"
SAY_ALPHA = "slider => { slider.value = %d; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
# Contrast of a text with what is behind it, by WCAG 2.
CONTRAST = """([text, ground]) => {
    const light = (name) => {
        const probe = document.createElement("i");
        probe.style.color = `var(--${name})`;
        document.body.append(probe);
        const rgb = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map((value) => value / 255);
        probe.remove();
        const [r, g, b] = rgb.map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const pair = [light(text), light(ground)].sort((a, b) => b - a);
    return pair[0] / pair[1];
}"""


@pytest.fixture(scope="module")
def cards(made_pages: ModuleType) -> list[Card]:
    """24 cards of images, half of them with a defect, of two categories."""
    cards = made_pages.make_cards(made_pages.make_predictor(40, ALPHA, SIZE), 24, SIZE)
    for i, card in enumerate(cards):
        card.category = "plate" if i % 2 else "nut"
    cards[0].name = f"line 2/good/{BAD_NAME}"
    return cards


@pytest.fixture(scope="module")
def report(cards: list[Card], tmp_path_factory: pytest.TempPathFactory) -> Path:
    promises = {"nut": Promise(ALPHA, 40), "plate": Promise(ALPHA, 40)}
    table = Table(
        ["category", "mIoU\nauto", "paper"], [["nut", "0.5", "0.6"], ["mean", "0.5", "0.6"]], tight=[2], rules=[1]
    )
    tables = [PageTable("Results", table, ["Paper: published."])]
    facts = [Facts("Model", [("File", "part.uflow")])]
    made = Report("Plates", "24 made images", cards, promises, tables=tables, facts=facts, notes=["A note."])
    return write_report(made, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page from the disk; at the end, it must have asked for nothing and said nothing on the console."""
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def open_page(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file:///", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:///")]) == len(contexts)
    assert said == []


def names(page: Any) -> list[str]:
    return [text.split(",")[0] for text in page.locator(".open").evaluate_all("all => all.map((e) => e.ariaLabel)")]


def slide(page: Any, alpha: float) -> None:
    """Move the slider to an alpha that it offers."""
    alphas = page.evaluate("JSON.parse(document.getElementById('data').textContent).alphas")
    page.locator("#alpha").evaluate(SAY_ALPHA % alphas.index(alpha))


def flagged(cards: list[Card], alpha: float = ALPHA) -> list[Card]:
    return [card for card in cards if card.findings[0].p_value <= alpha + 1e-9]


# The gallery ----------------------------------------------------------------------------------------------------------


def test_opens_from_the_disk_and_asks_for_nothing(open_page, report: Path, cards: list[Card]) -> None:
    page = open_page(report)
    assert page.title() == page.inner_text("h1") == "Plates"
    assert page.locator(".tile").count() == len(cards)
    assert page.locator(".photo").evaluate_all("all => Promise.all(all.map((e) => e.decode()))") == [None] * len(cards)
    assert page.inner_text("#shown") == "24 images"
    assert f"line 2/good/{BAD_NAME}" in names(page)


def test_sorting(open_page, report: Path, cards: list[Card]) -> None:
    page = open_page(report)
    by_p = sorted(cards, key=lambda c: (c.findings[0].p_value, -c.findings[0].score, c.name))
    assert names(page) == [card.name for card in by_p]
    for order, sign in (("score", -1), ("-score", 1)):
        page.select_option("#sort", order)
        by_score = sorted(cards, key=lambda c: (sign * c.findings[0].score, c.name))
        assert names(page) == [card.name for card in by_score]
    page.select_option("#sort", "name")
    assert [name for name in names(page) if BAD_NAME not in name] == sorted(
        c.name for c in cards if BAD_NAME not in c.name
    )


def test_filters(open_page, report: Path, cards: list[Card]) -> None:
    page = open_page(report)
    hit = {card.name for card in flagged(cards)}
    groups = {
        "flagged": [c for c in cards if c.name in hit],
        "passed": [c for c in cards if c.name not in hit],
        "misses": [c for c in cards if c.kind != "good" and c.name not in hit],
        "alarms": [c for c in cards if c.kind == "good" and c.name in hit],
    }
    assert 0 < len(hit) < len(cards)
    assert groups["misses"]
    for group, expected in groups.items():
        page.click(f"[data-show={group}]")
        assert set(names(page)) == {card.name for card in expected}, group
        assert page.inner_text(f"[data-show={group}] .number") == str(len(expected))
        assert page.locator("#empty").is_visible() is (expected == [])
    page.click("[data-show=all]")
    page.select_option("#kind", "hole")
    assert set(names(page)) == {card.name for card in cards if card.kind == "hole"}
    page.select_option("#category", "nut")
    assert set(names(page)) == {card.name for card in cards if card.kind == "hole" and card.category == "nut"}
    page.fill("#search", "PART_0009")
    assert all("part_0009" in name for name in names(page))
    page.keyboard.press("Escape")
    assert page.locator(".tile").count() == len(cards)


def test_the_slider_changes_what_is_flagged(open_page, report: Path, cards: list[Card]) -> None:
    page = open_page(report)
    seen = set()
    for alpha in (1 / 41, 0.05, 0.12, 0.2):
        slide(page, alpha)
        expected = flagged(cards, alpha)
        seen.add(len(expected))
        assert page.inner_text("[data-show=flagged] .number") == str(len(expected))
        assert page.inner_text("#count-flagged").startswith(str(len(expected)))
        marked = page.locator(".tile:has(path.line.found) .open").evaluate_all("all => all.map((e) => e.ariaLabel)")
        assert {text.split(",")[0] for text in marked} == {card.name for card in expected}
        texts = page.locator(".tile[data-type=flagged] .verdict").all_inner_texts()
        assert texts == ["Flagged"] * len([card for card in expected if card.kind != "good"])
    assert len(seen) > 2
    assert page.inner_text("#alpha-value") == "20 %"
    mark = page.locator("#p-histogram .mark")
    at = float(mark.get_attribute("x1"))
    page.click("#alpha-reset")
    assert page.inner_text("#alpha-value") == "5 %"
    assert float(mark.get_attribute("x1")) < at
    page.click("[data-show=alarms]")
    before = len(names(page))
    slide(page, 0.2)
    assert len(names(page)) > before


def test_look_is_a_third_state(open_page, cards: list[Card], tmp_path: Path) -> None:
    """Between alpha and the looser limit; none is left where the slider passes that limit."""
    own = [replace(card, category="") for card in cards]
    page = open_page(write_report(Report("Plates", "", own, {"": Promise(ALPHA, 40, 0.19)}), tmp_path / "look.html"))
    for alpha in (0.05, 0.2):
        slide(page, alpha)
        looked_at = [card for card in flagged(own, 0.19) if card not in flagged(own, alpha)]
        page.click("[data-show=look]")
        assert set(names(page)) == {card.name for card in looked_at}
        words = page.locator(".tile[data-type=look] .verdict").all_inner_texts()
        assert sorted(words) == sorted("Look" if card.kind == "good" else "Missed, look" for card in looked_at)
        assert page.inner_text("#count-look").startswith(f"{len(looked_at)}\n")
        assert bool(looked_at) is (alpha < 0.19)
    assert "Look: at most 19 %." in page.inner_text("#promise")


def test_one_limit_shows_no_look(open_page, report: Path) -> None:
    page = open_page(report)
    assert page.locator("[data-show=look], #count-look").locator("visible=true").count() == 0
    assert page.locator(".tile[data-type=look]").count() == 0
    assert "Look" not in page.inner_text("#promise")


def test_outlines_follow_the_slider(open_page, tmp_path: Path) -> None:
    """Of regions found at the loosest alpha, those with a p-value above alpha are not drawn."""
    strong, weak, wide = (
        OutlinedRegion(0.02, 9, 0.9, "M1 1L9 1L9 9Z"),
        OutlinedRegion(0.15, 9, 0.6, "M20 20L29 20L29 29Z"),
        OutlinedRegion(0.02, 25, 0.9, "M1 1L14 1L14 14Z"),
    )
    finding = Finding(0.9, 0.02, True, ((0.05, (strong,)), (0.2, (wide, weak))))
    page = open_page(
        write_report(
            Report("One", "", [Card("a.png", (40, 40), [finding])], {"": Promise(0.05, 60)}), tmp_path / "r.html"
        )
    )
    path = page.locator(".tile path.line.found")
    assert path.get_attribute("d") == strong.path
    slide(page, 0.1)
    assert path.get_attribute("d") == wide.path
    slide(page, 0.15)
    assert path.get_attribute("d") == wide.path + weak.path
    slide(page, 1 / 61)
    assert path.count() == 0


# The large view and the keyboard --------------------------------------------------------------------------------------


def test_keys(open_page, report: Path) -> None:
    page = open_page(report)
    order = names(page)
    page.keyboard.press("/")
    page.keyboard.type("hole")
    assert all("hole" in name for name in names(page))
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.ariaLabel.split(',')[0]"
    assert page.evaluate(focused) == order[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == order[1]
    page.keyboard.press("ArrowDown")
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('gallery')).gridTemplateColumns.split(' ').length"
    )
    assert page.evaluate(focused) == order[1 + columns]
    page.keyboard.press("Enter")
    assert page.inner_text("#large-name") == order[1 + columns]
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#large-name") == order[2 + columns]
    assert page.inner_text("#position") == f"{3 + columns} of 24"
    page.keyboard.press("End")
    assert page.locator("#next").is_disabled()
    page.keyboard.press("Home")
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    # A browser tells the page that a dialog was closed a moment after it has closed it.
    page.wait_for_function(f"(name) => {focused} === name", arg=order[0])


def test_large_view(open_page, report: Path, cards: list[Card]) -> None:
    page = open_page(report)
    page.locator(".open").first.click()
    (shown,) = [card for card in cards if card.name == page.inner_text("#large-name")]
    assert page.inner_text("#verdict") == "Flagged"
    assert shown.findings[0].levels[0][1][0].path in page.locator("#stage path.line.found").get_attribute("d")
    assert page.locator("#regions td").nth(2).inner_text() == str(shown.findings[0].levels[0][1][0].area)
    assert page.inner_text("#legend .ends").split("\n") == ["as on good parts", "model's α", "stranger"]
    picture = page.locator("#stage .map")
    opacity = "e => Number(getComputedStyle(e).opacity)"
    assert picture.evaluate(opacity) == pytest.approx(0.6)
    page.keyboard.press("m")
    assert picture.evaluate(opacity) == 0
    page.locator("#opacity").evaluate(SAY_ALPHA % 100)
    assert picture.evaluate(opacity) == 1
    found, true = (page.locator(f"#stage path.line.{name}") for name in ("found", "true"))
    assert (found.is_visible(), true.is_visible()) == (True, False)
    page.keyboard.press("o")
    page.keyboard.press("t")
    assert (found.is_visible(), true.is_visible()) == (False, True)
    assert true.get_attribute("d") == shown.truth
    layers = page.locator("#stage .layers")
    before = layers.bounding_box()
    assert before["width"] / before["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.01)
    page.keyboard.press("+")
    assert layers.bounding_box()["width"] == pytest.approx(1.5 * before["width"], rel=0.01)
    middle = page.locator("#stage").bounding_box()
    page.mouse.move(middle["x"] + 100, middle["y"] + 100)
    page.mouse.down()
    moved = layers.bounding_box()["x"]
    page.mouse.move(middle["x"] + 150, middle["y"] + 100)
    page.mouse.up()
    assert layers.bounding_box()["x"] == pytest.approx(moved + 50, abs=1)
    page.mouse.wheel(0, -300)
    assert layers.bounding_box()["width"] > 1.6 * before["width"]
    page.keyboard.press("0")
    assert layers.bounding_box() == before


# How it looks ---------------------------------------------------------------------------------------------------------


def test_light_and_dark_by_the_system_and_by_hand(open_page, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = []
    for scheme in ("light", "dark"):
        page = open_page(report, color_scheme=scheme)
        own = page.evaluate(ground)
        page.click("#theme")
        other = page.evaluate(ground)
        page.click("#theme")
        assert page.evaluate(ground) == own
        colours.append((own, other))
        for text, behind in [("text", "ground"), ("muted", "ground"), ("muted", "surface"), ("flagged", "surface"),
                             ("look", "surface"), ("wrong", "surface"), ("accent", "surface"),
                             ("on-accent", "accent")]:  # fmt: skip
            assert page.evaluate(CONTRAST, [text, behind]) > 4.5, (scheme, text, behind)
    assert colours[0] == colours[1][::-1]
    assert colours[0][0] != colours[0][1]


def test_on_a_phone(open_page, report: Path) -> None:
    page = open_page(report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= 390"
    assert page.evaluate(fits)
    for button in page.locator(".chip:visible, #tools select:visible").all():
        assert button.bounding_box()["height"] >= 36
    page.locator(".open").first.tap()
    photo, stage = page.locator("#stage .photo").bounding_box(), page.locator("#stage").bounding_box()
    assert photo["width"] > 300
    assert stage["y"] <= photo["y"]
    assert photo["y"] + photo["height"] <= stage["y"] + stage["height"] + 1
    assert page.locator("#close").is_visible()
    page.locator("#close").tap()
    for tab in ("figures", "model"):
        page.click(f"#tab-{tab}")
        assert page.locator(f"#{tab}").is_visible()
        assert not page.locator("#images").is_visible()
        assert page.evaluate(fits)


def test_printing(open_page, report: Path) -> None:
    page = open_page(report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".tools", ".tabs", "#theme", "#alpha"):
        assert not page.locator(hidden).first.is_visible(), hidden
    for shown in ("#images", "#figures", "#model", "#p-histogram", "#count-flagged"):
        assert page.locator(shown).first.is_visible(), shown
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = page.pdf(format="A4")
    assert len(re.findall(rb"/Type ?/Page\b(?!s)", pdf)) >= 3  # the images, the figures, the model
    assert pdf.count(b"/Subtype /Image") >= 24


# Other reports --------------------------------------------------------------------------------------------------------


def test_methods_side_by_side(open_page, cards: list[Card], tmp_path: Path) -> None:
    both = []
    for i, card in enumerate(cards):
        other = Finding(100.0 - i, map_picture=card.findings[0].map_picture)
        both.append(replace(card, findings=[*card.findings, other], category=""))
    made = Report("Two", "", both, {"": Promise(ALPHA, 40)}, ["U-Flow", "other"])
    page = open_page(write_report(made, tmp_path / "r.html"))
    assert page.locator("#alpha").is_visible()
    page.select_option("#method", "1")
    assert names(page) == [card.name for card in cards]
    assert not page.locator("#alpha").is_visible()
    assert "no threshold of its own" in page.inner_text("#no-alpha")
    assert not page.locator("[data-show=flagged]").is_visible()
    page.locator(".open").nth(1).click()
    assert page.locator("#stage .view").count() == 2
    assert page.locator("#stage .map").count() == 2
    assert "other · score 99.000 · rank 2 of 24" in page.locator("#stage figcaption").nth(1).inner_text()


def test_predictions_without_truth_or_calibration(open_page, tmp_path: Path) -> None:
    cards = [Card(f"{i}.png", (40, 60), [Finding(i / 10, None, i > 5, ((None, ()),))]) for i in range(8)]
    page = open_page(write_report(Report("Plain", "", cards), tmp_path / "r.html"))
    for hidden in ("#alpha", "[data-show=misses]", "#kind", "#p-figure", ".tabs"):
        assert not page.locator(hidden).is_visible(), hidden
    assert "not calibrated" in page.inner_text("#no-alpha")
    assert names(page)[0] == "7.png"
    page.click("[data-show=flagged]")
    assert names(page) == ["7.png", "6.png"]


def test_two_thousand_images_are_drawn_as_they_come_into_sight(open_page, cards: list[Card], tmp_path: Path) -> None:
    many = [
        Card(f"{i:04}.png", card.size, card.findings, card.kind, "", card.truth, card.photo)
        for i in range(2000)
        for card in [cards[i % len(cards)]]
    ]
    page = open_page(write_report(Report("Many", "", many, {"": Promise(ALPHA, 40)}), tmp_path / "r.html"))
    tiles = page.locator(".tile")
    assert tiles.count() < 200
    page.select_option("#sort", "name")
    page.locator("#more").scroll_into_view_if_needed()
    playwright.expect(tiles.nth(60)).to_be_attached()
    page.keyboard.press("/")
    page.keyboard.type("1999")
    assert names(page) == ["1999.png"]


def test_the_policy_stops_scripts_and_requests(browser: Any, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    assert page.evaluate(
        """async () => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        const refused = await fetch(location.href).then(() => false, () => true);
        return [window.ran === undefined, refused];
    }"""
    ) == [True, True]
    page.close()
