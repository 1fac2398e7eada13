"""The service on the web: routes, who may take them, what is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .drawing import draw_overlay
from .judge import Busy, Draw, Job, Judge, Judged
from .openapi import describe
from .security import HEADERS, SESSION_S, Caller, Role, Sessions, Tokens, check_origin, is_loopback, may
from .service import Service
from .uploads import FORM_BYTES, Room, check_image, declared_length, read_upload

__all__ = ["Web", "make_app"]

Endpoint = Callable[["Web", Request, Caller], Awaitable[Response]]

RETRY_S = "1"  # after which a sender may try again


class Web:
    """What all routes share.

    Attributes:
        service: products, store, metrics.
        tokens: who may what; None: everybody on this machine may everything.
        sessions: browsers that have logged in.
        room: memory for what is being received.
    """

    def __init__(self, service: Service, tokens: Tokens | None = None) -> None:
        self.service, self.tokens, self.sessions = service, tokens, Sessions()
        self.room = Room(max(service.limits.held_bytes, 2 * (service.limits.upload_bytes + FORM_BYTES)))

    def caller(self, request: Request) -> Caller | None:
        """Who asks: by a token in the header, or by the cookie of a session; None where neither is known."""
        if self.tokens is None:
            return Caller("local", "administer") if is_loopback(request.headers.get("host", "")) else None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.tokens.find(token.strip())
        return self.sessions.find(request.cookies.get(Sessions.COOKIE, ""))

    def guard(self, role: Role, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint for callers of a role; others are answered 401 or 403."""
        return partial(self._guarded, role, endpoint)

    async def _guarded(self, role: Role, endpoint: Endpoint, request: Request) -> Response:
        caller = self.caller(request)
        if caller is None:
            raise HTTPException(401, "a token is needed", {"www-authenticate": "Bearer"})
        if not may(caller, role):
            raise HTTPException(403, f"the token is not one for those who {role}")
        if (why := check_origin(request.method, request.headers, caller)) is not None:
            raise HTTPException(403, why)
        return await endpoint(self, request, caller)

    def judge(self, request: Request) -> Judge:
        """The worker of the product in the path; 404 where there is none."""
        name = request.path_params["name"]
        if name not in self.service.judges:
            raise HTTPException(404, "there is no such product")
        return self.service.judges[name]


def make_app(web: Web, routes: list[Route] | None = None) -> ASGIApp:
    """The program that a web server runs; it starts and stops the service.

    Args:
        web: what all routes share.
        routes: more of them, such as those of pages.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(web.service.start)
        yield
        await run_in_threadpool(web.service.stop)

    handlers: Any = {HTTPException: _answer_refusal, 500: _answer_mistake}
    return _WithHeaders(
        Starlette(routes=[*_routes(web), *(routes or [])], lifespan=lifespan, exception_handlers=handlers)
    )


def _routes(web: Web) -> list[Route]:
    """What machines ask for."""
    return [
        Route("/health", partial(_health, web)),
        Route("/ready", partial(_ready, web)),
        Route("/version", _version),
        Route("/openapi.json", _openapi),
        Route("/login", partial(_login, web), methods=["POST"]),
        Route("/logout", web.guard("predict", _logout), methods=["POST"]),
        Route("/metrics", web.guard("predict", _metrics)),
        Route("/v1/products", web.guard("predict", _products)),
        Route("/v1/products/{name}/predict", web.guard("predict", _predict), methods=["POST"]),
        Route("/v1/products/{name}/monitor/restart", web.guard("operate", _restart_monitor), methods=["POST"]),
        Route("/v1/parts/{part:int}", web.guard("predict", _part)),
    ]


# Judging --------------------------------------------------------------------------------------------------------------


async def _predict(web: Web, request: Request, caller: Caller) -> Response:
    """Accept an image, and answer with what is said of it."""
    judge, limits = web.judge(request), web.service.limits
    began = time.monotonic()
    try:
        if judge.serving is None:
            raise HTTPException(503, "the product's model cannot be read", {"retry-after": "10"})
        job = await _accept(web, request, judge)
        left = max(limits.request_s - (time.monotonic() - began), 0.01)
        done = asyncio.wrap_future(job.done)
        await asyncio.wait([done], timeout=left)
        if not done.done():
            number = None if job.part is None else job.part.id
            text = f"not judged within {limits.request_s:g} s; it will be, and is stored"
            headers = {} if number is None else {"location": f"/v1/parts/{number}", "uflow-part": str(number)}
            raise HTTPException(504, text, headers)
        judged = done.result()
    except HTTPException as error:
        web.service.metrics.refused.labels(judge.name, str(error.status_code)).inc()
        raise
    return _answer(judged, None if job.part is None else job.part.id)


async def _accept(web: Web, request: Request, judge: Judge) -> Job:
    """Read an image and put it on the disk; the job that judges it."""
    limits = web.service.limits
    draw = draw_overlay if _asks_for_overlay(request) else None
    declared_length(request, limits.upload_bytes)
    if judge.is_full:  # before anything of it is received
        raise _busy()
    with ExitStack() as undone:
        held = web.room.hold()
        undone.callback(held.give)
        try:
            content, name = await asyncio.wait_for(read_upload(request, limits.upload_bytes, held), limits.request_s)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the image did not arrive within {limits.request_s:g} s") from None
        try:
            judge.enter()  # only now: whoever sends slowly takes no place of the line's
        except Busy:
            raise _busy() from None
        undone.callback(judge.leave)
        job = await run_in_threadpool(_submit, judge, name, content, draw)
        undone.pop_all()
    if job.part is None:  # its image is held in memory until it is judged
        job.done.add_done_callback(lambda _: held.give())
    else:
        held.give()
    return job


def _busy() -> HTTPException:
    return HTTPException(503, "too many parts are waiting", {"retry-after": RETRY_S})


def _asks_for_overlay(request: Request) -> bool:
    """What ``?overlay=`` says; HTTPException for anything but 0 and 1."""
    asked = request.query_params.get("overlay", "0")
    if asked not in ("0", "1"):
        raise HTTPException(400, "overlay is 0 or 1")
    return asked == "1"


def _submit(judge: Judge, name: str | None, content: bytes, draw: Draw | None) -> Job:
    return judge.submit(name, content, check_image(content), draw)


def _answer(judged: Judged, part: int | None) -> Response:
    headers = {"uflow-stored": "yes" if judged.stored else "no"}
    if part is not None:
        headers |= {"uflow-part": str(part), "location": f"/v1/parts/{part}"}
    if judged.verdict is None:
        if isinstance(judged.error, ValueError):
            return JSONResponse(judged.line, 422, headers)
        return JSONResponse({"image": judged.line["image"], "error": "it could not be judged"}, 500, headers)
    headers |= {"uflow-verdict": judged.verdict}
    if judged.picture is not None:
        return Response(judged.picture, media_type="image/png", headers=headers)
    return JSONResponse(judged.line, headers=headers)


async def _part(web: Web, request: Request, caller: Caller) -> Response:
    """What is known of a part, such as one that was not judged in time."""
    part = await run_in_threadpool(web.service.store.part, request.path_params["part"])
    if part is None:
        raise HTTPException(404, "there is no such part")
    return JSONResponse(part.to_dict())


# How it is ------------------------------------------------------------------------------------------------------------


async def _health(web: Web, request: Request) -> Response:
    troubles = web.service.troubles()
    return JSONResponse({"status": "trouble" if troubles else "ok", "troubles": sorted(troubles)})


async def _ready(web: Web, request: Request) -> Response:
    ready = web.service.is_ready()
    return JSONResponse({"ready": ready}, 200 if ready else 503)


async def _version(request: Request) -> Response:
    return JSONResponse({"uflow": __version__})


async def _openapi(request: Request) -> Response:
    return JSONResponse(describe())


async def _metrics(web: Web, request: Request, caller: Caller) -> Response:
    text = await run_in_threadpool(web.service.metrics_text)
    return Response(text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


async def _products(web: Web, request: Request, caller: Caller) -> Response:
    return JSONResponse([await run_in_threadpool(_describe_product, judge) for judge in web.service.judges.values()])


def _describe_product(judge: Judge) -> dict[str, Any]:
    predictor = judge.live.predictor
    origin = None if predictor is None else predictor.origin
    return {
        "name": judge.name,
        "ready": predictor is not None,
        "trouble": judge.live.trouble is not None,
        "model": None if origin is None else origin.name,
        "model_sha256": None if origin is None else origin.sha256,
        "alpha": None if predictor is None else predictor.threshold.alpha,
        "look_alpha": None if predictor is None else predictor.threshold.look_alpha,
        "waiting": judge.waiting,
        "monitor": None if judge.watch is None else judge.watch.to_dict(),
    }


async def _restart_monitor(web: Web, request: Request, caller: Caller) -> Response:
    watch = web.judge(request).watch
    if watch is None:
        raise HTTPException(409, "this product has no monitor")
    await run_in_threadpool(watch.restart)
    return JSONResponse(watch.to_dict())


# Browsers -------------------------------------------------------------------------------------------------------------


async def _login(web: Web, request: Request) -> Response:
    """A form's token for a session's cookie."""
    declared_length(request, 0)
    async with request.form(max_files=0, max_fields=5, max_part_size=FORM_BYTES) as form:
        token = str(form.get("token", ""))
    caller = None if web.tokens is None else web.tokens.find(token)
    if caller is None:
        raise HTTPException(403, "this token is not known")
    if (why := check_origin("POST", request.headers, Caller(caller.name, caller.role, by_cookie=True))) is not None:
        raise HTTPException(403, why)
    response = RedirectResponse("/", 303)
    key, secure = web.sessions.begin(caller), request.url.scheme == "https"
    response.set_cookie(
        Sessions.COOKIE, key, max_age=SESSION_S, path="/", secure=secure, httponly=True, samesite="strict"
    )
    return response


async def _logout(web: Web, request: Request, caller: Caller) -> Response:
    web.sessions.end(request.cookies.get(Sessions.COOKIE, ""))
    response = RedirectResponse("/", 303)
    response.delete_cookie(Sessions.COOKIE, path="/", httponly=True, samesite="strict")
    return response


# What all answers have in common --------------------------------------------------------------------------------------


async def _answer_refusal(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _answer_mistake(request: Request, error: Exception) -> Response:
    """A mistake of ours: the log has it, the answer says no more than that.

    The server closes the connection behind such an answer: who goes on with it must be told.
    """
    return JSONResponse({"error": "a mistake of the service; its log says more"}, 500, {"connection": "close"})


class _WithHeaders:
    """Every answer has `HEADERS`, where it has none of that name of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, partial(_send_with_headers, send))


async def _send_with_headers(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        there = {name.lower() for name, _ in message["headers"]}
        more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there]
        message["headers"] = [*message["headers"], *more]
    await send(message)
