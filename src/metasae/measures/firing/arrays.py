"""A folder of raw little-endian arrays under an index: whole or absent, memory-mapped when read.

FOLDER/index.json    kind and version, facts, and of every array its dtype, shape, size and checksum
FOLDER/NAME.bin      the numbers of one array, in order; no header, so it is written before its length is known

These are plain files that any language can map, without pickles.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.files import read_json, write_json

INDEX = "index.json"


@dataclass(frozen=True)
class Kind:
    """What a folder holds, in words, and the version of its layout.

    arrays: name -> dtype of every array that belongs to it; optional: likewise, of those that may be missing.
    """

    name: str
    version: int
    arrays: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)


class ArrayFile:
    """Appends to one array file, and works out its checksum on the way."""

    def __init__(self, folder: Path, name: str, dtype: str):
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = open(_file(folder, name), "wb")  # noqa: SIM115 (it stays open until `close`)

    def append(self, values: np.ndarray) -> None:
        """Appends values [m], of the file's dtype or one that converts to it."""
        values = np.ascontiguousarray(values, self.dtype)
        self._digest.update(values)
        self._file.write(values)
        self.length += len(values)

    def close(self) -> None:
        self._file.close()

    def entry(self) -> dict:
        """The array's entry in the index."""
        return _entry(self.dtype, self.length, self._digest.hexdigest())


def empty_array(folder: Path, name: str, dtype: str, length: int) -> np.ndarray:
    """A new array file of zeros, mapped for writing in any order; its entry comes from `entry_of` once it is filled."""
    with open(_file(folder, name), "wb") as file:
        if length and hasattr(os, "posix_fallocate"):
            # a full disk is an error here, not a crash when a page of the map is written
            os.posix_fallocate(file.fileno(), 0, length * np.dtype(dtype).itemsize)
    # an empty file cannot be mapped
    return np.memmap(_file(folder, name), dtype, "r+", shape=(length,)) if length else np.empty(0, dtype)


def entry_of(array: np.ndarray) -> dict:
    """The index entry of an array that is written already; reads it through for its checksum."""
    return _entry(array.dtype, len(array), hashlib.blake2b(array, digest_size=16).hexdigest())


@contextmanager
def whole_folder(folder: Path, kind: Kind) -> Iterator[Path]:
    """Yields a new folder beside `folder` to write to; it takes the place of `folder` at the end, or is removed on an
    error.

    A finished folder of the same kind is replaced, and so is what a killed write left. Raises UserError when `folder`
    holds anything else, and when the disk is full or cannot be written.
    """
    if folder.exists() and not _is(folder, kind):
        raise UserError(f"{folder} exists and is no {kind.name}; choose another folder or delete it")
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    try:
        for leftover in (part, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {folder}: {error}; free some space or choose another folder, then run again"
            ) from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_index(folder: Path, kind: Kind, facts: dict, arrays: dict[str, dict]) -> None:
    """Writes index.json, last of all. facts: JSON values that stand beside the arrays' entries."""
    write_json(folder / INDEX, {"kind": kind.name, "version": kind.version, **facts, "arrays": arrays})


def read_index(folder: Path, kind: Kind) -> dict:
    """The contents of index.json. Raises UserError when there is none, or one of another kind or version."""
    if not (folder / INDEX).is_file():
        raise UserError(f"no {kind.name} in {folder}; write it first")
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("kind") != kind.name:
        raise UserError(f"{folder} holds no {kind.name}; choose another folder")
    if index.get("version") != kind.version:
        raise UserError(
            f"the {kind.name} {folder} is of version {index.get('version')}, not {kind.version}; "
            "delete it and write it again"
        )
    return index


def open_arrays(folder: Path, kind: Kind, index: dict) -> dict[str, np.ndarray]:
    """name -> read-only memory-map.

    Raises UserError for a file that is missing, or has another size or dtype than the index says.
    """
    maps = {}
    present = {name: dtype for name, dtype in kind.optional.items() if name in index.get("arrays", {})}
    for name, dtype in (kind.arrays | present).items():
        file = _file(folder, name)
        try:
            entry = index["arrays"][name]
            length = int(entry["shape"][0])
            fits = entry == _entry(np.dtype(dtype), length, entry["blake2b"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise damaged(folder, kind, f"its index does not describe '{name}'") from None
        if not fits:
            raise damaged(folder, kind, f"its index contradicts itself about '{name}'")
        if not file.is_file():
            raise damaged(folder, kind, f"{file.name} is missing")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise damaged(folder, kind, f"{file.name} has {size} bytes instead of {entry['bytes']}")
        # an empty file cannot be mapped
        maps[name] = np.memmap(file, dtype, "r", shape=(length,)) if length else np.frombuffer(b"", dtype)
    return maps


def damaged(folder: Path, kind: Kind, why: str) -> UserError:
    return UserError(f"the {kind.name} {folder} is damaged: {why}; delete the folder and write it again")


def _is(folder: Path, kind: Kind) -> bool:
    """Whether `folder` may be replaced: it is empty, or holds any version of the same kind."""
    if not (folder / INDEX).is_file():
        return folder.is_dir() and not any(folder.iterdir())
    try:
        index = read_json(folder / INDEX)
    except UserError:
        return False
    return isinstance(index, dict) and index.get("kind") == kind.name


def _entry(dtype: np.dtype, length: int, blake2b: str) -> dict:
    return {"dtype": dtype.str, "shape": [length], "bytes": length * dtype.itemsize, "blake2b": blake2b}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"
