"""More of the prose on a machine than `docs`: that of `docs`, manual pages, plain text about installed programs, and
comments.

One document is the prose of one file. Files are only read. A folder that does not exist gives no documents: a container
without manuals has the documents of `docs` and the comments of the Python sources.
"""

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from metasae.data.text import documentation
from metasae.data.text.documentation import MAX_BYTES, Source
from metasae.data.text.prose import comments, paragraphs
from metasae.data.text.roff import running_text

_TEXT_SUFFIXES = (".txt", ".md", ".rst")
_TEXT_NAMES = ("readme", "news", "faq")
# licences, and lists of single changes
_SKIPPED_NAMES = ("copyright", "licen", "changelog", "changes", "authors")


def documents() -> Iterator[str]:
    """As `metasae.data.text.documentation.documents`, from more files: no paragraph occurs twice, and all kinds are
    mixed.
    """
    return documentation.documents_of([*documentation.sources(), *_sources()])


def shares() -> list[Path]:
    """The folders of manuals and documents of installed programs, each once."""
    folders = (
        "/usr/share",
        "/usr/local/share",
        "/opt/homebrew/share",
        "/Library/Developer/CommandLineTools/usr/share",
        os.path.join(sys.prefix, "share"),
    )
    return list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders if os.path.isdir(folder)))


def _sources() -> Iterator[Source]:
    for name, path in documentation.files():
        if path.endswith(".py"):
            yield f"{name}#", partial(_read, path, comments)
    for share in shares():
        # pages in other languages lie in folders of their own
        for page in share.glob("man/man*/*"):
            yield f"man/{page.name}", partial(_read, str(page), _manual)
        for path in filter(_is_text, share.glob("doc/**/*")):
            yield str(path.relative_to(share)), partial(_read, str(path), paragraphs)


def _is_text(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    wanted = name.endswith(_TEXT_SUFFIXES) or name.startswith(_TEXT_NAMES)
    return wanted and not name.startswith(_SKIPPED_NAMES)


def _manual(page: str) -> list[str]:
    return paragraphs(running_text(page))


def _read(path: str, prose: Callable[[str], list[str]]) -> list[str]:
    """Paragraphs of prose in one file; none where it cannot be read or is too large to be written by hand."""
    try:
        if os.path.getsize(path) > MAX_BYTES:
            return []
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8", errors="ignore")
    except (OSError, EOFError, zlib.error):
        return []
    return prose(text)
