"""Grids and search spaces: `train.lambda2=0.1,0.3`, JSON lists, and `train.lambda2=0.03..1:log` for a search."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metasae.errors import UserError, nearest
from metasae.files import toml
from metasae.recipe.recipe import Recipe, parse_override

# Tables that may differ between the cells of a sweep. Everything else is equal, so that one harvest serves all cells
# and all are measured alike.
TABLES = ("sae", "meta", "train")


@dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included. log: drawn evenly in the logarithm. Only whole numbers if both ends
    are whole.
    """

    low: int | float
    high: int | float
    log: bool = False


Axis = tuple[Any, ...] | Range


def parse_grid(entries: Sequence[str]) -> dict[str, Axis]:
    """Reads --grid; returns {key: its values, or the range that a search draws from}, in the order given.

    entries: each `KEY=V,V`, `KEY=[JSON list]` or `KEY=LOW..HIGH[:log]`.
    Raises UserError for an entry of another form, a key given twice, and a key that a sweep cannot vary. Values are
    checked later, with the other values of their cell.
    """
    axes: dict[str, Axis] = {}
    for entry in entries:
        key, _, values = (part.strip() for part in entry.partition("="))
        if not key or not values:
            raise UserError(f"--grid takes KEY=VALUE,VALUE, not '{entry}'")
        if key in axes:
            raise UserError(f"--grid names {key} twice; give all its values in one, {key}=V,V")
        _check_key(key)
        axes[key] = _range(key, values) or _listed(key, values)
    return axes


def expand(axes: Mapping[str, Axis]) -> list[dict[str, Any]]:
    """All combinations of the values; the last key varies fastest. Raises UserError for a range."""
    for key, axis in axes.items():
        if isinstance(axis, Range):
            raise UserError(
                f"{key}={axis.low}..{axis.high} is a range, which only a search can use; add --search N, or list values"
            )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _check_key(key: str) -> None:
    table, _, name = key.partition(".")
    if table == "hook":
        raise UserError(
            f"a sweep cannot vary {key}: cells share one harvest; `metasae run --points` takes several hook points"
        )
    if table not in TABLES or not name:
        raise UserError(
            f"a sweep cannot vary {key}, only keys of {', '.join(TABLES)}; use --set for values that are the same for "
            "all cells"
        )
    known = Recipe.model_fields[table].annotation.model_fields
    if name.partition(".")[0] not in known:
        raise UserError(f"unknown key '{key}'{nearest(key, [f'{table}.{field}' for field in known])}")


def _range(key: str, text: str) -> Range | None:
    match = re.fullmatch(r"\s*([^,\[\]]+?)\s*\.\.\s*([^,\[\]]+?)\s*(:log)?\s*", text)
    if match is None:
        return None
    low, high = (parse_override(f"{key}={end}")[1] for end in match.group(1, 2))
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high:
        raise UserError(f"{key}={text}: a range is LOW..HIGH, with LOW less than HIGH")
    if match.group(3) and low <= 0:
        raise UserError(f"{key}={text}: a range with :log must start above 0")
    return Range(low, high, bool(match.group(3)))


def _listed(key: str, text: str) -> tuple[Any, ...]:
    """The values of a JSON list, of a TOML array without its brackets (tables too), or of bare words between commas."""
    if text.startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--grid {key}={text} is not a JSON list: {error}") from None
        if not values:
            raise UserError(f"--grid {key}={text}: give at least one value")
        return tuple(values)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"--grid {key}={text}: a value is missing between two commas")
    try:
        return tuple(toml.loads(f"values = [{text}]")["values"])
    except toml.TOMLDecodeError:
        return tuple(parse_override(f"{key}={part}")[1] for part in parts)
