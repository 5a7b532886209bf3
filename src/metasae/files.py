"""Files that are whole or absent: written beside their place, then renamed into it; checked when read."""

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
    """Calls `writer` with a place beside `path`, then renames the result into `path`. A failure leaves `path` as it
    was.

    The place has one name, so that what a killed process left is written over; two that may write one path at once take
    a lock.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(part)
        os.replace(part, path)
    except Exception as error:
        part.unlink(missing_ok=True)
        # safetensors wraps the operating system's error in its own class, so the words are looked at too
        if isinstance(error, OSError) or "os error" in str(error).lower() or "I/O error" in str(error):
            raise UserError(
                f"cannot write {path}: {error}; free some space or choose another --out, then run again"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """JSON without NaN: a missing number is null."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_safe(value: Any) -> Any:
    """Numpy and torch numbers and arrays as plain ones; NaN and infinity as None."""
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
    from safetensors.torch import save_file

    write(path, lambda part: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata))


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or is not JSON."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {path}: it is no plain file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again") from None


def read_tensors(path: Path) -> dict:
    """name -> tensor. Raises UserError when the file is missing, truncated or not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None
