"""docs/api.md is what the docstrings say, and says something of every public name."""

from pathlib import Path

import metasae
from tools.api_page import GROUPS, page


def test_the_page_is_up_to_date():
    written = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == page(), "run `python -m tools.api_page docs/api.md`"


def test_every_public_name_is_on_it():
    shown = [name for names, _ in GROUPS.values() for name in names]
    assert sorted(shown) == sorted(metasae.__all__)
    for name in shown:
        assert (getattr(metasae, name).__doc__ or "").strip(), name
