"""A comparison as LaTeX tables (booktabs), for papers: one for each pair of arms, one row for each measure, its conditions in the caption."""

from collections.abc import Iterator

from metasae.compare.catalogue import CATALOGUE, GROUPS
from metasae.compare.compare import conditions_line, number
from metasae.compare.verdict import change
from metasae.intervals.statistics import is_clear

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def as_latex(comparison: dict) -> str:
    """compare.tex: input it where the tables shall stand; needs the package booktabs. comparison: as `compare` makes it."""
    return "\n".join(line for name in comparison["pairs"] for line in _table(comparison, name)) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _table(comparison: dict, name: str) -> Iterator[str]:
    a, b = name.split(" vs ")
    pair = comparison["pairs"][name]
    yield r"\begin{table}"
    yield r"\caption{" + escaped(f"{a} against {b}. {conditions_line(comparison, (a, b)).replace('`', '')}")
    yield r"  Change with its 95\% interval over paired seeds and blocks of documents; bold: clear after Holm's correction (main measures)."
    yield r"  $\uparrow$, $\downarrow$: the direction that is more atomic or more faithful.}"
    yield r"\begin{tabular}{llrrr}"
    yield r"\toprule"
    yield rf"& & {escaped(b)} & {escaped(a)} & change \\"
    for group, title in GROUPS.items():
        quantities = [q for q in CATALOGUE if q.group == group and q.key in pair]
        if not quantities:
            continue
        yield r"\midrule"
        yield rf"\multicolumn{{5}}{{l}}{{\emph{{{escaped(title)}}}}} \\"
        for q in quantities:
            entry = pair[q.key]
            arrow = {"lower": r"$\downarrow$", "higher": r"$\uparrow$", None: ""}[q.better]
            told = escaped(change(q, entry))
            told = rf"\textbf{{{told}}}" if q.better and entry.get("p_holm") is not None and is_clear(entry) else told
            yield rf"{escaped(q.label)} & {arrow} & {number(entry['b'])} & {number(entry['a'])} & {told} \\"
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}", "")
