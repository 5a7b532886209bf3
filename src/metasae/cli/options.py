"""Options that several verbs share, and what they mean for a recipe."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from metasae.errors import UserError

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="overrides a value, e.g. train.lambda2=0.1")
]
Seeds = Annotated[str | None, typer.Option(help="how many seeds (3: 0, 1 and 2), or which (0,7; one alone: 7,)")]
Arms = Annotated[str | None, typer.Option(help="which arms, e.g. solo,joint,control,sequential")]
Out = Annotated[Path | None, typer.Option(help="the run folder; runs/RECIPE when not given")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout")]
RecipeName = Annotated[str, typer.Argument(help="a shipped recipe's name (metasae recipes) or a TOML file")]


def print_json(result: Any, asked: bool) -> None:
    """The result of a verb on stdout, where --json asks for it."""
    if asked:
        print(json.dumps(result, indent=2))


def overrides(set_: list[str] | None, seeds: str | None, arms: str | None) -> dict[str, Any]:
    """Dotted keys and their values. Raises UserError for what is none."""
    from metasae.recipe.recipe import parse_override

    out = dict(parse_override(text) for text in set_ or [])
    if seeds is not None:
        out["seeds"] = seed_list(seeds)
    if arms is not None:
        out["arms"] = [arm.strip() for arm in arms.split(",")]
    return out


def seed_list(seeds: str) -> int | list[int]:
    """A count (3) or a list (0,7); a comma at the end makes one number a list (7,).

    Raises UserError for anything else.
    """
    numbers = [part.strip() for part in seeds.split(",")]
    listed = len(numbers) > 1
    if listed and not numbers[-1]:
        numbers.pop()
    if not all(re.fullmatch("[0-9]+", number) for number in numbers):
        raise UserError(f"--seeds takes a count (3) or a list (0,7; one alone: 7,), not '{seeds}'")
    return [int(number) for number in numbers] if listed else int(numbers[0])
