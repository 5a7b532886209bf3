"""A safetensors file written piece by piece, so that its tensors need not be in memory: 8 bytes of header length, JSON, the numbers."""

import json
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np

_NAMES = {"<i8": "I64", "<i4": "I32", "<u4": "U32", "<u2": "U16", "<f4": "F32", "<f2": "F16"}


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], np.dtype, Iterable[np.ndarray]]]) -> None:
    """tensors: name -> (shape, dtype, its numbers in order, in pieces of any shape and of that dtype).

    Raises ValueError where the pieces are not as many numbers as the shape says.
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
        for name, (shape, dtype, pieces) in tensors.items():
            left = prod(shape) * dtype.itemsize
            for piece in pieces:
                if piece.dtype != dtype:
                    raise ValueError(f"{name} is said to be {dtype}, a piece of it is {piece.dtype}")
                left -= piece.nbytes
                file.write(np.ascontiguousarray(piece))
            if left:
                raise ValueError(f"{name} lacks {left} of the bytes that its shape says")
