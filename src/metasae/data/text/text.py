"""Reads any source of text as a stream of documents. The hash of a document's content decides its split.

Sources: `docs` and `machine`, a local .txt, .csv(.gz), .jsonl(.gz), .json(.gz) or .parquet file, a folder of such
files, a folder made by `datasets.save_to_disk`, or the name of a dataset on the Hugging Face hub, which is streamed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from metasae.data.text import documentation, hub, machine
from metasae.data.text.readers import read_file, read_saved
from metasae.data.text.records import COLUMN, Document, content_of
from metasae.encodings import readable
from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Text

# Sources that any machine has, in words.
BUILT_IN = {
    "docs": "the documentation on this machine (technical English)",
    "machine": "the documentation, manual pages and code comments on this machine (technical English)",
}
# Kinds of documents (`kind_of`), in words.
_KINDS = {
    "text": "text",
    "chats": "chats, read with the model's chat template",
    "token ids": "token ids as given",
}
SUFFIXES = (".txt", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_SAMPLE, _WHOLE = 1 << 20, 128 << 20
_PIECES, _PIECE = 1024, 1 << 14
SplitName = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "evaluation")


def documents(text: Text) -> Iterator[Document]:
    """The documents of a recipe's text in their order, as `clean` gives them.

    Raises UserError for a missing file, a wrong column, a value that is no document, a damaged file, or a dataset that
    cannot be loaded.
    """
    if text.source == "docs":
        return clean(documentation.documents())
    if text.source == "machine":
        return clean(machine.documents())
    if is_local(text.source):
        return clean(read(local_path(text.source), text))
    return clean(hub.documents(text))


def clean(source: Iterable[Document]) -> Iterator[Document]:
    """Documents without NULs, with U+FFFD for half a character (`readable`); the empty ones are left out."""
    for document in source:
        if isinstance(document, str):
            document = readable(document.replace("\0", ""))
            if not document.strip():
                continue
        yield document


def in_words(text: dict, kinds: Iterable[str] = ()) -> str:
    """A description of a harvest's text. text: as `identity` has it. kinds: of its documents (`kind_of`)."""
    source = text["source"]
    if source in BUILT_IN:
        return BUILT_IN[source]
    place = source
    if "files" not in text:
        place = f"the dataset {' '.join(filter(None, (source, text['name'])))}, split {text['split']}"
    if text["column"] != COLUMN:
        place += f", column {text['column']}"
    kinds = set(kinds)
    ways = [words for kind, words in _KINDS.items() if kind in kinds]
    return f"{place}: {' and '.join(ways)}" if kinds - {"text"} else place


def split_of(document: Document, text: Text) -> SplitName:
    """The split that a document belongs to: a fixed function of its content alone."""
    digest = hashlib.blake2b(content_of(document), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < text.calibration_share:
        return "calibration"
    return "evaluation" if place < text.calibration_share + text.evaluation_share else "train"


def is_local(source: str) -> bool:
    """Whether a source names a place on this disk: it exists, or it is written as a path."""
    like_a_path = source.startswith((".", "/", "~")) or source.endswith(SUFFIXES) or source.count("/") > 1
    return like_a_path or local_path(source).exists()


def local_path(source: str) -> Path:
    return Path(source).expanduser()


def identity(text: Text) -> dict:
    """All that decides the documents: the recipe's values, and for local files their names, sizes and samples of their
    bytes.

    Raises UserError when a local file is missing.
    """
    if text.source in BUILT_IN:
        return text.model_dump(exclude={"name", "split", "column"})
    if not is_local(text.source):
        return text.model_dump()
    path = local_path(text.source)
    return text.model_dump(exclude={"name"}) | {"source": path.name, "files": digest(path)}


def read(path: Path, text: Text) -> Iterator[Document]:
    """Documents of a file or of every file in a folder, sorted by name.

    Raises UserError for a missing or unknown file, a missing column, a value that is no document and a damaged file.
    """
    if is_saved_dataset(path):
        yield from read_saved(path, text)
        return
    for file in files_in(path):
        yield from read_file(file, text)


def files_in(path: Path) -> list[Path]:
    """The files of text that a path names. Raises UserError when there is none."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"text.source '{path}' is not a kind of file that can be read; known: {', '.join(SUFFIXES)}"
            )
        return [path]
    return files_within(path, "**/*", SUFFIXES, "text", f"text.source '{path}' is no file or folder")


def files_within(folder: Path, pattern: str, suffixes: tuple[str, ...], what: str, missing: str) -> list[Path]:
    """The files of a folder that match the pattern and end with one of the suffixes, sorted.

    Raises UserError for a folder that is not there (`missing`) or holds none (of `what`).
    """
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = nearest(folder.name, siblings)
        raise UserError(f"{missing}{hint if 'did you mean' in hint else '; check the path'}")
    files = [file for file in _all_files(folder, pattern) if file.name.endswith(suffixes) and file.name[0] != "."]
    if not files:
        raise UserError(f"the folder '{folder}' holds no {what}; put files there that end with {', '.join(suffixes)}")
    return files


def _all_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def digest(path: Path) -> str:
    """A hash over names and contents of the files; of large ones over samples (`state_of_file`)."""
    state = hashlib.blake2b(digest_size=16)
    for file in _all_files(path) if is_saved_dataset(path) else files_in(path):
        state.update(f"{file.relative_to(path) if file != path else file.name}\0".encode())
        state_of_file(state, file)
    return state.hexdigest()


def state_of_file(state, file: Path) -> None:
    """Adds a file's size and bytes to a hash: all of them up to 128 MiB, else the first and last MiB and 1,024 evenly
    spaced pieces.

    A matrix of a language model is wider than the space between two pieces, so a model with one matrix edited has
    another hash.
    """
    size = file.stat().st_size
    state.update(f"{size}\0".encode())
    with open(file, "rb") as handle:
        if size <= _WHOLE:
            while block := handle.read(_SAMPLE):
                state.update(block)
            return
        pieces = [(number * (size - _PIECE) // (_PIECES - 1), _PIECE) for number in range(_PIECES)]
        for start, length in [(0, _SAMPLE), *pieces, (size - _SAMPLE, _SAMPLE)]:
            handle.seek(start)
            state.update(handle.read(length))


def is_saved_dataset(path: Path) -> bool:
    return path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file())
