"""The report of a run: figures as PNG and SVG, tables for LaTeX, and one HTML file without scripts or network.

Its templates lie beside this file:

page.html       the page
latents.html    its part about single latents: how solo's split best, and which look least like one concept. Their
                windows of text are read from the explorer's store, so runs that keep their firings have this part.
compare.tex     tables for papers (booktabs), one for each pair of arms, its conditions in the caption
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from metasae import files
from metasae.compare.catalogue import CATALOGUE, Quantity, by_pair, grouped, number
from metasae.compare.compare import read_measured
from metasae.compare.older import completed
from metasae.compare.tables import conditions_line, fill
from metasae.compare.verdict import headline
from metasae.errors import UserError
from metasae.files import toml
from metasae.interp.differences import score_differences
from metasae.interp.standing import Standing, standings
from metasae.recipe.registry import SUBJECT
from metasae.report import figures, score_figures

Mean = tuple[float | None, list[int] | None]
SPLITS, WORST, WINDOWS = 10, 10, 4
# Tokens on either side of a window's peak.
AROUND = 10
# What makes a latent one of the worst, by the first of these that the SAE has: (column, whether largest first, in
# words).
WORST_BY = (
    ("interp.detection.same_token", False, "lowest detection score against silent windows with the same token"),
    ("interp.embedding.same_token", False, "lowest embedding score against silent windows with the same token"),
    ("nearest_phi", True, "largest phi with another latent"),
)
# {character with a meaning in LaTeX: how it is printed}
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def write_report(run_folder: str | Path, comparison: dict, explorer=None) -> Path:
    """Draws figures/*.png and *.svg, writes compare.tex and report.html; returns the page's path.

    comparison: as `compare` returns it. explorer: the run's
    `metasae.explore.pages.queries.Explorer`, from which single latents are shown; None shows none. Raises UserError if
    recipe.toml exists but cannot be read.
    """
    run_folder = Path(run_folder)
    comparison = completed(comparison)
    baseline = comparison["baseline"]
    measured, _ = read_measured(run_folder)
    drawings = {
        "differences": figures.relative_differences(without_equal_arms(comparison)[0]["pairs"], baseline),
        "phi": figures.phi_difference(measured, baseline),
        "rates": figures.firing_rates(measured),
        "scores": score_figures.interp_scores(measured),
        "score_difference": score_figures.score_difference(score_differences(run_folder)),
        "training": figures.loss_curves(measured),
    }
    places = {name: run_folder / "figures" / name for name, figure in drawings.items() if figure is not None}
    images = {name: _save(drawings[name], place) for name, place in places.items()}
    files.write_text(run_folder / "compare.tex", as_latex(comparison))
    path = run_folder / "report.html"
    latents = "" if explorer is None else latents_sections(explorer, baseline)
    judges = standings({entry.arm.label: entry.measures for entry in measured if "interp" in entry.measures})
    files.write_text(path, page(comparison, _recipe_values(run_folder / "recipe.toml"), images, latents, judges))
    return path


def _save(figure: Figure, place: Path) -> bytes:
    """Writes `place`.png and `place`.svg and returns the PNG.

    Equal numbers give equal files, so the writer's version, the date and random ids stay out.
    """
    images = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "metasae"}):
            figure.savefig(buffer, format=kind, metadata=metadata)
        images.append(buffer.getvalue())
        files.write(place.with_name(f"{place.name}.{kind}"), lambda part: part.write_bytes(images[-1]))
    return images[0]


def _recipe_values(path: Path) -> dict[str, str]:
    """{dotted key: value as text} of recipe.toml; {} if there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(_dotted(toml.loads(path.read_text(encoding="utf-8"))))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _dotted(table: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def page(
    comparison: dict,
    recipe: dict[str, str],
    images: dict[str, bytes],
    latents: str = "",
    judges: Sequence[Standing] = (),
) -> str:
    """The whole HTML document.

    recipe: {dotted key: value as text}. images: {name: PNG}. latents: HTML about single latents. judges: how far the
    scores of each judge can be trusted.
    """
    comparison, equal = without_equal_arms(comparison)
    groups = [
        (title, table(comparison, quantities), quantities) for title, quantities in grouped({q.key for q in CATALOGUE})
    ]
    return fill(
        Path(__file__).with_name("page.html"),
        comparison=comparison,
        headline=headline(comparison),
        equal=equal,
        pairs=by_pair(comparison["pairs"]),
        conditions=conditions_line(comparison).replace("`", ""),
        summary=table(comparison, [q for q in CATALOGUE if q.main]),
        images={name: base64.b64encode(image).decode("ascii") for name, image in images.items()},
        latents=latents,
        judges=judges,
        groups=[group for group in groups if group[1]],
        recipe=recipe,
        between=between,
    )


def without_equal_arms(comparison: dict) -> tuple[dict, list[str]]:
    """(the comparison without the arms that equal the baseline in every measure, the names of these arms).

    Such an arm (control, if it is as it must be) would be a column of zeros. If no other arm is left, the comparison is
    unchanged.
    """
    pairs = by_pair(comparison["pairs"])
    equal = [
        str(pair.arm)
        for pair, entries in pairs.items()
        if entries and all(entry["difference"] in (0, None) for entry in entries.values())
    ]
    kept = {str(pair): entries for pair, entries in pairs.items() if pair.arm not in equal}
    if not kept:
        return comparison, []
    arms = {name: arm for name, arm in comparison["arms"].items() if name not in equal}
    return {**comparison, "pairs": kept, "arms": arms}, equal


def table(comparison: dict, quantities: Sequence[Quantity]) -> list[tuple[Quantity, dict[str, Mean]]]:
    """[(quantity, {arm: mean})] for the quantities that any arm has.

    All numbers of a row are over the same seeds (`row_mean`).
    """
    rows = [(q, {arm: row_mean(comparison, arm, q.key) for arm in comparison["arms"]}) for q in quantities]
    return [(q, means) for q, means in rows if any(mean is not None for mean, _ in means.values())]


def row_mean(comparison: dict, arm: str, key: str) -> Mean:
    """(an arm's mean, its seeds if they are not all of the arm's), so that all numbers of a row are over the same
    seeds.

    The mean is over the seeds of the first pair whose change is over fewer seeds than the arm has, else over the arm's
    own.
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
    """The two numbers of a change, if they are not the two means of its row: those of other seeds, or of two SAEs
    together.
    """
    means = entry["a"], entry["b"]
    if None in means or all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(means, shown, strict=True)):
        return ""
    return f"{number(means[0])} against {number(means[1])}"


def latents_sections(explorer, baseline: str) -> Markup:
    """The HTML sections about single latents.

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
    """The first windows of each child in turn, so that every child is shown."""
    n_children = len(split["children"])
    of_child = [[window for window in split["windows"] if window["fires"] == [child]] for child in range(n_children)]
    turns = range(max(1, WINDOWS // n_children))
    return [windows[turn] for turn in turns for windows in of_child if turn < len(windows)]


def _worst(explorer, sae: str) -> dict:
    """{key, words, latents: [(latent, its value of key)]} by the first entry of WORST_BY that the SAE has numbers for;
    {} if there is none.
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
    """The text of compare.tex: tables to \\input, which need the package booktabs.

    comparison: as `compare` makes it.
    """
    tables = fill(
        Path(__file__).with_name("compare.tex"),
        comparison=comparison,
        pairs=by_pair(comparison["pairs"]),
        conditions_line=conditions_line,
        latex=escaped,
    )
    return tables or "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(str.maketrans(_SPECIAL))
