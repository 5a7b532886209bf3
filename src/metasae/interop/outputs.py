"""Output of exports: folders that are whole or absent, and safetensors files of tensors that may be larger than
memory.
"""

import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from metasae.errors import UserError

# numpy's dtype -> its name in a safetensors header
_NAMES = {"<i8": "I64", "<i4": "I32", "<u4": "U32", "<u2": "U16", "<f4": "F32", "<f2": "F16"}


def refuse_taken(out: Path) -> None:
    """Raises UserError where an export would overwrite something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' is there already and not an empty folder; choose another one")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` to write to, which takes its place at the end, or is removed on an error.

    Raises UserError where `out` is there and not an empty folder, and where the disk is full or cannot be written.
    """
    refuse_taken(out)
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; "
            "free some space or choose another folder, then export again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], np.dtype, Iterable[np.ndarray]]]) -> None:
    """Writes 8 bytes of header length, the header as JSON, and the numbers of one tensor after another.

    tensors: name -> (shape, dtype, its numbers in order, in pieces of any shape and of that dtype). safetensors' own
    writer takes whole tensors; those of an export may be larger than memory.
    """
    # wider numbers first, so that all are aligned
    tensors = dict(sorted(tensors.items(), key=lambda entry: -entry[1][1].itemsize))
    header, end = {}, 0
    for name, (shape, dtype, _) in tensors.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype.str], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, pieces in tensors.values():
            for piece in pieces:
                file.write(np.ascontiguousarray(piece))
