"""Any source of text as a stream of documents, each of which belongs to one split by the hash of its words.

Sources: `docs`, a local .txt, .jsonl(.gz), .json(.gz) or .parquet file, a folder of such files, a folder made by
`datasets.save_to_disk`, or the name of a dataset on the Hugging Face hub, which is streamed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from metasae.data.text import documentation, files_of_text, hub
from metasae.recipe.recipe import Text

SplitName = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "evaluation")


def documents(text: Text) -> Iterator[str]:
    """The documents of a recipe's text in their order, without NULs; empty ones are left out.

    Raises UserError for a missing file, a wrong column, a damaged file, or a dataset that cannot be had.
    """
    if text.source == "docs":
        return clean(documentation.documents())
    if is_local(text.source):
        return clean(files_of_text.read(local_path(text.source), text))
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
    like_a_path = source.startswith((".", "/", "~")) or source.endswith(files_of_text.SUFFIXES) or source.count("/") > 1
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
    return text.model_dump(exclude={"name"}) | {"source": path.name, "files": files_of_text.digest(path)}
