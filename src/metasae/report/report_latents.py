"""The part of a report that shows latents: how solo's split best, and which latents look least like one concept.

Windows of text stand below each. They are read from the explorer's store, so runs that keep their firings have this
part.
"""

from pathlib import Path

from markupsafe import Markup

from metasae.compare.templates import fill
from metasae.recipe.registry import SUBJECT

SPLITS, WORST, WINDOWS = 10, 10, 4
# Tokens on either side of a window's peak.
AROUND = 10
# Which latents are the worst, by the first of these that the SAE has: (column, largest first, in words).
WORST_BY = (
    ("interp.detection.same_token", False, "lowest detection score against silent windows with the same token"),
    ("interp.embedding.same_token", False, "lowest embedding score against silent windows with the same token"),
    ("nearest_phi", True, "largest phi with another latent"),
)


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
