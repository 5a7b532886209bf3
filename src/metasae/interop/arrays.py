"""Reads untrusted numpy files: `.npy` and `.npz`, never unpickled, and no larger in memory than on the disk."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from metasae.errors import UserError
from metasae.interop.checked import check_zip, first_line, numbers, refuse_missing, shown

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(path: Path, n: int) -> Tensor:
    """The numbers in a `.npy` file, fp32 [n]; infinity is allowed."""
    refuse_missing(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's reader raises many kinds of errors
        raise UserError(f"{path} is refused: no plain array of numbers ({first_line(error)})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != (n,):
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} holds {what}, not {n} floating-point numbers")
    return numbers(torch.from_numpy(np.array(array, np.float32)), "the array", str(path), infinite=True)


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a `.npz` file of floating-point numbers by their names, fp32; whether they are finite is not
    looked at.

    Raises UserError for a damaged or compressed file, pickled objects, and arrays of anything else.
    """
    check_zip(path, "file of np.savez")
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            try:
                arrays[name] = _array(archive, entry)
            except Exception as error:  # a hostile record can make the reader fail in any way
                raise UserError(
                    f"{path} is refused: {shown(name)} is no plain array of floating-point numbers "
                    f"({first_line(error)})"
                ) from None
    return arrays


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """One record in fp32. Raises ValueError, or whatever numpy raises, for one that is not an array of floating-point
    numbers.
    """
    with archive.open(entry) as record:
        version = npy.read_magic(record)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = _HEADERS[version](record)
        if dtype.kind != "f":
            raise ValueError("pickled objects" if dtype.hasobject else f"dtype {dtype}")
        # before memory is allocated
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"shape {shape} but fewer numbers")
    with archive.open(entry) as record, np.errstate(over="ignore"):
        # beyond the range of fp32 a number becomes infinite, which is refused where it may not be
        return torch.from_numpy(np.array(npy.read_array(record, allow_pickle=False), np.float32))
