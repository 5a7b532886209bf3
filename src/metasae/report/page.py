"""The templates beside this file, and what they are filled with.

report.html     the page
latents.html    its part about single latents: how solo's split best, and which look least like one concept. Their
                windows of text are read from the explorer's store, so runs that keep their firings have this part.
compare.tex     tables for papers (booktabs), one for each pair of arms, its conditions in the caption
"""

import base64
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from metasae.compare.catalogue import CATALOGUE, Quantity, by_pair, grouped
from metasae.compare.tables import conditions_line, fill
from metasae.compare.verdict import verdict_lines
from metasae.compare.words import number
from metasae.recipe.registry import SUBJECT

Mean = tuple[float | None, list[int] | None]
SPLITS, WORST, WINDOWS = 10, 10, 4
# Tokens on either side of a window's peak.
AROUND = 10
# Which latents are the worst, by the first of these that the SAE has: (column, largest first, in words).
WORST_BY = (
    ("interp.detection.same_token", False, "lowest detection score against silent windows with the same token"),
    ("interp.embedding.same_token", False, "lowest embedding score against silent windows with the same token"),
    ("nearest_phi", True, "largest phi with another latent"),
)
# What LaTeX reads as its own -> how it prints it.
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def page(comparison: dict, recipe: dict[str, str], images: dict[str, bytes], latents: str = "") -> str:
    """The whole HTML document.

    recipe: dotted key -> value as text. images: name -> PNG. latents: HTML about single latents.
    """
    lines = groupby(verdict_lines(comparison), lambda line: line.kind == "evidence")
    of_groups = grouped({q.key for q in CATALOGUE})
    groups = [(title, table(comparison, quantities), quantities) for title, quantities in of_groups]
    return fill(
        Path(__file__).with_name("page.html"),
        comparison=comparison,
        pairs=by_pair(comparison["pairs"]),
        verdict=[(is_evidence, [line.text for line in of_kind]) for is_evidence, of_kind in lines],
        conditions=conditions_line(comparison).replace("`", ""),
        summary=table(comparison, [q for q in CATALOGUE if q.main]),
        images={name: base64.b64encode(image).decode("ascii") for name, image in images.items()},
        latents=latents,
        groups=[group for group in groups if group[1]],
        recipe=recipe,
        between=between,
    )


def table(comparison: dict, quantities: Sequence[Quantity]) -> list[tuple[Quantity, dict[str, Mean]]]:
    """(quantity, arm -> its mean) for the quantities that any arm has.

    A row's numbers are of the same seeds (`row_mean`).
    """
    rows = [(q, {arm: row_mean(comparison, arm, q.key) for arm in comparison["arms"]}) for q in quantities]
    return [(q, means) for q, means in rows if any(mean is not None for mean, _ in means.values())]


def row_mean(comparison: dict, arm: str, key: str) -> Mean:
    """(an arm's mean, its seeds where they are not all of the arm's), so that a row's numbers are of the same seeds.

    Over the seeds of the first pair whose change rests on fewer than the arm has, else the arm's own.
    """
    own = comparison["arms"][arm]
    every = len(own["values"].get(key, ()))
    for pair, entries in by_pair(comparison["pairs"]).items():
        entry = entries.get(key)
        if arm in pair and entry is not None and entry["n_seeds"] > 0 and (every == 0 or entry["n_seeds"] < every):
            seeds = [value["seed"] for value in entry["values"]]
            return entry["a" if arm == pair.arm else "b"], seeds if len(seeds) < len(own["seeds"]) else None
    return own["means"].get(key), None


def between(entry: dict, shown: Sequence[float | None]) -> str:
    """What a change is between, where that is not the two means of its row: of other seeds, or of two SAEs together."""
    means = entry["a"], entry["b"]
    if None in means or all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(means, shown, strict=True)):
        return ""
    return f"{number(means[0])} against {number(means[1])}"


def latents_sections(explorer, baseline: str) -> Markup:
    """HTML sections.

    explorer: the run's `metasae.explore.pages.queries.Explorer`. baseline: the arm whose latents split; the worst
    latents are those of joint, or of the first other arm.
    """
    saes = explorer.overview()["saes"]
    sae = min(saes, key=lambda sae: (sae["arm"] == baseline, sae["arm"] != SUBJECT, sae["name"]))["name"]
    ranking = explorer.splits(limit=SPLITS)
    return Markup(
        fill(
            Path(__file__).with_name("latents.html"),
            ranking=ranking,
            splits=[explorer.split(row["id"]) for row in ranking["rows"]],
            sae=sae,
            worst=_worst(explorer, sae),
            WINDOWS=WINDOWS,
            span=_span,
            one_per_child=_one_per_child,
        )
    )


def _one_per_child(split: dict) -> list[dict]:
    """The first windows of each child in turn, so that none is left out."""
    n_children = len(split["children"])
    of_child = [[window for window in split["windows"] if window["fires"] == [child]] for child in range(n_children)]
    turns = range(max(1, WINDOWS // n_children))
    return [windows[turn] for turn in turns for windows in of_child if turn < len(windows)]


def _worst(explorer, sae: str) -> dict:
    """{key, words, latents: [(latent, its value of key)]}, by the first of WORST_BY of which the SAE has numbers; {}
    for none.
    """
    columns = {column["key"] for column in explorer.latents(sae, limit=1)["columns"]}
    for key, descending, words in WORST_BY:
        rows = explorer.latents(sae, sort=key, descending=descending, limit=WORST)["rows"] if key in columns else []
        latents = [(explorer.latent(sae, row["latent"]), row[key]) for row in rows if row.get(key) is not None]
        if latents:
            return {"key": key, "words": words, "latents": latents}
    return {}


def _span(window: dict) -> range:
    return range(max(0, window["peak"] - AROUND), min(len(window["tokens"]), window["peak"] + AROUND + 1))


def as_latex(comparison: dict) -> str:
    """compare.tex: input it where the tables shall stand; needs the package booktabs.

    comparison: as `compare` makes it.
    """
    template, pairs = Path(__file__).with_name("compare.tex"), by_pair(comparison["pairs"])
    return fill(template, comparison=comparison, pairs=pairs, conditions_line=conditions_line, latex=escaped) or "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(str.maketrans(_SPECIAL))
