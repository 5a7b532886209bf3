"""The application that the verbs are added to; every mistake is one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperGroup

from metasae import __version__
from metasae.errors import UserError, nearest

# Typer takes click from outside or carries its own, by version; either way this is the parent of what it raises for
# wrong arguments.
UsageError = typer.BadParameter.__bases__[0]


class Verbs(TyperGroup):
    """The verbs; a wrong one, a wrong option and a missing argument are one line each."""

    def make_context(self, *arguments, **options):
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx):
        with _in_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
    help="Train sparse autoencoders whose latents are meant to be atomic, and measure whether they are.",
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
            # newer releases of click name the nearest one too, older ones do not
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
