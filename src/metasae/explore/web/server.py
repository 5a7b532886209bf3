"""The explorer's web server: the pages, the store's answers as JSON, and labels written back. For this machine only.

A page on another site must not read or change anything here. So the Host header has to name this machine (a foreign name that
is pointed at 127.0.0.1 does not), a POST has to be JSON from a page of ours, and the content-security-policy lets a page run
and load nothing that this server did not send: no inline scripts, no other hosts.
"""

import contextlib
import importlib.resources
import ipaddress
import json
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress

STATIC = Path(__file__).parents[1] / "static"
LARGEST_BODY = 1_000_000
# Every part that default-src does not cover is named. Styles come from files too: plotly's own are in static/plotly.css.
POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# of /api/latents: the parameter, and what its text is read as
FILTERS = {"sort": str, "search": str, "label": str, "min_rate": float, "max_rate": float, "offset": int, "limit": int}
# of /api/splits
SPLIT_FILTERS = {"pair": str, "kind": str, "offset": int, "limit": int, "search": str, "min_score": float, "label": str}


def app(
    run, try_text: Callable[[str], dict] | None = None, host: str = "127.0.0.1", progress: Progress = SILENT
) -> Starlette:
    """The application. run: a run folder with its store, a sweep's folder, or anything with the methods of `metasae.explore.pages.queries.Explorer`.

    try_text: text -> which latents fire on it; by default the run folder's model and SAEs, loaded when first asked.
    host: the address it is served on; requests must name it, or this machine. progress: of a sweep's cells, whose stores are built when asked for.
    """
    if isinstance(run, (str, Path)):
        from metasae.explore.pages.queries import Explorer
        from metasae.explore.pages.sweep_pages import is_sweep
        from metasae.explore.pages.trying import Trying

        if is_sweep(run):
            from metasae.explore.web.sweep_server import sweep_app

            return sweep_app(run, host, progress)
        run, try_text = Explorer(run), try_text or Trying(run)
    api = _Api(run, try_text)
    routes = [
        Route("/api/overview", api.overview),
        Route("/api/latents/{sae}", api.latents),
        Route("/api/latent/{sae}/{latent:int}", api.latent),
        Route("/api/briefs/{sae}", api.briefs),
        Route("/api/splits", api.splits),
        Route("/api/split/{id}", api.split),
        Route("/api/compare", api.compare),
        Route("/api/search", api.search),
        Route("/api/labels", api.labels),
        Route("/api/label", api.label, methods=["POST"]),
        Route("/api/try", api.try_text, methods=["POST"]),
        Route("/plotly.min.js", plotly),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]
    application = Starlette(routes=routes, exception_handlers=ERRORS)
    application.add_middleware(Guard, host=host)
    return application


def serve(
    run_folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    progress: Progress = SILENT,
) -> None:
    """Serves a run or a sweep until Ctrl-C; a run's store is built where it is missing or stale. port 0: any free one.

    Raises UserError when the folder is neither, the port is taken or the address is not this machine's.
    """
    import uvicorn

    from metasae.explore.pages.sweep_pages import is_sweep
    from metasae.explore.store.build import build

    run_folder = Path(run_folder)
    of_run = not is_sweep(run_folder)
    listening = listen(host, port)
    with listening:
        if of_run:
            build(run_folder, progress)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        application = app(run_folder, host=host, progress=progress)
        server = uvicorn.Server(
            uvicorn.Config(
                application, log_level="warning", timeout_graceful_shutdown=2, server_header=False, date_header=False
            )
        )
        print(f"{run_folder.name}: {address}   (Ctrl-C stops)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # uvicorn shuts down at the signal, then passes it on
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def plotly_script() -> Path:
    """The plotly.min.js of the installed plotly package. Raises UserError when it is not installed."""
    try:
        found = Path(str(importlib.resources.files("plotly"))) / "package_data" / "plotly.min.js"
    except ModuleNotFoundError:
        raise UserError("the explorer draws with plotly, which is not installed: pip install plotly") from None
    return found


class _Api:
    """The answers. Plain functions run in threads, so a slow one holds up no other."""

    def __init__(self, explorer, try_text: Callable[[str], dict] | None):
        self.explorer, self._try_text = explorer, try_text

    def overview(self, request: Request) -> Response:
        return _answer(self.explorer.overview)

    def latents(self, request: Request) -> Response:
        given = {name: _read(request, name, kind) for name, kind in FILTERS.items()}
        given = {name: value for name, value in given.items() if value is not None}
        flags = {
            "descending": request.query_params.get("desc", "1") != "0",
            "dead": request.query_params.get("dead", "0") == "1",
        }
        return _answer(self.explorer.latents, request.path_params["sae"], **given, **flags)

    def latent(self, request: Request) -> Response:
        return _answer(self.explorer.latent, request.path_params["sae"], request.path_params["latent"])

    def briefs(self, request: Request) -> Response:
        try:
            ids = [int(part) for part in request.query_params.get("ids", "").split(",") if part]
        except ValueError:
            raise HTTPException(400, "ids must be whole numbers with commas between them") from None
        return _answer(self.explorer.briefs, request.path_params["sae"], ids)

    def splits(self, request: Request) -> Response:
        given = {name: _read(request, name, kind) for name, kind in SPLIT_FILTERS.items()}
        return _answer(self.explorer.splits, **{name: value for name, value in given.items() if value is not None})

    def split(self, request: Request) -> Response:
        name = request.path_params["id"]
        return _answer(self.explorer.split, int(name) if name.isascii() and name.isdigit() else name)

    def compare(self, request: Request) -> Response:
        return _answer(self.explorer.compare_latents, _latent_of(request, "a"), _latent_of(request, "b"))

    def search(self, request: Request) -> Response:
        limit = _read(request, "limit", int)
        return _answer(
            self.explorer.search, request.query_params.get("q", ""), **({} if limit is None else {"limit": limit})
        )

    def labels(self, request: Request) -> Response:
        return _answer(lambda: {"labels": self.explorer.labels(export=True)})

    async def label(self, request: Request) -> Response:
        given = await _posted(request)
        target, label, note = given.get("target"), given.get("label"), given.get("note", "")
        if not _is_target(target) or not isinstance(label, (str, type(None))) or not isinstance(note, str):
            raise HTTPException(
                400,
                'a label is {"target": {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}, "label", "note"}',
            )

        def write() -> dict:
            self.explorer.set_label(target, label, note)
            return {"saved": True}

        return await run_in_threadpool(_answer, write)

    async def try_text(self, request: Request) -> Response:
        text = (await _posted(request)).get("text")
        if not isinstance(text, str) or not text.strip():
            raise HTTPException(400, 'send {"text": some words}')
        if self._try_text is None:
            raise HTTPException(404, "this explorer has no model to try a text on")
        try:
            return JSONResponse(await run_in_threadpool(self._try_text, text))
        except UserError as error:
            raise HTTPException(404, str(error)) from None


class Guard:
    """Refuses requests for a host that is not this machine and POSTs from other origins; puts HEADERS on every answer."""

    def __init__(self, app, host: str):
        self.app, self._host = app, host

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message) -> None:
            if message["type"] == "http.response.start":
                policy = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *policy]}
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        return await (self.app if refusal is None else refusal)(scope, receive, guarded)

    def _refusal(self, method: str, headers: dict[bytes, str]) -> Response | None:
        named = headers.get(b"host", "")
        if not self._is_here(_without_port(named)):
            return _error(403, f"this explorer does not answer to the name '{named}': open it at localhost")
        if method in ("GET", "HEAD"):
            return None
        # a browser always sends the origin with a POST; what sends none is no page
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", "same-origin")
        if origin not in (None, f"http://{named}") or site not in ("same-origin", "none"):
            return _error(403, "refused: the request comes from another site")
        if headers.get(b"content-type", "").split(";")[0].strip().lower() != "application/json":
            return _error(415, "send application/json")
        return None

    def _is_here(self, name: str) -> bool:
        if name in LOOPBACK:
            return True
        if self._host in LOOPBACK:
            return False
        # served to a network on the user's own wish: an address in digits cannot be pointed elsewhere, a name can
        return name in (self._host, socket.gethostname()) or _is_address(name)


def _answer(call: Callable[..., dict], *args, **kwargs) -> Response:
    """The query's answer, 404 for what is not there, 400 for wrong parameters."""
    try:
        return JSONResponse(call(*args, **kwargs), headers={"cache-control": "no-store"})
    except KeyError as error:
        raise HTTPException(404, str(error.args[0]) if error.args else "not found") from None
    except (ValueError, UserError) as error:
        raise HTTPException(400, str(error)) from None


def _read(request: Request, name: str, kind: type):
    """A query parameter as `kind`, None where it is absent or empty."""
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise HTTPException(400, f"{name} must be a number, not '{text[:40]}'") from None


def _is_target(given) -> bool:
    """Whether it names a latent or a split, be it there or not."""
    if not isinstance(given, dict):
        return False
    if given.get("kind") == "latent":
        return isinstance(given.get("sae"), str) and type(given.get("latent")) is int
    return given.get("kind") == "split" and isinstance(given.get("id"), str)


def _latent_of(request: Request, name: str) -> tuple[str, int]:
    sae, colon, latent = request.query_params.get(name, "").rpartition(":")
    if not colon or not (latent.isascii() and latent.isdigit()):
        raise HTTPException(400, f"{name} must be an SAE and a latent, as in solo-s0:17")
    return sae, int(latent)


async def _posted(request: Request) -> dict:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes")
    try:
        given = json.loads(body)
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(given, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return given


def plotly(request: Request) -> Response:
    return FileResponse(plotly_script(), media_type="text/javascript", headers={"cache-control": "max-age=3600"})


def _error(status: int, line: str) -> Response:
    return JSONResponse({"error": " ".join(line.split())}, status)


def _as_json(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail)


def _broken(request: Request, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}")


# how an application tells what went wrong
ERRORS = {HTTPException: _as_json, Exception: _broken}


def _without_port(named: str) -> str:
    """`localhost:80` -> `localhost`, `[::1]:80` -> `::1`."""
    if named.startswith("["):
        return named[1:].split("]")[0]
    return named.rsplit(":", 1)[0].lower() if ":" in named else named.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    # asyncio sends at once only where the protocol is named; else the end of every answer waits 40 ms for an acknowledgement
    listening = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(
            f"cannot serve on {host}:{port} ({getattr(error, 'strerror', None) or error}); choose another --port"
        ) from None
    return listening
