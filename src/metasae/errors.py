"""The exceptions for users, suggestions for a wrong name, and how a missing extra is installed."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Interrupted(UserError):
    """The run was stopped by a signal after its state was saved. The message says how to continue."""

    exit_code = 130


class Dropped(UserError):
    """A connection broke while text was read from it. Everything done so far is kept. The message ends with how to
    continue.
    """


def install_hint(extra: str) -> str:
    """The command that installs an extra of pyproject.toml. metasae is not on a package index, so pip is given the
    clone.
    """
    return f"pip install -e '.[{extra}]' in the clone of metasae"


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error line with a suggestion: `; did you mean 'x'?`, or all options if none is similar."""
    options = [str(option) for option in options]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(options)}" if options else ""
