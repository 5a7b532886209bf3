"""Reads untrusted files: their size, names, shapes and numbers are checked, and no code in them is run.

JSON is small and not deep; safetensors are opened by their header first; a `.pt` file is an uncompressed zip archive
whose pickle may build tensors and plain values only (torch's `weights_only`). numpy's files: `arrays.py`. Any fault of
a file raises one UserError that names the file. torch is imported where tensors are read, not before: configs are read
without it.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from metasae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
# Limits far beyond any config, so low that JSON is parsed in a second and copied without running out of stack.
JSON_BYTES, JSON_DEPTH = 1 << 25, 100
_WORDS = {int: "a positive whole number", bool: "true or false", str: "a text"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; NaN and infinity become None."""
    refuse_missing(path)
    if path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a config")
    try:
        return parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def parse_object(text: bytes | str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object, not {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        tables = [entry.values() for entry in level if isinstance(entry, dict)]
        lists = [entry for entry in level if isinstance(entry, list)]
        level = [*chain(*tables, *lists)]
    if level:
        raise UserError(f"{where} is nested deeper than {JSON_DEPTH} levels")
    return value


def count(cfg: Mapping, key: str, where: str, latents: int | None = None) -> int:
    """A whole number above 0. latents: the most that it may be, where it counts latents."""
    number = typed(cfg, key, where, int)
    if latents is not None and number > latents:
        raise UserError(f"{where}: {key} is {number}, more than the {latents} latents")
    return number


def typed(cfg: Mapping, key: str, where: str, kind: type, default: Any = ...) -> Any:
    """The value of a key, which must be of one of the kinds in `_WORDS`; numbers above 0.

    default: what an absent key stands for; without it the key must be there.
    """
    value = cfg.get(key, default)
    if value is ...:
        raise UserError(f"{where} lacks '{key}'")
    if type(value) is not kind or (kind is int and value < 1):
        raise UserError(f"{where}: {key} must be {_WORDS[kind]}, not {shown(value)}")
    return value


def choice(
    cfg: Mapping,
    key: str,
    where: str,
    known: Iterable[str],
    default: Any = ...,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A text that is one of `known`. refused: other values -> why an SAE here cannot represent them."""
    name = typed(cfg, key, where, str, default)
    if name in refused:
        raise UserError(f"{where}: {key} '{name}' cannot be represented: {refused[name]}")
    if name not in known:
        raise UserError(f"{where}: {key} {shown(name)} is not known here; known: {', '.join(known)}")
    return name


def table(cfg: Mapping, key: str, where: str) -> dict:
    """A JSON object; absent and null count as an empty one."""
    inner = {} if cfg.get(key) is None else cfg[key]
    if not isinstance(inner, dict):
        raise UserError(f"{where}: {key} must be a JSON object, not {type(inner).__name__}")
    return inner


def without_none(values: Mapping) -> dict:
    return {key: value for key, value in values.items() if value is not None}


def shown(value: Any) -> str:
    """A value from a file in a form that is safe in an error line."""
    line = repr(value)
    return line if len(line) <= 60 else line[:57] + "..."


def tensor_shapes(path: Path) -> Shapes:
    """Name -> shape of all tensors in a safetensors file, or in the shards of its `.index.json`; reads no numbers."""
    return {name: tuple(file.get_slice(name).get_shape()) for file, name in _entries(path)}


def read_tensors(path: Path, shapes: Shapes, infinite: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file in fp32, which must be exactly those of `shapes`.

    infinite: names of tensors that may hold infinity.
    """
    check_shapes(tensor_shapes(path), shapes, str(path))
    tensors = {name: file.get_tensor(name) for file, name in _entries(path)}
    return {name: numbers(tensors[name], name, str(path), name in infinite) for name in shapes}


def check_shapes(present: Shapes, wanted: Shapes, where: str) -> None:
    """Raises UserError where the tensors of a file are not those that its config says."""
    for name, shape in wanted.items():
        if name not in present:
            raise UserError(f"{where} lacks the tensor '{name}'")
        if present[name] != shape:
            raise UserError(f"{where}: {name} has shape {present[name]}, not {shape} as its config says")
    if unknown := sorted(set(present) - set(wanted)):
        raise UserError(f"{where} holds the tensor {shown(unknown[0])}, which is not understood here")


def numbers(tensor: Tensor, name: str, where: str, infinite: bool = False) -> Tensor:
    """The tensor in fp32, a copy or the tensor itself. Raises UserError for anything but finite floating-point
    numbers.
    """
    import torch

    if not tensor.is_floating_point():
        raise UserError(f"{where}: {name} has dtype {tensor.dtype}, not a floating-point one")
    tensor = tensor.detach().float()
    if torch.isnan(tensor).any() or (not infinite and torch.isinf(tensor).any()):
        raise UserError(f"{where}: {name} holds NaN{'' if infinite else ' or inf'}")
    return tensor


def read_pt(path: Path) -> dict:
    """The dict in a `.pt` file: tensors and plain values. No tensor in it is larger than its record in the file."""
    import torch

    check_zip(path, "checkpoint of torch 1.6 or later")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make the reader fail in any way
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values ({first_line(error)})"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a dict, not {type(value).__name__}")
    return value


def state_of(value: Any, path: Path) -> dict[str, Tensor]:
    """A state dict: names -> dense tensors on the CPU, each backed by as many numbers as its shape says.

    value: what the file held. path: the file, for its size.
    """
    import torch

    where, size = str(path), path.stat().st_size
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no state dict but {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{where}: the state dict's {shown(name)} is no named tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise UserError(f"{where}: {name} is not a dense tensor")
        # a view with strides of 0 has any shape and next to no numbers; a storage may claim more than its record
        if tensor.numel() * tensor.element_size() > min(tensor.untyped_storage().nbytes(), size):
            raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)} but holds fewer numbers")
    return value


def take(state: dict[str, Tensor], shapes: Shapes, where: str, infinite: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a state dict in fp32, which must be exactly those of `shapes`."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, shapes, where)
    return {name: numbers(state[name], name, where, name in infinite) for name in shapes}


def refuse_missing(path: Path) -> None:
    """Raises UserError where `path` is not a plain file."""
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"no file {path}")


def _entries(path: Path) -> Iterator[tuple[Any, str]]:
    """(open file, name of a tensor in it) for every tensor of a safetensors file or of its shards."""
    from safetensors import SafetensorError, safe_open

    for shard in _shards(path):
        refuse_missing(shard)
        try:
            with safe_open(shard, framework="pt") as file:
                yield from ((file, name) for name in sorted(file.keys()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard} is damaged, or no safetensors file ({first_line(error)})") from None


def _shards(path: Path) -> list[Path]:
    """The file itself or, where it is in shards, those that `<path>.index.json` names, which must lie beside it."""
    index = path.with_name(f"{path.name}.index.json")
    if path.exists() or not index.exists():
        return [path]
    names = table(read_json(index), "weight_map", str(index)).values()
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise UserError(f"{index} names the shard {shown(name)}; a shard is a .safetensors file in the same folder")
    return [path.with_name(name) for name in dict.fromkeys(names)]


def check_zip(path: Path, kind: str) -> None:
    """Raises UserError for a zip bomb and for a record that points out of the archive. kind: what the file should be.

    torch and numpy store their records as they are, so what the archive declares cannot exceed the file.
    """
    refuse_missing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a broken directory can make the reader fail in many ways
        raise UserError(f"{path} is not a {kind}: it is no whole zip archive") from None
    for entry in entries:
        record = f"{path} is refused: its record {shown(entry.filename)}"
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{record} is compressed, which torch.save and np.savez never do")
        if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
            raise UserError(f"{record} points out of the archive")
    declared = sum(entry.file_size for entry in entries)
    if declared > path.stat().st_size:
        raise UserError(
            f"{path} is refused: it declares {declared:,} bytes of content in a file of {path.stat().st_size:,}"
        )


def first_line(error: Exception) -> str:
    """The first line of an error, in a form that is safe in an error line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:120].rstrip(".") if lines else type(error).__name__
