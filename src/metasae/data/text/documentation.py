"""The prose of the documentation on this machine: the standard library's and the installed packages'.

One document is the prose of one file: a module's docstrings, a README, a distribution's description, a topic of the
language reference. Packages are never imported; their files are only read.
"""

import hashlib
import os
import site
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from metasae.data.text.prose import docstrings, paragraphs

MIN_WORDS = 40
MAX_BYTES = 2_000_000
MAX_CHARACTERS = 16_000
# fmt: off
_SKIPPED_FOLDERS = {
    "tests", "test", "testing", "__pycache__", "node_modules", "_vendor", "_vendored", "vendor", "licenses", "lib2to3",
    "idlelib",
}
_SKIPPED_NAMES = (
    "license", "licence", "copying", "notice", "authors", "third", "test_", "conftest", "top_level", "entry_points",
    "sources", "vocab",
)
# fmt: on
_PROSE_SUFFIXES = (".md", ".rst", ".txt")


def documents() -> Iterator[str]:
    """Documents of at least MIN_WORDS words and about MAX_CHARACTERS at most, paragraphs apart by a blank line, no
    paragraph twice.

    The order is fixed by the files' names and mixes the packages, so that any beginning of it is a fair sample of the
    whole.
    """
    digests: set[bytes] = set()
    for _, read in sorted(_sources(), key=lambda source: _digest(source[0])):
        kept, length = [], 0
        for paragraph in read():
            digest = _digest(paragraph.lower())
            if digest not in digests:
                digests.add(digest)
                kept.append(paragraph)
                length += len(paragraph)
            if length > MAX_CHARACTERS:
                break
        if sum(paragraph.count(" ") + 1 for paragraph in kept) >= MIN_WORDS:
            yield "\n\n".join(kept)


def roots() -> list[Path]:
    """The standard library and every folder this interpreter installs packages into, each once."""
    paths = sysconfig.get_paths()
    folders = [paths["stdlib"], paths["purelib"], paths["platlib"], *getattr(site, "getsitepackages", list)()]
    return list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders if os.path.isdir(folder)))


def _sources() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """(a name that is the same on every machine, a function that reads the paragraphs)."""
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield f"topics/{topic}", partial(paragraphs, text)
    for root in roots():
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(
                name for name in folders if name not in _SKIPPED_FOLDERS and not name.endswith(("-packages", ".libs"))
            )
            relative = os.path.relpath(folder, root)
            for file in files:
                wanted = file == "METADATA" or file.endswith((".py", *_PROSE_SUFFIXES))
                if wanted and not file.lower().startswith(_SKIPPED_NAMES):
                    yield f"{relative}/{file}", partial(_read, os.path.join(folder, file))


def _read(path: str) -> list[str]:
    """Paragraphs of prose in one file; none where it cannot be read or is too large to be written by hand."""
    try:
        if os.path.getsize(path) > MAX_BYTES:
            return []
        with open(path, encoding="utf-8", errors="ignore") as file:
            text = file.read()
    except OSError:
        return []
    if path.endswith(".py"):
        # told at a glance; cutting a file into comments and strings takes longer
        if '"""' not in text and "'''" not in text:
            return []
        return [paragraph for docstring in docstrings(text) for paragraph in paragraphs(docstring)]
    if path.endswith("METADATA"):
        text = text.partition("\n\n")[2]  # the description follows the headers
    return paragraphs(text)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=16).digest()
