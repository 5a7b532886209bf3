"""docs/recipe.md, made from the recipe's classes: `python -m tools.recipe_page docs/recipe.md`."""

import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from metasae.recipe.recipe import Recipe, Table
from metasae.recipe.registry import Known

HEAD = """# Every key of a recipe

A recipe is a TOML file. A key that it leaves out has the default below; shipped recipes often have another value
(`metasae recipes NAME` prints a shipped recipe). `--set TABLE.KEY=VALUE` sets a value, and
`metasae run RECIPE --dry-run` prints every value that a run would use.
This page is made by `python -m tools.recipe_page docs/recipe.md`.
"""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any"}


def page() -> str:
    """The page as Markdown: the keys outside tables first, then each table of the recipe."""
    plain = {name: field for name, field in Recipe.model_fields.items() if not _is_table(field)}
    parts = [HEAD, "## Outside tables\n", _rows(plain)]
    for name, field in Recipe.model_fields.items():
        if _is_table(field):
            parts += _table(name, field.annotation)
    return "\n".join(parts)


def _table(name: str, table: type[Table]) -> list[str]:
    """A table's part of the page, and those of the tables in it."""
    summary = " ".join((table.__doc__ or "").partition("\n\n")[0].split())
    plain = {key: field for key, field in table.model_fields.items() if not _is_table(field)}
    parts = [f"## `[{name}]`\n", f"{summary}\n", _rows(plain)]
    for key, field in table.model_fields.items():
        if _is_table(field):
            parts += _table(f"{name}.{key}", field.annotation)
    return parts


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Table)


def _rows(fields: dict[str, FieldInfo]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (
            f"`{name}`",
            _kind(field.annotation, field.metadata),
            f"`{_default(field.default)}`",
            field.description or "",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _kind(annotation: Any, metadata: list | tuple = ()) -> str:
    """What a value may be, in words; metadata: its bounds, or the registry that holds its names."""
    for validator in metadata:
        if isinstance(getattr(validator, "func", None), Known):
            return ", ".join(f"`{_default(name)}`" for name in validator.func.table)
    bounds = ", ".join(
        f"{words} {_default(getattr(bound, name))}"
        for bound in metadata
        for name, words in _BOUNDS.items()
        if hasattr(bound, name)
    )
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return ", ".join(f"`{_default(choice)}`" for choice in arguments)
    if kind is Annotated:
        nested = [
            each for extra in arguments[1:] for each in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return _kind(arguments[0], nested)
    if kind is tuple:
        inner = [_kind(each) for each in arguments if each is not Ellipsis]
        return f"list of {inner[0]}" if arguments[-1] is Ellipsis else f"list of {len(inner)}: {', '.join(inner)}"
    if kind is dict:
        return f"table: name = {_kind(arguments[1])}"
    if kind in (Union, UnionType):
        return " or ".join(_kind(each) for each in arguments)
    return _PLAIN[annotation] + (f", {bounds}" if bounds else "")


def _default(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_default, value))}]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.recipe_page docs/recipe.md")
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
