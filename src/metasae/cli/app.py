"""The application that the verbs are added to, and the options that several verbs share. Every mistake of a user is one
line.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from metasae import __version__
from metasae.errors import UserError, nearest

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="sets a value of the recipe, e.g. train.lambda2=0.1; may be repeated"
    ),
]
Seeds = Annotated[
    str | None, typer.Option(help="a count (3 means seeds 0, 1 and 2) or a list (0,7; one seed alone: 7,)")
]
Arms = Annotated[str | None, typer.Option(help="the arms to train, e.g. solo,joint,control,sequential")]
Out = Annotated[Path | None, typer.Option(help="the run folder; runs/RECIPE by default")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or mps (Apple's GPU)")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
RecipeName = Annotated[str, typer.Argument(help="a shipped recipe's name (metasae recipes) or a TOML file")]

# Some releases of typer import click, others carry their own copy. In both this is the parent class of the errors for
# wrong arguments.
UsageError = typer.BadParameter.__bases__[0]


class Verbs(TyperGroup):
    """The verbs. A wrong verb, a wrong option and a missing argument each give an error of one line."""

    def make_context(self, *arguments, **options):
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx):
        with _in_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
    help="Train sparse autoencoders (SAEs) whose latents are meant to be atomic, one concept each, and measure whether "
    "they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        words = " ".join(error.format_message().split()).rstrip(".")
        wrong = re.match(r"No such command '([^']*)'", words)
        if wrong is not None:
            # newer releases of click add the nearest verb themselves, older ones do not
            words = wrong[0] + nearest(wrong[1], error.ctx.command.list_commands(error.ctx))
        verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
        raise UserError(f"{words}; see metasae {f'{verb} ' if verb else ''}--help") from None


def _print_version(asked: bool) -> None:
    if asked:
        print(f"metasae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def print_json(result: Any, asked: bool) -> None:
    """Prints the result of a verb on stdout if --json was given."""
    if asked:
        print(json.dumps(result, indent=2))


def overrides(set_: list[str] | None, seeds: str | None, arms: str | None) -> dict[str, Any]:
    """{dotted key: value} from --set, --seeds and --arms. Raises UserError for text that is not KEY=VALUE, and for
    wrong seeds.
    """
    from metasae.recipe.recipe import parse_override

    out = dict(parse_override(text) for text in set_ or [])
    if seeds is not None:
        out["seeds"] = seed_list(seeds)
    if arms is not None:
        out["arms"] = [arm.strip() for arm in arms.split(",")]
    return out


def seed_list(seeds: str) -> int | list[int]:
    """Reads --seeds: a count (3) or a list (0,7). A comma at the end makes a single number a list (7,).

    Raises UserError for anything else.
    """
    if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*(,\s*)?", seeds):
        raise UserError(f"--seeds takes a count (3) or a list (0,7; one alone: 7,), not '{seeds}'")
    numbers = [int(number) for number in re.findall("[0-9]+", seeds)]
    return numbers if "," in seeds else numbers[0]
