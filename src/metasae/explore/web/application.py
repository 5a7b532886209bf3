"""The application of a run: the answer at each address, the checks of every request, the headers of every answer.

The answers are those of the store, as JSON. Labels are written, and a text is answered with the latents that fire.

A page on another site must not read or change anything here. So the Host header has to name this machine (a foreign
name that is pointed at 127.0.0.1 does not), a POST has to be JSON from a page of ours, and the content-security-policy
lets a page run and load nothing that this server did not send: no inline scripts, no other hosts.
"""

import ipaddress
import json
import socket
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from metasae.errors import UserError
from metasae.explore.web.page_files import STATIC, plotly_script

# What default-src does not cover is named. Styles come from files too: plotly's own are in static/plotly.css.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LARGEST_BODY = 1_000_000
# of /api/latents: the parameter, and what its text is read as
FILTERS = {"sort": str, "search": str, "label": str, "min_rate": float, "max_rate": float, "offset": int, "limit": int}
# of /api/splits
SPLIT_FILTERS = {
    "pair": str, "kind": str, "offset": int, "limit": int, "search": str, "min_score": float, "label": str,
    "kept": lambda text: text == "1",
}  # fmt: skip
LABEL = 'a label is {"target": {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}, "label", "note"}'


def run_app(
    explorer, try_text: Callable[[str], dict], host: str, steer: Callable[..., dict] | None = None
) -> Starlette:
    """explorer: a `metasae.explore.pages.queries.Explorer`, or anything with its methods.

    try_text: text -> which latents fire on it. host: the address it is served on. steer: (SAE, latent, text, value) ->
    what the model writes, as `Trying.steer`; None where it cannot be asked.
    """
    routes = [Route(path, _answering(question)) for path, question in _questions(explorer, steer is not None).items()]
    return guarded([*routes, *_posts(explorer, try_text, steer)], host, html=True)


def _questions(explorer, steers: bool) -> dict[str, Callable[[Request], dict]]:
    """Address -> the function that answers it. Plain functions run in threads, so that a slow one delays no other.

    steers: whether a latent may be steered; the model has to be causal as well.
    """

    def overview(request: Request) -> dict:
        answer = explorer.overview()
        return {**answer, "steers": steers and answer["causal"]}

    return {
        "/api/overview": overview,
        "/api/latents/{sae}": lambda request: explorer.latents(
            request.path_params["sae"],
            **_given(request, FILTERS),
            descending=request.query_params.get("desc", "1") != "0",
            dead=request.query_params.get("dead", "0") == "1",
        ),
        "/api/latent/{sae}/{latent:int}": lambda request: explorer.latent(**request.path_params),
        "/api/briefs/{sae}": lambda request: explorer.briefs(request.path_params["sae"], _ids(request)),
        "/api/matches/{sae}/{other}": lambda request: explorer.matches(**request.path_params, ids=_ids(request)),
        "/api/document/{sae}/{latent:int}/{place:int}": lambda request: explorer.document(**request.path_params),
        "/api/splits": lambda request: explorer.splits(**_given(request, SPLIT_FILTERS)),
        "/api/split/{id}": lambda request: explorer.split(request.path_params["id"]),
        "/api/compare": lambda request: explorer.compare_latents(_latent_of(request, "a"), _latent_of(request, "b")),
        "/api/search": lambda request: explorer.search(
            request.query_params.get("q", ""), **_given(request, {"limit": int})
        ),
        "/api/labels": lambda request: {"labels": explorer.labels()},
    }


def _posts(explorer, try_text: Callable[[str], dict], steer: Callable[..., dict] | None) -> list[Route]:
    async def label(request: Request) -> Response:
        given = await _posted(request)
        target, label, note = given.get("target"), given.get("label"), given.get("note", "")
        if not _is_target(target) or not isinstance(label, (str, type(None))) or not isinstance(note, str):
            raise ValueError(LABEL)
        await run_in_threadpool(explorer.set_label, target, label, note)
        return fresh({"saved": True})

    async def fires(request: Request) -> Response:
        text = (await _posted(request)).get("text")
        if not _is_text(text):
            raise ValueError('send {"text": some words}')
        return await _modelled(try_text, text)

    async def steered(request: Request) -> Response:
        given = await _posted(request)
        sae, latent, text, value = (given.get(key) for key in ("sae", "latent", "text", "value"))
        is_number = type(value) in (int, float)
        if not isinstance(sae, str) or type(latent) is not int or not _is_text(text) or not is_number:
            raise ValueError('send {"sae", "latent", "text": some words, "value": a number}')
        if steer is None:
            raise HTTPException(404, "this explorer does not steer")
        return await _modelled(steer, sae, explorer.check(sae, latent), text, value)

    posts = {"/api/label": label, "/api/try": fires, "/api/steer": steered}
    return [Route(path, answer, methods=["POST"]) for path, answer in posts.items()]


async def _modelled(ask: Callable[..., dict], *given) -> Response:
    """What the model says; 404 with the reason where it cannot be had."""
    try:
        return JSONResponse(await run_in_threadpool(ask, *given))
    except UserError as error:
        raise HTTPException(404, str(error)) from None


def _is_text(given) -> bool:
    return isinstance(given, str) and bool(given.strip())


def _ids(request: Request) -> list[int]:
    return [int(id) for id in request.query_params.get("ids", "").split(",") if id]


def _answering(question: Callable[[Request], dict]) -> Callable[[Request], Response]:
    return lambda request: fresh(question(request))


def _given(request: Request, kinds: dict[str, Callable]) -> dict:
    """The query's parameters, each read as its kind; those that are absent or empty are left out. Raises ValueError."""
    texts = {name: request.query_params.get(name) for name in kinds}
    return {name: kinds[name](text) for name, text in texts.items() if text}


def _latent_of(request: Request, name: str) -> tuple[str, int]:
    """The parameter `a` or `b` of a comparison. Raises ValueError where it is not as in solo-s0:17."""
    sae, colon, latent = request.query_params.get(name, "").rpartition(":")
    if not colon or not (latent.isascii() and latent.isdigit()):
        raise ValueError(f"{name} must be an SAE and a latent, as in solo-s0:17")
    return sae, int(latent)


def _is_target(given) -> bool:
    """Whether it names a latent or a split, which need not exist."""
    if not isinstance(given, dict):
        return False
    if given.get("kind") == "latent":
        return isinstance(given.get("sae"), str) and type(given.get("latent")) is int
    return given.get("kind") == "split" and isinstance(given.get("id"), str)


async def _posted(request: Request) -> dict:
    """The JSON object of a body. Raises ValueError for anything else."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes")
    given = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError("the body must be a JSON object")
    return given


def guarded(routes: Sequence[BaseRoute], host: str, html: bool = False) -> Starlette:
    """An application of routes and the files of the pages.

    html: index.html too, at /. host: the address it is served on.
    """
    files = [
        Route(
            "/plotly.min.js",
            lambda request: FileResponse(
                plotly_script(), media_type="text/javascript", headers={"cache-control": "max-age=3600"}
            ),
        ),
        Mount("/", StaticFiles(directory=STATIC, html=html)),
    ]
    middleware = [Middleware(Guard), Middleware(TrustedHost, host=host)]
    return Starlette(routes=[*routes, *files], exception_handlers=ERRORS, middleware=middleware)


class TrustedHost(TrustedHostMiddleware):
    """Answers to localhost and this machine's loopback addresses.

    A server that the user opens to a network also answers to that host, to the machine's name, and to any address in
    digits: such an address cannot be pointed elsewhere, as a name can.
    """

    def __init__(self, app, host: str):
        self._open = host not in LOOPBACK
        names = [host, socket.gethostname()] if self._open else []
        super().__init__(app, ["localhost", *names], www_redirect=False)

    async def __call__(self, scope, receive, send) -> None:
        try:
            # in small letters, which older releases of starlette do not see to
            name = URL(f"http://{Headers(scope=scope).get('host', '')}").hostname
            trusted = name == "localhost" or ipaddress.ip_address(name).is_loopback or self._open
        except ValueError:
            trusted = False
        return await (self.app if trusted else super().__call__)(scope, receive, send)


class Guard:
    """Refuses POSTs from other origins and POSTs of anything but JSON; puts HEADERS on every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = None if scope["method"] in ("GET", "HEAD") else _refusal(Headers(scope=scope))
        return await (refusal or self.app)(scope, receive, with_headers)


def _refusal(headers: Headers) -> Response | None:
    # a browser always sends the origin with a POST; what sends none is no page
    own = (None, f"http://{headers.get('host', '')}")
    if headers.get("origin") not in own or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return error_answer(403, "refused: the request comes from another site")
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return error_answer(415, "send application/json")
    return None


def error_answer(status: int, line: str) -> Response:
    return JSONResponse({"error": " ".join(line.split())}, status)


# an application's own answer to what a question raises: 404 for what is not there, 400 for wrong parameters
ERRORS = {
    HTTPException: lambda request, error: error_answer(error.status_code, error.detail),
    KeyError: lambda request, error: error_answer(404, str(error.args[0])),
    ValueError: lambda request, error: error_answer(400, str(error)),
    UserError: lambda request, error: error_answer(400, str(error)),
    Exception: lambda request, error: error_answer(500, f"{type(error).__name__}: {error}"),
}


def fresh(answer: dict) -> Response:
    """An answer that the browser asks for anew each time."""
    return JSONResponse(answer, headers={"cache-control": "no-store"})
