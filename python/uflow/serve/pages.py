"""The service's pages: what each shows, as HTML; their style and scripts. `page_data.py` has what they ask for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from .. import __version__
from ..files import one_line
from ..pages.assets import STATIC, json_for_script, read_script, read_style
from ..pages.pictures import mask_path
from ..pages.report import make_legend
from ..product import Product, read_product
from ..roi import RegionOfInterest
from .app import Endpoint, Web
from .judge import Judge
from .page_data import data_routes, find_part, has_image, threaded
from .parts import Filter, Part
from .security import Caller, Role, may
from .shown import parse_time, shift_start, show_part, show_threshold, without_folders

__all__ = ["page_routes"]

OWN_STATIC = Path(__file__).parent / "static"
SHARED = ("words.js", "drawing.js", "theme.js")  # of uflow.pages
SCRIPTS = {
    "login.js": (*SHARED, "base.js", "login.js"),
    "base.js": (*SHARED, "base.js", "history.js"),
    "live.js": (*SHARED, "base.js", "chart.js", "tiles.js", "live.js"),
    "part.js": (*SHARED, "stage.js", "base.js", "tiles.js", "part.js"),
    "region.js": (*SHARED, "base.js", "polygons.js", "region.js"),
    "limits.js": (*SHARED, "base.js", "limits.js"),
}
KEPT_FILE_S = 24 * 3600  # that a browser keeps style and scripts: their address changes with them
LISTED = 50  # parts on a page of the history
SEARCHED = 200  # parts, for the last one with a picture
FIELDS = ("verdict", "answer", "name", "since", "until")  # of the history's filter
VERDICTS = ("good", "look", "reject", "failed")
ANSWERS = ("good", "defective")


def page_routes(web: Web) -> list[Route]:
    """What browsers ask for."""
    pages: list[tuple[str, Role, Endpoint]] = [
        ("/", "predict", _home),
        ("/products/{name}", "predict", _live),
        ("/products/{name}/history", "predict", _history),
        ("/products/{name}/limits", "predict", _limits),
        ("/products/{name}/region", "predict", _region),
        ("/parts/{part:int}", "predict", _large),
    ]
    return [
        Route("/login", partial(_login, web)),
        Route("/static/{file}", _static),
        *(Route(path, partial(_page, web, web.guard(role, endpoint))) for path, role, endpoint in pages),
        *data_routes(web),
    ]


async def _page(web: Web, guarded: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    """A page; where it is refused, a page that says so, or the one to log in."""
    try:
        return await guarded(request)
    except HTTPException as error:
        if error.status_code == 401 and web.tokens is not None:
            return RedirectResponse("/login", 303)
        return _render("error.html", {"error": error.detail}, status=error.status_code)


# What all pages have in common ----------------------------------------------------------------------------------------


@cache
def _static_files() -> dict[str, tuple[str, str]]:
    """Style and scripts by name, with their media types: nothing else can be asked for."""
    own = {path.name: path for path in OWN_STATIC.iterdir()}
    files = {
        name: (read_script([own.get(part, STATIC / part) for part in parts]), "text/javascript")
        for name, parts in SCRIPTS.items()
    }
    style = read_style() + own["service.css"].read_text(encoding="utf-8")
    return files | {"service.css": (style, "text/css")}


async def _static(request: Request) -> Response:
    found = _static_files().get(request.path_params["file"])
    if found is None:
        raise HTTPException(404, "there is no such file")
    headers = {"cache-control": f"private, max-age={KEPT_FILE_S}"}
    return Response(found[0], media_type=f"{found[1]}; charset=utf-8", headers=headers)


@cache
def _address(file: str) -> str:
    """The address of a file in `_static_files`, another one for each content of it."""
    digest = hashlib.sha256(_static_files()[file][0].encode()).hexdigest()
    return f"/static/{file}?{digest[:12]}"


@cache
def _templates() -> Environment:
    loader = ChoiceLoader([PackageLoader("uflow.serve", "templates"), PackageLoader("uflow.pages", "templates")])
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals |= {"address": _address, "version": __version__}
    return found


def _render(template: str, content: dict[str, Any], *, data: Any = None, status: int = 200) -> Response:
    """A page.

    Args:
        template: name of its template.
        content: what the template needs.
        data: what its script works on, ready for JSON.
        status: of HTTP.
    """
    page = _templates().get_template(template)
    return HTMLResponse(page.render(content | {"data": Markup(json_for_script(data))}), status)


def _frame(web: Web, caller: Caller, product: str, tab: str) -> dict[str, Any]:
    """What the head of each page of a product shows."""
    return {
        "product": product,
        "products": list(web.service.judges),
        "tab": tab,
        "caller": caller,
        "logs_in": web.tokens is not None,
        "may_answer": may(caller, "operate"),
        "may_administer": may(caller, "administer"),
    }


# The pages ------------------------------------------------------------------------------------------------------------


async def _login(web: Web, request: Request) -> Response:
    if web.tokens is None or web.caller(request) is not None:
        return RedirectResponse("/", 303)
    return _render("login.html", {})


async def _home(web: Web, request: Request, caller: Caller) -> Response:
    """The only product's live view, or which products there are."""
    names = list(web.service.judges)
    if len(names) == 1:
        return RedirectResponse(f"/products/{quote(names[0], safe='')}", 303)
    lines = [await threaded(_describe_line, judge) for judge in web.service.judges.values()]
    return _render("home.html", _frame(web, caller, "", "") | {"lines": lines})


def _describe_line(judge: Judge) -> dict[str, Any]:
    """How a product fares today."""
    counts = judge.store.counts(judge.name, shift_start((0, 0), time.time()))
    shown = [("Good", counts.good), ("Look", counts.look), ("Reject", counts.reject), ("Not judged", counts.failed)]
    state = "no model serves: nothing is judged" if judge.live.predictor is None else "judging"
    changed = judge.watch is not None and judge.watch.alarm
    return {
        "name": judge.name,
        "counts": shown,
        "state": "the line has changed" if changed else state,
        "bad": changed or judge.live.predictor is None,
    }


async def _live(web: Web, request: Request, caller: Caller) -> Response:
    judge = web.judge(request)
    return _render("live.html", _frame(web, caller, judge.name, "live"), data={"product": judge.name})


async def _history(web: Web, request: Request, caller: Caller) -> Response:
    judge, asked = web.judge(request), request.query_params
    chosen, kept = _read_filter(asked)
    before = _number(asked["before"]) if "before" in asked else None
    parts = await threaded(web.service.store.parts, judge.name, chosen, before, LISTED + 1)
    shown = [show_part(part, has_image(judge, part)) for part in parts[:LISTED]]
    older = urlencode(kept | {"before": repr(parts[LISTED - 1].received)}) if len(parts) > LISTED else None
    content = {"parts": shown, "kept": kept, "filter": urlencode(kept), "older": older, "is_first": before is None}
    return _render("history.html", _frame(web, caller, judge.name, "history") | content)


def _read_filter(asked: QueryParams) -> tuple[Filter, dict[str, str]]:
    """Which parts a form asks for, and its fields that are filled in; HTTPException where they make no sense."""
    kept = {name: asked[name].strip() for name in FIELDS if asked.get(name, "").strip()}
    for name, values in (("verdict", VERDICTS), ("answer", ANSWERS)):
        if kept.get(name, values[0]) not in values:
            raise HTTPException(400, f"{name} is one of {', '.join(values)}")
    times: dict[str, Any] = {}
    for name in ("since", "until"):
        if name in kept:
            try:
                times[name] = parse_time(kept[name])
            except (ValueError, OverflowError, OSError):
                raise HTTPException(400, f"{name} is a time such as 2026-03-01T06:00") from None
    texts: Any = {name: kept.get(name) for name in ("verdict", "answer", "name")}
    return Filter(**texts, **times), kept


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HTTPException(400, "before is a number of seconds") from None


async def _large(web: Web, request: Request, caller: Caller) -> Response:
    """One part, among those that a filter chooses."""
    judge, part = await find_part(web, request)
    chosen, kept = _read_filter(request.query_params)
    store = web.service.store
    older = await threaded(store.parts, judge.name, chosen, part.received, 1)
    newer = await threaded(partial(store.parts, after=part.received), judge.name, chosen, None, 1)
    shown = show_part(part, has_image(judge, part))
    data = {
        "part": shown,
        "older": _part_address(older, kept),
        "newer": _part_address(newer, kept),
        "back": f"/products/{quote(judge.name, safe='')}/history?{urlencode(kept)}",
        "may_answer": may(caller, "operate"),
        "legend": make_legend() if part.p_value is not None else None,
    }
    return _render("part.html", _frame(web, caller, judge.name, "history") | data, data=data)


def _part_address(parts: list[Part], kept: dict[str, str]) -> str | None:
    return f"/parts/{parts[0].id}?{urlencode(kept)}" if parts else None


async def _limits(web: Web, request: Request, caller: Caller) -> Response:
    judge = web.judge(request)
    asked = await threaded(_read_file, judge)
    waiting = await threaded(web.service.store.good_after_all, judge.name)
    shown = show_threshold(judge)
    data = {"product": judge.name, "limits": shown, "may_administer": may(caller, "administer")}
    content = {"limits": shown, "file": judge.live.file.name, "asked": asked, "waiting": len(waiting)}
    return _render("limits.html", _frame(web, caller, judge.name, "limits") | content, data=data)


async def _region(web: Web, request: Request, caller: Caller) -> Response:
    """The editor of the region of interest, on the image of a part: the one that is asked for, or the last one."""
    judge = web.judge(request)
    part = await threaded(_drawn_on, judge, request.query_params.get("part", ""))
    asked = await threaded(_read_file, judge)
    roi: RegionOfInterest | None = asked.roi
    data = {
        "product": judge.name,
        "part": None if part is None else show_part(part, True),
        "roi": None if roi is None else {"size": roi.size, "polygons": roi.polygons, "ignore": roi.ignore},
        "mask": "" if roi is None or roi.runs is None else mask_path(roi.pixels(roi.size)),
        "may_administer": may(caller, "administer"),
    }
    content = {"part": data["part"], "is_mask": bool(data["mask"]), "file": judge.live.file.name}
    return _render("region.html", _frame(web, caller, judge.name, "region") | content, data=data)


def _drawn_on(judge: Judge, asked: str) -> Part | None:
    """The part whose image the region is drawn on: a judged one, as its size must be known."""
    if asked.isdecimal() and len(asked) < 19:
        found = judge.store.part(int(asked))
        parts = [] if found is None or found.product != judge.name else [found]
    else:
        parts = judge.store.parts(judge.name, limit=SEARCHED)
    return next((part for part in parts if part.state == "judged" and has_image(judge, part)), None)


def _read_file(judge: Judge) -> Product:
    """The product as its file has it now; the service may not have taken it over."""
    try:
        return read_product(judge.live.file)
    except (OSError, ValueError) as error:
        raise HTTPException(409, without_folders(judge, one_line(error))) from None
