"""The pages of a sweep: one for all its cells, and each cell's own explorer at cell/NAME/.

A cell's store is built when it is first asked for.
"""

import threading
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metasae.explore.pages.queries import Explorer
from metasae.explore.pages.sweep_pages import cells_that_open, sweep_page
from metasae.explore.pages.trying import Trying
from metasae.explore.store.build import build
from metasae.explore.web.guard import fresh, guarded
from metasae.explore.web.page_files import STATIC, tagged
from metasae.explore.web.run_app import run_app
from metasae.progress.progress import SILENT, Progress

# In the head of index.html they tell the pages what they are part of.
OF_A_SWEEP = '<meta name="metasae-sweep" content="1">'
OF_A_CELL = '<meta name="metasae-cell" content="1">'


def sweep_app(folder: str | Path, host: str = "127.0.0.1", progress: Progress = SILENT) -> Starlette:
    """The application for a sweep's folder. host: the address it is served on. progress: of the cells' stores."""
    routes = [
        Route("/", _page(OF_A_SWEEP)),
        Route("/api/sweep", lambda request: fresh(sweep_page(folder))),
        Mount("/cell/{name}", _Cells(Path(folder), host, progress)),
    ]
    return guarded(routes, host)


def _page(tag: str):
    return lambda request: HTMLResponse(tagged(tag), headers={"cache-control": "no-store"})


class _Cells:
    """Passes what is asked of cell/NAME/ on to that cell's explorer.

    The pages come at once, the first answer when the store is built.
    """

    def __init__(self, folder: Path, host: str, progress: Progress):
        self._folder, self._host, self._progress = folder, host, progress
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
        """Opened once each; one store is built at a time."""
        with self._lock:
            if cell.name not in self._explorers:
                build(cell, self._progress)
                self._explorers[cell.name] = run_app(Explorer(cell), Trying(cell), self._host)
            return self._explorers[cell.name]
