"""What the pages' scripts ask for, and what their buttons do: pictures, the live view, answers, limits, teaching."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..files import one_line
from ..images import read_image
from ..schema import parse, read_json
from .app import Web
from .database import STORE_ERRORS
from .drawing import draw_map
from .judge import Busy, Judge
from .parts import Answer, Part
from .security import Caller
from .settings import Limits, NotLearnt, Region, save_limits, save_region
from .shown import parse_clock, shift_start, show_chart, show_part, show_threshold, without_folders
from .teaching import Teacher

__all__ = ["data_routes", "find_part", "has_image", "threaded"]

T = TypeVar("T")

LIVE_PARTS = 24
SIDES = {"small": 320, "large": 1600}  # pixels of a picture's longer side
QUALITY = 85  # of JPEG
KEPT_PICTURE_S = 3600  # that a browser keeps a picture, which never changes
BODY_BYTES = 200_000  # of what a page sends
DECODERS = 2  # images that are made into pictures at once


async def threaded(function: Callable[..., T], *values: Any) -> T:
    """A function that reads or writes the disk, in a thread; HTTPException 503 where the disk fails."""
    try:
        return await run_in_threadpool(function, *values)
    except STORE_ERRORS as error:
        raise HTTPException(503, f"the disk does not do its part: {one_line(error)}") from None


async def find_part(web: Web, request: Request) -> tuple[Judge, Part]:
    """The part in the path, and the worker of its product; 404 where there is none."""
    number = request.path_params["part"]
    part = await threaded(web.service.store.part, number) if number < 1 << 63 else None
    if part is None or part.product not in web.service.judges:
        raise HTTPException(404, "there is no such part")
    return web.service.judges[part.product], part


def has_image(judge: Judge, part: Part) -> bool:
    """Whether a part's image can still be seen; one that could not be judged may be no image at all."""
    return part.state != "failed" and (part.picture is not None or judge.recent.find(part.id) is not None)


def find_image(judge: Judge, part: Part) -> bytes | None:
    """A part's image as it came: from memory or from the disk; None where it is kept in neither."""
    found = judge.recent.find(part.id)
    return judge.store.image(part) if found is None else found


def data_routes(web: Web) -> list[Route]:
    """What the pages' scripts ask for."""
    data = _Data(web)
    return [
        Route("/v1/parts/{part:int}/picture", web.guard("predict", data.picture)),
        Route("/v1/parts/{part:int}/map", web.guard("predict", data.map)),
        Route("/v1/parts/{part:int}/answer", web.guard("operate", data.answer), methods=["POST"]),
        Route("/products/{name}/live.json", web.guard("predict", data.live)),
        Route("/products/{name}/flagged.json", web.guard("predict", data.flagged)),
        Route("/products/{name}/state.json", web.guard("predict", data.state)),
        Route("/products/{name}/limits", web.guard("administer", data.save_limits), methods=["POST"]),
        Route("/products/{name}/region", web.guard("administer", data.save_region), methods=["POST"]),
        Route("/products/{name}/teach", web.guard("administer", data.teach), methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Said:
    """What is said of a part; None takes it back."""

    answer: Answer | None


class _Data:
    """The endpoints, and what they share."""

    def __init__(self, web: Web) -> None:
        self.limits, self.teacher = web.service.limits, Teacher()
        self.decoders = asyncio.Semaphore(DECODERS)

    # Pictures ---------------------------------------------------------------------------------------------------------

    async def picture(self, web: Web, request: Request, caller: Caller) -> Response:
        """The image of a part as JPEG, small or large."""
        judge, part = await find_part(web, request)
        side = SIDES["large" if request.query_params.get("size") == "large" else "small"]
        content = await self._image(judge, part)
        async with self.decoders:
            return _kept_picture(await run_in_threadpool(_as_jpeg, judge, content, side), "image/jpeg")

    async def map(self, web: Web, request: Request, caller: Caller) -> Response:
        """The anomaly map of a part in its colours, by the model that serves now: the image is judged once more."""
        judge, part = await find_part(web, request)
        content = await self._image(judge, part)
        if judge.serving is None:
            raise HTTPException(503, "no model of this product serves now", {"retry-after": "10"})
        try:
            judge.enter()
        except Busy:
            raise HTTPException(503, "the line needs the model now: try again", {"retry-after": "1"}) from None
        done = asyncio.wrap_future(judge.look(part.name, content, draw_map).done)
        await asyncio.wait([done], timeout=self.limits.request_s)
        if not done.done():
            raise HTTPException(504, f"not judged within {self.limits.request_s:g} s")
        picture = done.result().picture
        if picture is None:
            raise HTTPException(409, "the model that serves now cannot judge this image")
        return Response(picture, media_type="image/png")

    async def _image(self, judge: Judge, part: Part) -> bytes:
        content = await threaded(find_image, judge, part)
        if content is None:
            raise HTTPException(404, "the image of this part is not kept")
        return content

    # What changes -----------------------------------------------------------------------------------------------------

    async def live(self, web: Web, request: Request, caller: Caller) -> Response:
        """The last parts, the counts of the shift, the last p-values, and what is wrong."""
        judge = web.judge(request)
        try:
            clock = parse_clock(request.query_params.get("shift", "00:00"))
        except ValueError:
            raise HTTPException(400, "shift is when it began, such as 06:00") from None
        return JSONResponse(await threaded(_live, web, judge, clock))

    async def flagged(self, web: Web, request: Request, caller: Caller) -> Response:
        """How many of today's parts other limits would have flagged."""
        judge, today = web.judge(request), shift_start((0, 0), time.time())
        found = {}
        for name in ("alpha", "look"):
            if text := request.query_params.get(name, ""):
                found[name], found["parts"] = await threaded(judge.store.flagged_at, judge.name, _share(text), today)
        return JSONResponse(found)

    async def state(self, web: Web, request: Request, caller: Caller) -> Response:
        """How a product is judged now, and what became of teaching."""
        judge = web.judge(request)
        waiting = await threaded(judge.store.good_after_all, judge.name)
        lesson = asdict(self.teacher.lesson(judge.name))
        limits = show_threshold(judge)
        trouble = None if judge.live.trouble is None else without_folders(judge, judge.live.trouble)
        return JSONResponse({"limits": limits, "lesson": lesson, "waiting": len(waiting), "trouble": trouble})

    # What buttons do --------------------------------------------------------------------------------------------------

    async def answer(self, web: Web, request: Request, caller: Caller) -> Response:
        """Keep what an operator says of a part."""
        judge, part = await find_part(web, request)
        said = await _read_body(request, _Said)
        if said.answer == "good" and part.verdict not in ("look", "reject"):
            raise HTTPException(409, "good after all is said of a part that was not called good")
        if part.state == "accepted":
            raise HTTPException(409, "this part is not judged yet")
        await threaded(judge.store.set_answer, part.id, said.answer, caller.name)
        return JSONResponse({"answer": said.answer})

    async def save_limits(self, web: Web, request: Request, caller: Caller) -> Response:
        """Write alpha to the product's file."""
        judge, limits = web.judge(request), await _read_body(request, Limits)
        await _saved(save_limits, judge, limits)
        return JSONResponse({"saved": judge.live.file.name})

    async def save_region(self, web: Web, request: Request, caller: Caller) -> Response:
        """Write the region of interest to the product's file; 409 where the model does not know it."""
        judge, region = web.judge(request), await _read_body(request, Region)
        try:
            todo = await _saved(save_region, judge, region)
        except NotLearnt as error:
            return JSONResponse({"error": without_folders(judge, one_line(error)), "confirm": True}, 409)
        todo = None if todo is None else without_folders(judge, todo)
        return JSONResponse({"saved": judge.live.file.name, "todo": todo})

    async def teach(self, web: Web, request: Request, caller: Caller) -> Response:
        """Begin a lesson with the parts that are good after all."""
        judge = web.judge(request)
        try:
            await threaded(self.teacher.begin, judge)
        except (ValueError, RuntimeError) as error:
            raise HTTPException(409, one_line(error)) from None
        return JSONResponse(asdict(self.teacher.lesson(judge.name)), 202)


def _live(web: Web, judge: Judge, clock: tuple[int, int]) -> dict[str, Any]:
    since = shift_start(clock, time.time())
    parts = judge.store.parts(judge.name, limit=LIVE_PARTS)
    return {
        "parts": [show_part(part, has_image(judge, part)) for part in parts],
        "counts": asdict(judge.store.counts(judge.name, since)),
        "chart": show_chart(judge),
        "troubles": sorted(without_folders(judge, f"{what}: {why}") for what, why in web.service.troubles().items()),
    }


def _as_jpeg(judge: Judge, content: bytes, side: int) -> bytes:
    """A picture of an image as it is judged, such as one of 12 bits or of another gain, no larger than `side`."""
    predictor = judge.live.predictor
    try:
        bit_depth, gain = (16, 1.0) if predictor is None else (predictor.bit_depth, predictor.gain)
        image = Image.fromarray(read_image(content, bit_depth, gain))
    except ValueError as error:
        raise HTTPException(404, f"the image cannot be shown: {one_line(error)}") from None
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def _kept_picture(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": f"private, max-age={KEPT_PICTURE_S}"})


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise HTTPException(400, "alpha and look are shares between 0 and 1")
    return share


async def _read_body(request: Request, kind: type[T]) -> T:
    """What a page sends, as JSON."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise HTTPException(413, f"more than {BODY_BYTES} bytes, which is the limit")
    try:
        return parse(kind, read_json(body, "the request"), "the request")
    except ValueError as error:
        raise HTTPException(400, one_line(error)) from None


async def _saved(save: Callable[[Judge, Any], T], judge: Judge, content: Any) -> T:
    """What `settings` writes; HTTPException where it refuses, or where the file cannot be written."""
    try:
        return await run_in_threadpool(save, judge, content)
    except ValueError as error:
        raise HTTPException(400, without_folders(judge, one_line(error))) from None
    except OSError as error:
        raise HTTPException(503, without_folders(judge, one_line(error))) from None
