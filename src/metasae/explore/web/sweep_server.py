"""The pages of a sweep: one for all its cells, and each cell's own explorer at cell/NAME/, whose store is built when it is first asked for."""

import shutil
import threading
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metasae import files
from metasae.errors import UserError
from metasae.explore.pages.sweep_pages import cells_that_open, sweep_page
from metasae.explore.web import server
from metasae.progress.progress import SILENT, Progress

# In the head of index.html they tell the pages what they are part of.
OF_A_SWEEP = '<meta name="metasae-sweep" content="1">'
OF_A_CELL = '<meta name="metasae-cell" content="1">'


def sweep_app(folder: str | Path, host: str = "127.0.0.1", progress: Progress = SILENT) -> Starlette:
    """The application for a sweep's folder. host: as in `metasae.explore.web.server.app`. progress: of the stores of cells that are opened."""

    def sweep(request: Request) -> Response:
        try:
            return JSONResponse(sweep_page(folder), headers={"cache-control": "no-store"})
        except UserError as error:
            raise HTTPException(400, str(error)) from None

    routes = [
        Route("/", _page(OF_A_SWEEP)),
        Route("/api/sweep", sweep),
        Route("/plotly.min.js", server.plotly),
        Mount("/cell/{name}", _Cells(Path(folder), host, progress)),
        Mount("/", StaticFiles(directory=server.STATIC)),
    ]
    application = Starlette(routes=routes, exception_handlers=server.ERRORS)
    application.add_middleware(server.Guard, host=host)
    return application


def tagged(*tags: str) -> str:
    """index.html with tags in its head."""
    page = (server.STATIC / "index.html").read_text(encoding="utf-8")
    return page.replace("<title>", "".join(f"{tag}\n" for tag in tags) + "<title>", 1)


def write_sweep(folder: Path, out: Path, tag: str) -> Path:
    """The sweep's page as files; the cells' own explorers are not among them. Returns index.html, which is written last."""
    found = sweep_page(folder, shown_as=folder.resolve().name)
    files.write_json(out / "data" / "api" / "sweep.json", found)
    shutil.copytree(server.STATIC, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html"))
    shutil.copyfile(server.plotly_script(), out / "plotly.min.js")
    files.write_text(out / "index.html", tagged(tag, OF_A_SWEEP))
    return out / "index.html"


def _page(tag: str):
    def page(request: Request) -> Response:
        return HTMLResponse(tagged(tag), headers={"cache-control": "no-store"})

    return page


class _Cells:
    """Passes what is asked of cell/NAME/ on to that cell's explorer. The pages come at once, the first answer when the store is built."""

    def __init__(self, folder: Path, host: str, progress: Progress):
        self._folder, self._host, self._progress = folder, host, progress
        self._lock, self._explorers = threading.Lock(), {}
        self._pages = Starlette(routes=[Route("/", _page(OF_A_CELL)), Mount("/", StaticFiles(directory=server.STATIC))])

    async def __call__(self, scope, receive, send) -> None:
        name, path = scope["path_params"]["name"], scope["path"][len(scope["root_path"]) :]
        cell = cells_that_open(self._folder).get(name)
        if cell is None:
            raise HTTPException(404, f"the sweep has no cell '{name}' with trained SAEs")
        if not path.startswith(("/api/", "/plotly.min.js")):
            return await self._pages(scope, receive, send)
        try:
            explorer = await run_in_threadpool(self._explorer, cell)
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        return await explorer(scope, receive, send)

    def _explorer(self, cell: Path) -> Starlette:
        """Opened once each; one store is built at a time."""
        from metasae.explore.store.build import build

        with self._lock:
            if cell.name not in self._explorers:
                build(cell, self._progress)
                self._explorers[cell.name] = server.app(cell, host=self._host)
            return self._explorers[cell.name]
