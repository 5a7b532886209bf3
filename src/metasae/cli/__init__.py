"""The command line: one verb per job, no logic. Rooms are imported when a verb runs, so `--help` is quick.

`runs.py`: training, measuring, comparing, sweeping. `latents.py`: looking at latents. `exchange.py`: other libraries and the hub.
"""

import sys

import typer

from metasae.errors import UserError

app = typer.Typer(
    help="Train sparse autoencoders whose latents are meant to be atomic, and measure whether they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The `metasae` command. A user's error is one line on stderr and its exit code; no traceback."""
    try:
        app()
    except UserError as error:
        # that another rank ended was printed when it became known
        if not error.printed:
            print(f"metasae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


# each adds its verbs to the app, in the order in which --help lists them
from metasae.cli import runs  # noqa: E402, F401, I001
from metasae.cli import latents  # noqa: E402, F401
from metasae.cli import exchange  # noqa: E402, F401
