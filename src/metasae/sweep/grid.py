"""Grids and search spaces: `train.lambda2=0.1,0.3`, JSON lists, and `train.lambda2=0.03..1:log` for a search."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli

from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe, parse_override

# What may differ between the cells of a sweep. Everything else is the same for all, so that one harvest serves and all
# are judged alike.
TABLES = ("sae", "meta", "train")


@dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included; log: evenly in the logarithm. Whole numbers where both ends are."""

    low: int | float
    high: int | float
    log: bool = False


Axis = tuple[Any, ...] | Range


def parse_grid(entries: Sequence[str] | Mapping[str, Any] | None) -> dict[str, Axis]:
    """key -> its values, or the range that a search draws from, in the order given.

    entries: `KEY=V,V`, `KEY=[JSON list]` or `KEY=LOW..HIGH[:log]` each; or a mapping from key to a list of values, a
    `Range` or such a string.
    Raises UserError for an entry of another form, a key given twice, and a key that a sweep cannot vary.
    """
    pairs = list(entries.items()) if isinstance(entries, Mapping) else [_halves(entry) for entry in entries or ()]
    axes: dict[str, Axis] = {}
    for key, values in pairs:
        if key in axes:
            raise UserError(f"--grid names {key} twice; give all its values in one, {key}=V,V")
        _check_key(key)
        axes[key] = _axis(key, values)
    return axes


def expand(axes: Mapping[str, Axis]) -> list[dict[str, Any]]:
    """Every combination of the values, the last key fastest; one that comes twice is left out.

    Raises UserError for a range.
    """
    for key, axis in axes.items():
        if isinstance(axis, Range):
            raise UserError(
                f"{key}={axis.low}..{axis.high} is a range, which a grid cannot go through; add --search N, or list "
                "values"
            )
    settings: dict[str, dict] = {}
    for values in itertools.product(*axes.values()):
        setting = dict(zip(axes, values, strict=True))
        settings.setdefault(json.dumps(setting, sort_keys=True), setting)
    return list(settings.values())


def check(base: Recipe, axes: Mapping[str, Axis]) -> None:
    """Raises UserError for a key that the recipe does not have; values are looked at with their cell, as they may
    depend on each other.
    """
    for key in axes:
        table, name = key.split(".")[:2]
        known = type(base).model_fields[table].annotation.model_fields
        if name not in known:
            raise UserError(f"unknown key '{key}'{nearest(key, [f'{table}.{field}' for field in known])}")


def _halves(entry: str) -> tuple[str, str]:
    key, _, values = entry.partition("=")
    if not key.strip() or not values.strip():
        raise UserError(f"--grid takes KEY=VALUE,VALUE, not '{entry}'")
    return key.strip(), values.strip()


def _check_key(key: str) -> None:
    table = key.partition(".")[0]
    if table == "hook":
        raise UserError(
            f"a sweep cannot vary {key}: cells share one harvest; `metasae run --points` takes several hook points"
        )
    if table not in TABLES or "." not in key:
        raise UserError(
            f"a sweep cannot vary {key}, only keys of {', '.join(TABLES)}; give what is the same for all cells "
            "with --set"
        )


def _axis(key: str, values: Any) -> Axis:
    if isinstance(values, str):
        values = _range(key, values) or _listed(key, values)
    if isinstance(values, Range):
        return values
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{key}: give a list of values, not {values!r}")
    return tuple(values)


def _range(key: str, text: str) -> Range | None:
    match = re.fullmatch(r"\s*([^,\[\]]+?)\s*\.\.\s*([^,\[\]]+?)\s*(:log)?\s*", text)
    if match is None:
        return None
    low, high = (parse_override(f"{key}={end}")[1] for end in match.group(1, 2))
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high:
        raise UserError(f"{key}={text}: a range is LOW..HIGH with two rising numbers")
    if match.group(3) and low <= 0:
        raise UserError(f"{key}={text}: a range in the logarithm starts above 0")
    return Range(low, high, bool(match.group(3)))


def _listed(key: str, text: str) -> list[Any]:
    """Values of a JSON list, of a TOML array without its brackets (tables too), or bare words between commas."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--grid {key}={text} is no JSON list: {error}") from None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"--grid {key}={text}: a value is missing between two commas")
    try:
        return tomli.loads(f"values = [{text}]")["values"]
    except tomli.TOMLDecodeError:
        return [parse_override(f"{key}={part}")[1] for part in parts]
