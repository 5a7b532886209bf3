"""The prose of the documentation on this machine: the standard library's and the installed packages'.

One document is the prose of one file: a module's docstrings, a README, a distribution's description, a topic of the
language reference. Packages are never imported; their files are only read.
"""

import hashlib
import os
import site
import sysconfig
from collections.abc import Callable, Iterable, Iterator
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


# A file's name, which is the same on every machine, and a function that reads its paragraphs.
Source = tuple[str, Callable[[], list[str]]]


def documents() -> Iterator[str]:
    """The documents of `sources`, as `documents_of` gives them."""
    return documents_of(sources())


def documents_of(named: Iterable[Source]) -> Iterator[str]:
    """Documents of at least MIN_WORDS words and at most about MAX_CHARACTERS characters. Paragraphs are separated by a
    blank line, and none occurs twice.

    The order depends on the sources' names alone and mixes the sources, so that the first documents are a fair sample
    of all.
    """
    digests: set[bytes] = set()
    for _, read in sorted(named, key=lambda source: _digest(source[0])):
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


def sources() -> Iterator[Source]:
    """The topics of the language reference, and the files with docstrings or prose."""
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield f"topics/{topic}", partial(paragraphs, text)
    for name, path in files():
        yield name, partial(_read, path)


def files() -> Iterator[tuple[str, str]]:
    """(name below its root, path) of every Python source and file of prose."""
    for root in roots():
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(
                name for name in folders if name not in _SKIPPED_FOLDERS and not name.endswith(("-packages", ".libs"))
            )
            relative = os.path.relpath(folder, root)
            for file in names:
                wanted = file == "METADATA" or file.endswith((".py", *_PROSE_SUFFIXES))
                if wanted and not file.lower().startswith(_SKIPPED_NAMES):
                    yield f"{relative}/{file}", os.path.join(folder, file)


def _read(path: str) -> list[str]:
    """Paragraphs of prose in one file; none where the file cannot be read or is too large to be written by hand."""
    try:
        if os.path.getsize(path) > MAX_BYTES:
            return []
        with open(path, encoding="utf-8", errors="ignore") as file:
            text = file.read()
    except OSError:
        return []
    if path.endswith(".py"):
        # a quick test, as cutting a file into comments and strings takes longer
        if '"""' not in text and "'''" not in text:
            return []
        return [paragraph for docstring in docstrings(text) for paragraph in paragraphs(docstring)]
    if path.endswith("METADATA"):
        text = text.partition("\n\n")[2]  # the description follows the headers
    return paragraphs(text)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=16).digest()
