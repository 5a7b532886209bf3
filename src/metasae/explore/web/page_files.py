"""The files of the pages: those in `static/`, plotly.js from its package, and index.html with tags in its head."""

import importlib.resources
import shutil
from pathlib import Path

from metasae.errors import UserError

STATIC = Path(__file__).parents[1] / "static"


def plotly_script() -> Path:
    """The plotly.min.js of the installed plotly package. Raises UserError when it is not installed."""
    try:
        return Path(str(importlib.resources.files("plotly"))) / "package_data" / "plotly.min.js"
    except ModuleNotFoundError:
        raise UserError("the explorer draws with plotly, which is not installed: pip install plotly") from None


def tagged(*tags: str) -> str:
    """index.html with tags in its head, which tell the pages what they are part of."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    return page.replace("<title>", "".join(f"{tag}\n" for tag in tags) + "<title>", 1)


def copy_files(out: Path) -> None:
    """Everything but index.html, which is written last."""
    shutil.copytree(STATIC, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html"))
    shutil.copyfile(plotly_script(), out / "plotly.min.js")
