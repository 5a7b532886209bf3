"""The one exception that reaches a user, the nearest right name for a wrong one, and how what is missing is
installed.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Interrupted(UserError):
    """The run was stopped by a signal after its state was saved; the message says how to go on."""

    exit_code = 130


class Dropped(UserError):
    """A connection broke while text came over it. What was done until then is kept; the message ends with how to go
    on.
    """


def install_hint(extra: str) -> str:
    """How an extra of pyproject.toml is installed. metasae is on no package index, so pip is given the clone."""
    return f"pip install -e '.[{extra}]' in the clone of metasae"


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint ending for an error line: `; did you mean 'x'?`, or the options when nothing is near."""
    options = [str(option) for option in options]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(options)}" if options else ""
