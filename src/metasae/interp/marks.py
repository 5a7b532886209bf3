"""Writes windows for a judge: on one line, with marks that no text of the question contains, and with visible white
space.

Marked tokens stand between two marks. A line break, a tab and, at the edge of what is marked, a space have a sign each;
other characters that cannot be seen are written by their number. Marks and signs are the first of a short list of which
the texts of the question have no character, so none can be taken for text, and a legend names those that are used.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, groupby

import numpy as np

PAIRS = (("<<", ">>"), ("[[", "]]"), ("⟦", "⟧"), ("⟪", "⟫"), ("⦅", "⦆"), ("❰", "❱"))
OPEN, CLOSE = PAIRS[0]
LINES, TABS, SPACES = ("↵", "⏎", "␤"), ("⇥", "␉"), ("␣", "␠")
# Kinds of characters that are not visible alone, as they combine with another one.
_COMBINING = ("Mn", "Me")
# Kinds that would break or control a line.
_CONTROLS = ("Cc", "Zl", "Zp")


@dataclass(frozen=True)
class Shown:
    """A window as it is shown. strings: the piece of text of each token, as `metasae.data.text.pieces` cuts them.
    marked: bool [L].
    """

    strings: tuple[str, ...]
    marked: np.ndarray

    @property
    def spread(self) -> np.ndarray:
        """bool [L]: the marks where there is text to mark: that of a part of a character is on the character."""
        places = [place for place, string in enumerate(self.strings) if string]
        spread = np.zeros(len(self.strings), bool)
        if places:
            # the next token with text, or the last one
            nearest = np.minimum(np.searchsorted(places, np.flatnonzero(self.marked)), len(places) - 1)
            spread[np.array(places)[nearest]] = True
        return spread

    def __str__(self) -> str:
        return Marks.of([self]).line_of(self)


@dataclass(frozen=True)
class Marks:
    """The marks and signs in the texts of one question. code: the text before the number of a character."""

    open: str
    close: str
    line: str
    tab: str
    space: str
    code: str

    @classmethod
    def of(cls, windows: Sequence[Shown]) -> "Marks":
        """The first marks and signs that none of the windows contains."""
        letters = "".join(string for window in windows for string in window.strings)
        pair = next((pair for pair in PAIRS if not set(letters) & set("".join(pair))), None) or _numbered_pair(letters)
        signs = {"line": LINES, "tab": TABS, "space": SPACES, "char": ("{U+",)}
        return cls(*pair, *(_sign(options, name, letters) for name, options in signs.items()))

    def line_of(self, window: Shown) -> str:
        """A window on one line. Spaces before a marked word stay outside its mark; at the ends they are left out."""
        pairs = zip(window.spread.tolist(), window.strings, strict=True)
        # tokens without text belong to no run
        runs = groupby(((mark, string) for mark, string in pairs if string), key=lambda pair: pair[0])
        return "".join(self._run(mark, [string for _, string in run]) for mark, run in runs).strip(" ")

    def legend(self, windows: Sequence[Shown], lines: Sequence[str]) -> str:
        """What the marks and signs that these windows use stand for; "" where they use none.

        lines: `line_of` each window.
        """
        text = "".join(lines)
        marks = f"{self.open} stands before and {self.close} behind what is marked. "
        marks = marks if any(window.spread.any() for window in windows) else ""
        signs = {
            self.line: "a line break",
            self.tab: "a tab",
            self.space: "a space",
            f"{self.code}...}}": "a character that cannot be seen, by its number",
        }
        used = [f"{sign} is {meaning}" for sign, meaning in signs.items() if sign.removesuffix("...}") in text]
        return f"{marks}{', '.join(used)}{'.' if used else ''}".strip()

    def _run(self, marked: bool, strings: list[str]) -> str:
        text = "".join(strings)
        if not marked:
            return self._plain(text)
        # a token of spaces has nothing but its spaces to mark
        body = text.lstrip(" ") if strings[0].strip(" ") else text
        return f"{' ' * (len(text) - len(body))}{self.open}{self._marked(body)}{self.close}"

    def _marked(self, body: str) -> str:
        if not any(map(_is_seen, body)):
            return "".join(self.space if letter == " " else self._named(letter) for letter in body)
        core = body.strip(" ")
        before, _, behind = body.partition(core)
        return f"{self.space * len(before)}{self._plain(core)}{self.space * len(behind)}"

    def _plain(self, text: str) -> str:
        # most text has none: a control character is never printable, and the check of a whole string is quick
        if text.isprintable():
            return text
        return "".join(self._named(letter) if unicodedata.category(letter) in _CONTROLS else letter for letter in text)

    def _named(self, letter: str) -> str:
        return {"\n": self.line, "\t": self.tab}.get(letter) or f"{self.code}{ord(letter):04X}}}"


def _is_seen(letter: str) -> bool:
    return letter.isprintable() and not letter.isspace() and unicodedata.category(letter) not in _COMBINING


def _sign(options: Sequence[str], name: str, letters: str) -> str:
    """The first option that is not among the letters; else the name after a brace, with a number."""
    return next((sign for sign in options if sign not in letters), None) or _numbered("{%s%d ", name, letters)


def _numbered(form: str, name: str, letters: str) -> str:
    return next(sign for number in count(1) if (sign := form % (name, number)) not in letters)


def _numbered_pair(letters: str) -> tuple[str, str]:
    """Tags: each has `<` at its beginning alone, so that no text can run on into one."""
    number = next(number for number in count(1) if f"mark{number}>" not in letters)
    return f"<mark{number}>", f"</mark{number}>"
