"""The explorer's web server for this machine: a run, or a sweep with each cell's own explorer at cell/NAME/."""

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.pages.sweep_pages import cells_that_open, is_sweep, sweep_page
from metasae.explore.pages.trying import Trying
from metasae.explore.store.build import build
from metasae.explore.web.application import fresh, guarded, run_app
from metasae.explore.web.page_files import OF_A_CELL, OF_A_SWEEP, STATIC, tagged
from metasae.progress.progress import SILENT, Progress


def app(
    folder: str | Path, host: str = "127.0.0.1", progress: Progress = SILENT, write: Callable | None = None
) -> Starlette:
    """The application for a run's folder, whose store is built where it is missing or stale, or for a sweep's.

    host: the address it is served on; requests must name it, or this machine. progress: of the stores that are built.
    write: what writes text with a latent steered, as for `Trying`; None leaves steering out.

    Raises UserError when the folder is neither.
    """
    if not is_sweep(folder):
        build(folder, progress)
        trying = Trying(folder, write)
        return run_app(Explorer(folder), trying, host, trying.steer if write else None)
    routes = [
        Route("/", _page(OF_A_SWEEP)),
        Route("/api/sweep", lambda request: fresh(sweep_page(folder))),
        Mount("/cell/{name}", _Cells(Path(folder), host, progress, write)),
    ]
    return guarded(routes, host)


def _page(tag: str):
    return lambda request: HTMLResponse(tagged(tag), headers={"cache-control": "no-store"})


class _Cells:
    """Passes requests for cell/NAME/ to that cell's explorer, whose store is built at the first request.

    The pages are sent at once, the first answer when the store is built.
    """

    def __init__(self, folder: Path, host: str, progress: Progress, write: Callable | None):
        self._folder, self._host, self._progress, self._write = folder, host, progress, write
        self._lock, self._explorers = threading.Lock(), {}
        self._pages = Starlette(routes=[Route("/", _page(OF_A_CELL)), Mount("/", StaticFiles(directory=STATIC))])

    async def __call__(self, scope, receive, send) -> None:
        name, path = scope["path_params"]["name"], scope["path"][len(scope["root_path"]) :]
        cell = cells_that_open(self._folder).get(name)
        if cell is None:
            raise KeyError(f"the sweep has no cell '{name}' with trained SAEs")
        if not path.startswith(("/api/", "/plotly.min.js")):
            return await self._pages(scope, receive, send)
        explorer = await run_in_threadpool(self._explorer, cell)
        return await explorer(scope, receive, send)

    def _explorer(self, cell: Path) -> Starlette:
        """The cell's explorer, opened once; one store is built at a time."""
        with self._lock:
            if cell.name not in self._explorers:
                self._explorers[cell.name] = app(cell, self._host, self._progress, self._write)
            return self._explorers[cell.name]


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    progress: Progress = SILENT,
    write: Callable | None = None,
) -> None:
    """Serves a run or a sweep until Ctrl-C. port 0: any free one. write: as for `app`.

    Raises UserError when the folder is neither, the port is taken or the address is not this machine's.
    """
    import uvicorn

    with listen(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        config = uvicorn.Config(
            app(folder, host, progress, write),
            log_level="warning",
            timeout_graceful_shutdown=2,
            server_header=False,
            date_header=False,
        )
        print(f"{Path(folder).name}: {address}   (Ctrl-C stops)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # uvicorn shuts down at the signal, then passes it on
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the port is taken or the address is not this machine's."""
    # asyncio sends at once only where the protocol is named; else every answer's end waits 40 ms for an acknowledgement
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
