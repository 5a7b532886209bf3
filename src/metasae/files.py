"""Reads and writes files so that each is complete or absent: it is written under a temporary name and then renamed."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metasae.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib as toml
else:
    import tomli as toml

__all__ = ["json_safe", "read_json", "read_tensors", "toml", "write", "write_json", "write_tensors", "write_text"]


def write(path: Path, writer: Callable[[Path], None]) -> None:
    """Calls `writer` with a temporary path in the folder of `path`, then renames the result to `path`. A failure leaves
    `path` unchanged.

    The temporary name is always the same, so a file that a killed process left is overwritten. Processes that may write
    one path at the same time must hold a lock.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(part)
        os.replace(part, path)
    except Exception as error:
        part.unlink(missing_ok=True)
        # safetensors wraps the operating system's error in a class of its own, so the message is checked too
        if isinstance(error, OSError) or "os error" in str(error).lower() or "I/O error" in str(error):
            raise UserError(
                f"cannot write {path}: {error}; free some space or choose another --out, then run again"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8; complete or not at all, as `write`."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON. A missing number is null; NaN raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_safe(value: Any) -> Any:
    """The value with plain numbers and lists in place of numpy's and torch's, and None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if hasattr(value, "tolist"):
        return json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes {name: tensor} as a safetensors file; complete or not at all, as `write`."""
    from safetensors.torch import save_file

    write(path, lambda part: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError if the file is missing or is not JSON."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {path}: it is not a regular file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again") from None


def read_tensors(path: Path) -> dict:
    """{name: tensor} of a safetensors file. Raises UserError if the file is missing, truncated or not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None
