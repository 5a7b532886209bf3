"""The files of the pages: those in `static/`, plotly.js from its package, and index.html with tags in its head."""

from importlib.resources import files
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
# In the head of index.html they tell the pages what they are part of.
STATIC_TAG = '<meta name="metasae-static" content="1">'
OF_A_SWEEP = '<meta name="metasae-sweep" content="1">'
OF_A_CELL = '<meta name="metasae-cell" content="1">'


def plotly_script() -> Path:
    """The plotly.min.js of the installed plotly package."""
    return Path(str(files("plotly"))) / "package_data" / "plotly.min.js"


def tagged(*tags: str) -> str:
    """index.html with tags in its head."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    return page.replace("<title>", "".join(f"{tag}\n" for tag in tags) + "<title>", 1)
