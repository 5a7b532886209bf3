"""Any source of text as a stream of documents, each of which belongs to one split by the hash of its words.

Sources: `docs`, a local .txt, .jsonl(.gz), .json(.gz) or .parquet file, a folder of such files, a folder made by
`datasets.save_to_disk`, or the name of a dataset on the Hugging Face hub, which is streamed.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from metasae.data.text import documentation, hub
from metasae.data.text.hub import column_of, reason
from metasae.errors import UserError, install_hint, nearest
from metasae.recipe.recipe import Text

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
LONG_TEXT = 8_000
_SAMPLE, _WHOLE = 1 << 20, 128 << 20
_PIECES, _PIECE = 1024, 1 << 14
SplitName = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "evaluation")


def documents(text: Text) -> Iterator[str]:
    """The documents of a recipe's text in their order, without NULs; empty ones are left out.

    Raises UserError for a missing file, a wrong column, a damaged file, or a dataset that cannot be had.
    """
    if text.source == "docs":
        return clean(documentation.documents())
    if is_local(text.source):
        return clean(read(local_path(text.source), text))
    return clean(hub.documents(text))


def clean(source: Iterable[str]) -> Iterator[str]:
    """Documents without NULs; the empty ones are left out."""
    for document in source:
        document = document.replace("\0", "")
        if document.strip():
            yield document


def split_of(document: str, text: Text) -> SplitName:
    """The split a document belongs to: a fixed function of its words, whatever stands around it."""
    digest = hashlib.blake2b(document.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
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
    """What decides the documents: the recipe's values, and for local files their names, sizes and samples of their
    bytes.

    Raises UserError when a local file is missing.
    """
    if text.source == "docs":
        return text.model_dump(exclude={"name", "split", "column"})
    if not is_local(text.source):
        return text.model_dump()
    path = local_path(text.source)
    return text.model_dump(exclude={"name"}) | {"source": path.name, "files": digest(path)}


def read(path: Path, text: Text) -> Iterator[str]:
    """Documents of a file or of every file in a folder, sorted by name.

    Raises UserError for a missing or unknown file, a missing column and a damaged file.
    """
    if is_saved_dataset(path):
        yield from _read_saved(path, text)
        return
    for file in files_in(path):
        try:
            yield from _read_file(file, text)
        except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise UserError(
                f"{file} cannot be read as {file.suffix} text ({error}); repair it or leave it out"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot read {file}: {error.strerror or error}; check the file and its permissions"
            ) from None


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


def _read_file(file: Path, text: Text) -> Iterator[str]:
    if file.name.endswith(".txt"):
        with open(file, encoding="utf-8", newline="") as lines:
            yield from cut_long_text(lines)
    elif file.name.endswith(".parquet"):
        yield from _read_parquet(file, text.column)
    else:
        opener = gzip.open if file.name.endswith(".gz") else open
        with opener(file, "rt", encoding="utf-8") as lines:
            if ".jsonl" in file.name:
                records = (json.loads(line) for line in lines if line.strip())
            else:
                records = json.load(lines)
                if not isinstance(records, list):
                    raise UserError(
                        f"{file} must hold a list of strings or of records; "
                        "write one record a line and name it .jsonl otherwise"
                    )
            for record in records:
                yield column_of(record, text.column, file)


def cut_long_text(lines: Iterable[str]) -> Iterator[str]:
    """A short text is one document. A long one is cut at blank lines (or at line ends where there are none), losing
    nothing.

    A book or a corpus in one file would otherwise be a single document, and a single document cannot be split.
    """
    document, length = [], 0
    for line in lines:
        document.append(line)
        length += len(line)
        if length >= LONG_TEXT and (not line.strip() or length >= 2 * LONG_TEXT):
            yield "".join(document)
            document, length = [], 0
    if document:
        yield "".join(document)


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading .parquet needs pyarrow: {install_hint('datasets')}") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            column_of(dict.fromkeys(table.schema_arrow.names), column, file)
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield column_of({column: value}, column, file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is damaged ({reason(error)}); repair it or leave it out") from None


def _read_saved(path: Path, text: Text) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"reading a saved dataset needs the datasets library: {install_hint('datasets')}") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the dataset saved in '{path}' cannot be read: {reason(error)}; save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        if text.split not in loaded:
            raise UserError(
                f"the dataset in '{path}' has no split '{text.split}'{nearest(text.split, loaded)}; set text.split"
            )
        loaded = loaded[text.split]
    column_of(dict.fromkeys(loaded.column_names), text.column, f"the dataset in '{path}'")
    for record in loaded.select_columns([text.column]):
        yield column_of(record, text.column, path)
