"""The command line: one verb per job, no logic. Rooms are imported when a verb runs, so `--help` is quick.

`runs.py`: training, measuring, comparing, sweeping. `latents.py`: looking at latents. `exchange.py`: other libraries
and the hub. Importing torch takes seconds. So a verb first calls the checks that need no torch, and imports torch after
them.
"""

import sys

# isort: off
# each module adds its verbs to the app; --help lists them in this order
from metasae.cli import runs, latents, exchange  # noqa: F401
from metasae.cli.app import app
from metasae.errors import UserError
# isort: on


def main() -> None:
    """Runs the `metasae` command. A UserError is printed as one line on stderr, without a traceback, and sets the exit
    code.
    """
    try:
        app()
    except UserError as error:
        print(f"metasae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
