"""The files of the pages: those in `static/`, plotly.js from its package, and index.html with tags in its head."""

from importlib.resources import files
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
# In the head of index.html they tell the pages what they are part of.
STATIC_TAG = '<meta name="metasae-static" content="1">'
OF_A_SWEEP = '<meta name="metasae-sweep" content="1">'
OF_A_CELL = '<meta name="metasae-cell" content="1">'

# What index.html shows until its modules run. Browsers load modules over http only, so from the disk they never do.
_WAITING = "<noscript>The explorer needs JavaScript.</noscript>"
_AS_FILE = """<section class="card as-file"><h1>These pages need a web server</h1>
<p>A browser does not run them from the disk. In the folder of this file, run</p><pre>python -m http.server 8000</pre>
<p>and open <code>http://localhost:8000</code>.</p></section>"""


def plotly_script() -> Path:
    """The plotly.min.js of the installed plotly package."""
    return Path(str(files("plotly"))) / "package_data" / "plotly.min.js"


def tagged(*tags: str) -> str:
    """index.html with tags in its head; as part of a static copy it says how to serve it where no module runs."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    if STATIC_TAG in tags:
        page = page.replace(_WAITING, _AS_FILE, 1)
    return page.replace("<title>", "".join(f"{tag}\n" for tag in tags) + "<title>", 1)
