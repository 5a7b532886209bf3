"""Pictures of the explorer for the documentation: python -m tools.screenshots RUN OUT

Writes overview.png, latent.png and split.png, 1280 pixels wide: the run's overview, its best split of words, and that
split's first child. Of a sweep's folder it writes sweep.png.
Needs playwright and a Chromium; `CHROMIUM` names one that is not found by itself.
"""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.pages.sweep_pages import is_sweep
from metasae.explore.store.build import build
from metasae.explore.web import server

WIDTH = 1280
HEIGHTS = {"overview": 1120, "latent": 1000, "split": 1000, "sweep": 1905}
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-background-networking")


def take_screenshots(run_folder: str | Path, out: str | Path, theme: str = "light", width: int = WIDTH) -> list[Path]:
    """Builds the store where needed and writes the pictures; returns their paths. theme: light or dark.

    Raises UserError where playwright or Chromium is missing, or the run has no SAE or the sweep no result.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("pictures of the pages need playwright: pip install playwright") from None
    pages = {"sweep": "sweep"} if is_sweep(run_folder) else _pages_of_run(Path(run_folder))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with served(server.app(run_folder)) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=list(OPTIONS))
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=theme, device_scale_factor=1)
        for name, path in pages.items():
            page.set_viewport_size({"width": width, "height": HEIGHTS[name]})
            page.goto(f"{address}#/{path}")
            page.wait_for_function("wanted => document.body.dataset.shown === wanted", arg=f"#/{path}")
            if page.locator(".chart").count():
                page.wait_for_selector(".chart .main-svg")
            page.wait_for_timeout(300)
            page.screenshot(path=str(out / f"{name}.png"))
        browser.close()
    return [out / f"{name}.png" for name in pages]


def _pages_of_run(run_folder: Path) -> dict[str, str]:
    build(run_folder)
    return pages_of(Explorer(run_folder))


def pages_of(explorer) -> dict[str, str]:
    """Which pages are shown: name of the picture -> address."""
    overview = explorer.overview()
    if not overview["saes"]:
        raise UserError("this run has no trained SAE to show yet")
    splits = explorer.splits(limit=50)["rows"]
    # a split of words is easier to follow than one of commas
    splits = [split for split in splits if _of_words(split)] or splits
    if not splits:
        name = overview["saes"][0]["name"]
        first = explorer.latents(name, limit=1)["rows"]
        return {"overview": "overview", "latent": f"latent/{name}/{first[0]['latent'] if first else 0}"}
    child = splits[0]["children"][0]
    return {
        "overview": "overview",
        "latent": f"latent/{child['sae']}/{child['latent']}",
        "split": f"split/{splits[0]['id']}",
    }


def _of_words(split: dict) -> bool:
    return all(any(letter.isalpha() for letter in token) for token in split["parent"]["top_tokens"])


def find_chromium() -> str:
    """The browser's path. Raises UserError where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise UserError("no Chromium found; install it, or name its path in CHROMIUM")
    return path


@contextlib.contextmanager
def served(application) -> Iterator[str]:
    """The application on a free port of this machine while the block runs; gives its address."""
    import uvicorn

    listening = server.listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(application, log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join(10)


def main(arguments: list[str]) -> int:
    if not 2 <= len(arguments) <= 3:
        print("usage: python -m tools.screenshots RUN OUT [light|dark]", file=sys.stderr)
        return 2
    try:
        for path in take_screenshots(*arguments):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
