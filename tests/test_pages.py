"""Report pages: what is on the cards, what is written, what is escaped, how large it may be; without a browser."""

import base64
import copy
import dataclasses
import hashlib
import io
import json
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from conftest import one_line
from uflow.evaluate.tables import Table
from uflow.pages import (
    Card,
    CardMaker,
    Facts,
    Finding,
    PageTable,
    PictureLimits,
    Promise,
    Report,
    mask_path,
    model_facts,
    write_report,
)
from uflow.pages import (
    cards as cards_room,
)
from uflow.pages.pictures import encode_within, svg_path
from uflow.pages.report import slider_alphas
from uflow.predictor import Predictor
from uflow.threshold import PaperThreshold

SIZE = (256, 320)  # (H, W)
BAD_NAME = "</script><img src=x onerror=alert(1)>&\"'\u2028.png"


class Page(HTMLParser):
    """The texts of the scripts of a page by id, the attributes of its tags, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._script: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or tag
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def predictor(made_pages: ModuleType) -> Predictor:
    return made_pages.make_predictor(good_images=40, size=SIZE)


@pytest.fixture(scope="module")
def cards(made_pages: ModuleType, predictor: Predictor) -> list[Card]:
    return made_pages.make_cards(predictor, 12, SIZE)


def written(report: Report, folder: Path) -> Page:
    return Page(write_report(report, folder / "report.html"))


def plain_card(name: str, score: float = 0.5, p_value: float | None = 0.5, **entries: object) -> Card:
    return Card(name, (60, 80), [Finding(score, p_value, p_value is not None and p_value <= 0.05)], **entries)


# Cards ----------------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_prediction_says(made_pages: ModuleType, predictor: Predictor) -> None:
    image, _ = made_pages.make_image("hole", 3, SIZE)
    maker = CardMaker(predictor, PictureLimits(1))
    (prediction,) = maker.stream([image])
    (card,) = maker.cards
    (finding,) = card.findings
    assert (finding.score, finding.p_value) == (prediction.score, prediction.p_value)
    assert finding.flagged is prediction.is_anomalous is True
    (own, regions), (loose, more) = finding.levels
    assert (own, loose) == (predictor.threshold.alpha, cards_room.LOOSEST_ALPHA)
    assert [region.area for region in regions] == [region.area for region in prediction.regions]
    assert len(more) >= len(regions) > 0
    assert all(region.p_value is not None and region.p_value <= loose for region in more)
    with Image.open(io.BytesIO(card.photo)) as photo:
        assert (photo.format, photo.size) == ("WEBP", (320, 256))
        assert np.abs(np.asarray(photo).astype(int) - image).mean() < 8
    with Image.open(io.BytesIO(finding.map_picture)) as picture:
        assert max(picture.size) <= cards_room.MAP_SIDE


def test_moving_alpha_gives_what_the_threshold_gives_at_that_alpha(
    made_pages: ModuleType, predictor: Predictor, cards: list[Card]
) -> None:
    """The page's rule, p-value at most alpha, is the decision of a model that is set to that alpha."""
    images = [made_pages.make_image(card.kind, i, SIZE)[0] for i, card in enumerate(cards)]
    for alpha in (0.025, 0.05, 0.1, 0.2):
        other = Predictor(predictor.network, predictor.threshold.at(alpha), predictor.blend)
        for image, card in zip(images, cards, strict=True):
            assert (card.findings[0].p_value <= alpha + 1e-9) is other.predict(image).is_anomalous, (alpha, card.name)


def test_a_threshold_that_is_not_calibrated_has_no_slider(made_pages: ModuleType, tmp_path: Path) -> None:
    maker = CardMaker(Predictor(made_pages.PatternNetwork(), PaperThreshold()), PictureLimits(1))
    image = made_pages.make_image("good", 3, SIZE)[0].copy()
    image[60:140, 60:140] = 255
    list(maker.stream([image]))
    (finding,) = maker.cards[0].findings
    assert (finding.p_value, finding.flagged, [alpha for alpha, _ in finding.levels]) == (None, True, [None])
    assert len(finding.levels[0][1]) <= cards_room.MOST_REGIONS
    data = written(Report("Paper", "", maker.cards), tmp_path).data
    assert (data["alpha"], data["alphas"]) == (None, [])
    assert data["methods"] == [{"name": "U-Flow", "calibrated": False, "judges": True}]


def test_pictures_keep_within_their_bytes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8))
    for limit in (100_000, 20_000, 3_000):
        data = encode_within(noise, 700, limit)
        assert data is not None
        assert 0.3 * limit < len(data) <= limit
    assert encode_within(noise, 700, 50) is None
    assert PictureLimits(2000).photo(np.asarray(noise)) is not None
    assert len(PictureLimits(2000).photo(np.asarray(noise)) or b"") < cards_room.PICTURE_BYTES / 2000


def test_outlines_are_closed_paths_in_pixels() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:15] = mask[12:14, 30:40] = True
    mask[14:16, 8:10] = False  # a hole
    path = mask_path(mask)
    assert path.count("M") == path.count("Z") == 3
    numbers = np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2)
    assert numbers.min(axis=0).tolist() == [5, 10]
    assert numbers.max(axis=0).tolist() == [40, 20]
    assert mask_path(np.zeros((4, 4), bool)) == ""


def test_outlines_of_large_images_have_few_points() -> None:
    angle = np.linspace(0, 2 * np.pi, 50_000)
    ring = 4000 + 3000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    path = svg_path([ring.astype(np.float32)], (8000, 8000))
    assert 500 < path.count("L") < 4000


# What is written ------------------------------------------------------------------------------------------------------


def test_names_cannot_break_out(tmp_path: Path) -> None:
    table = Table(["category", "mIoU"], [[BAD_NAME, "**0.5**"]])
    report = Report(
        BAD_NAME,
        BAD_NAME,
        [plain_card(BAD_NAME, kind=BAD_NAME, category=BAD_NAME)],
        {BAD_NAME: Promise(0.05, 30)},
        [BAD_NAME],
        [PageTable(BAD_NAME, table, [BAD_NAME])],
        [Facts(BAD_NAME, [(BAD_NAME, BAD_NAME)], [BAD_NAME])],
        [BAD_NAME],
    )
    page = written(report, tmp_path)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert set(page.scripts) == {"style", "data", "script"}
    assert page.data["images"][0]["name"] == BAD_NAME
    assert page.data["images"][0]["kind"] == BAD_NAME
    assert page.text.count(BAD_NAME) >= 8
    assert ("strong", {}) in page.tags


def test_nothing_can_be_fetched_and_only_our_script_runs(cards: list[Card], tmp_path: Path) -> None:
    page = written(Report("Title", "", cards, {"": Promise(0.05, 40)}), tmp_path)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.scripts[name].encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    assert not [a for _, a in page.tags if "src" in a]
    assert {a["href"] for _, a in page.tags if "href" in a} == {"#gallery", "data:,"}
    assert "style" not in {name for _, attributes in page.tags for name in attributes}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.scripts["script"] + page.scripts["style"])


def test_pictures_are_those_of_the_cards(cards: list[Card], tmp_path: Path) -> None:
    page = written(Report("Title", "", cards, {"": Promise(0.05, 40)}), tmp_path)
    for i, card in enumerate(cards):
        assert base64.b64decode(page.scripts[f"photo-{i}"]) == card.photo
        assert base64.b64decode(page.scripts[f"map-{i}-0"]) == card.findings[0].map_picture


def test_many_images_keep_the_pictures_of_the_most_suspicious(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cards_room, "MOST_PICTURES", 5)
    monkeypatch.setattr("uflow.pages.report.MOST_PICTURES", 5)
    cards = [plain_card(f"{i}.png", score=i, p_value=1 - i / 20, photo=b"photo") for i in range(12)]
    with caplog.at_level(logging.INFO, "uflow"):
        page = written(Report("Title", "", cards), tmp_path)
    assert {name for name in page.scripts if name.startswith("photo")} == {f"photo-{i}" for i in range(7, 12)}
    assert len(page.data["images"]) == 12
    left_out = "Left out, to keep this page small: the pictures of 7 of 12 images, of the least suspicious ones."
    assert left_out in page.text
    assert left_out in caplog.text
    assert re.search(r"report .*report\.html: 12 images, 0\.\d MB", caplog.text)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    for report, message in (
        (Report("Title", "", []), "at least one image"),
        (Report("Title", "", [plain_card("a.png")], methods=("a", "b")), "a.png has 1 findings, for 2 methods"),
        (Report("Title", "", [plain_card("a.png", category="nut")]), "a.png is of category 'nut'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            write_report(report, tmp_path / "report.html")
        one_line(error)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="cannot write"):
        write_report(Report("Title", "", [plain_card("a.png")]), tmp_path / "nowhere/report.html")


@pytest.mark.parametrize(
    ("alpha", "good_images", "first", "last"),
    [(0.05, 60, 1 / 61, 0.2), (0.001, 2000, 1 / 2001, 0.2), (0.05, 9, 0.1, 0.2), (0.3, 60, 1 / 61, 0.3)],
)
def test_the_slider_begins_at_what_can_be_promised(alpha: float, good_images: int, first: float, last: float) -> None:
    promise = Promise(alpha, good_images)
    alphas = slider_alphas(promise)
    assert alphas == sorted(set(alphas))
    assert (alphas[0], alphas[-1]) == (first, last)
    assert max(alpha, promise.least) in alphas


def test_facts_of_a_model(predictor: Predictor) -> None:
    settings = {"epochs": 3, "seed": 0, "augment": True}
    record = {"backbone": "resnet18", "images": "40 abcdef", "settings": settings, "held_out": 0.15}
    facts = model_facts("part.uflow", predictor, record, [{"seconds": 2.0}, {"seconds": 3.0}])
    entries = {name: value for group in facts for name, value in group.entries}
    assert entries["File"] == "part.uflow"
    assert entries["Input"] == "320 × 256 pixels"
    assert (entries["Backbone"], entries["Training"]) == ("resnet18", "2 epochs, 5 s")
    assert (entries["Alpha"], entries["Least alpha they support"]) == ("0.05", "0.0244")
    assert [entries[name] for name in ("epochs", "held out", "seed", "augment")] == ["3", "0.15", "0", "yes"]
    assert [group.title for group in facts] == ["Model", "Learnt from", "Calibration", "Settings of the training"]
    unknown = model_facts("part.uflow", Predictor(predictor.network), {})
    assert ("Good images", "none") in unknown[2].entries


def test_pages_need_no_torch() -> None:
    code = "import sys, uflow.pages; print(sorted({'torch', 'timm', 'matplotlib', 'rich', 'typer'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_card_can_be_changed_but_not_what_was_found() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain_card("a.png").findings[0].score = 1.0


def test_a_look_on_the_page_is_that_of_the_prediction(made_pages: ModuleType, tmp_path: Path) -> None:
    """The page decides by p-values, the prediction by log NFA."""
    predictor = copy.copy(made_pages.make_predictor(40))
    predictor.threshold = predictor.threshold.at(0.05, look_alpha=0.3)
    maker = CardMaker(predictor, PictureLimits(20))
    images = [made_pages.make_image("good" if i % 5 else "hole", i)[0] for i in range(20)]
    verdicts = [prediction.verdict for prediction in maker.stream(images)]
    data = written(Report("Title", "", maker.cards, {"": Promise.from_threshold(predictor.threshold)}), tmp_path).data
    assert data["categories"] == [{"name": "", "least": pytest.approx(1 / 41), "look": 0.3, "good": 40}]
    limits = {"reject": data["alpha"], "look": data["categories"][0]["look"], "good": 1.0}
    read = [next(v for v, most in limits.items() if i["findings"][0]["p"] <= most) for i in data["images"]]
    assert read == verdicts
    assert set(verdicts) == {"reject", "look", "good"}


def test_a_look_promises_no_less_than_the_images_can() -> None:
    assert Promise(0.01, 9, 0.02).look == pytest.approx(0.1)
    assert Promise(0.01, 9).look is None
    assert [Promise(0.01, 9).reject, Promise(0.2, 9).reject, Promise().reject] == [pytest.approx(0.1), 0.2, None]
