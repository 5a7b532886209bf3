"""A comparison as LaTeX tables (booktabs), for papers: one for each pair of arms, its conditions in the caption."""

from pathlib import Path

from metasae.compare.pair import by_pair
from metasae.compare.tables import conditions_line
from metasae.compare.templates import fill

# What LaTeX reads as its own -> how it prints it.
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def as_latex(comparison: dict) -> str:
    """compare.tex: input it where the tables shall stand; needs the package booktabs.

    comparison: as `compare` makes it.
    """
    template, pairs = Path(__file__).with_name("compare.tex"), by_pair(comparison["pairs"])
    return fill(template, comparison=comparison, pairs=pairs, conditions_line=conditions_line, latex=escaped) or "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(str.maketrans(_SPECIAL))
