"""The command line: one verb per job, no logic. Rooms are imported when a verb runs, so `--help` is quick.

`runs.py`: training, measuring, comparing, sweeping. `latents.py`: looking at latents. `exchange.py`: other libraries
and the hub. What can be refused without torch is refused before it is imported, which takes seconds: a verb calls its
room's checks first.
"""

import sys

# isort: off
# each adds its verbs to the app, in the order in which --help lists them
from metasae.cli import runs, latents, exchange  # noqa: F401
from metasae.cli.app import app
from metasae.errors import UserError
# isort: on


def main() -> None:
    """The `metasae` command. A user's error is one line on stderr and its exit code; no traceback."""
    try:
        app()
    except UserError as error:
        print(f"metasae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
