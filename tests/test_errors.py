"""What messages and pages say of installing: it works from a clone, as metasae is on no package index."""

import re
from pathlib import Path

from metasae.errors import install_hint
from metasae.files import toml

ROOT = Path(__file__).parents[1]
EXTRAS = toml.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]


def test_every_extra_that_is_named_exists():
    named = {
        name
        for path in PAGES
        for extras in re.findall(r"'\.\[([\w,-]+)\]'", path.read_text())
        for name in extras.split(",")
    }
    named |= {name for path in SOURCES for name in re.findall(r"install_hint\(['\"]([\w-]+)['\"]\)", path.read_text())}
    assert {"tracking", "datasets"} <= named <= EXTRAS.keys()
    assert install_hint("datasets").startswith("pip install -e '.[datasets]'")


def test_nothing_is_installed_by_a_name_that_no_index_has():
    wrong = re.compile(r"pip install ['\"]?metasae\b")
    assert not [str(path) for path in PAGES + SOURCES if path != Path(__file__) and wrong.search(path.read_text())]
