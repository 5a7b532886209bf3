"""The report of a run: figures as PNG and SVG, tables for LaTeX, and one HTML file that needs nothing else, no script and no network."""

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import tomli

from metasae import files
from metasae.compare.catalogue import CATALOGUE, GROUPS, Quantity
from metasae.compare.compare import compare, conditions_line, number, read_measured, reading
from metasae.compare.verdict import change, towards, verdict_lines
from metasae.errors import UserError
from metasae.interp.differences import score_differences
from metasae.intervals.statistics import is_clear
from metasae.report import figures, score_figures
from metasae.report.latex import as_latex
from metasae.report.report_latents import STYLE as LATENT_STYLE
from metasae.report.report_latents import latents_sections
from metasae.report.report_style import STYLE

CAPTIONS = {
    "differences": (
        "What changes against {baseline}",
        "Each main measure as a percentage of the mean of {baseline}; a share that is itself a difference, in pp. "
        "Filled: clear after Holm's correction. "
        "An interval with 0 in it does not establish a change; "
        "with few seeds intervals are wide, and may run out of the frame.",
    ),
    "phi": (
        "Which pairs of latents become more or fewer",
        "Left of 0: pairs that avoid each other; right: pairs that fire together. More atomic latents "
        "should leave fewer pairs on the far right, not only move mass near 0.",
    ),
    "rates": ("How often latents fire", "If the arms' curves differ, mean |phi| differs for that reason alone."),
    "scores": (
        "Auto-interp",
        "One mark per seed. A score speaks for explanations only as far as it lies above shuffled explanations; windows with the latent's own "
        "token in which it is silent are the ones a blend fails on.",
    ),
    "score_difference": (
        "Which scores become more common",
        "Left: shares of each arm's own random latents by their score, less solo's; grey is one seed of solo less another. Middle: what changes "
        "within pairs of matched latents; grey is the same mirrored, as it would be if neither arm were better. Right: the mean "
        "difference, of those latents over seeds and within pairs of matched latents. Filled: the interval leaves out 0; over two seeds it may run "
        "out of the frame.",
    ),
    "training": (
        "Training",
        "One line per seed. Control runs with the penalty switched off: in FVU it should lie on solo.",
    ),
}

READ = (
    "<b>Arms.</b> Solo is a plain SAE. Joint is trained with the penalty on decoder rows its meta SAE can rebuild. "
    "Control is joint with the penalty's weight at 0, and must equal solo. "
    "All arms share initialisation, batches, held-out tokens and the rule for thresholds.",
    "<b>Intervals</b> are 95%, over paired seeds and blocks of documents: the unit is a trained SAE, never a pair of latents or a token. "
    "With two seeds they are very wide, with one there is none.",
    "<b>phi</b> is the correlation of two latents' firing, from exact counts. Mean |phi| over all pairs is proportional to L0 "
    "at fixed lift and falls when firing rates spread, so it is not atomicity by itself; "
    "nearest-partner phi and the share of strong pairs look at the pairs that matter.",
    "<b>Meta VE excess</b> is the share of variance of the decoder rows that a fresh meta SAE explains, minus what it explains "
    "of random rows. The fresh one took no part in training. The run's own meta SAE did, so its error is shown but proves nothing.",
    "<b>FVU</b> is the squared error of the reconstruction over the variance of the activations. "
    "Fewer, weaker or noisier latents can look atomic at the cost of it.",
)


def write_report(run_folder: str | Path, comparison: dict | None = None, explorer=None) -> Path:
    """Draws figures/*.png and writes report.html; returns its path. comparison: as `compare` gives it; None compares the measured arms again.

    explorer: the run's `metasae.explore.pages.queries.Explorer`, from which single latents are shown; None shows none.

    Raises UserError as `compare` does, and when recipe.toml is there but unreadable.
    """
    run_folder = Path(run_folder)
    comparison = comparison or compare(run_folder)
    measured, _ = read_measured(run_folder)
    drawn = {
        "differences": figures.relative_differences(comparison["pairs"], comparison["baseline"]),
        "phi": figures.phi_difference(measured, comparison["baseline"]),
        "rates": figures.firing_rates(measured),
        "scores": score_figures.interp_scores(measured),
        "score_difference": score_figures.score_difference(score_differences(run_folder)),
        "training": figures.loss_curves(measured),
    }
    images = {
        name: {kind: _drawn(figure, kind) for kind in ("png", "svg")}
        for name, figure in drawn.items()
        if figure is not None
    }
    for name, kinds in images.items():
        for kind, image in kinds.items():
            files.write(run_folder / "figures" / f"{name}.{kind}", lambda part, image=image: part.write_bytes(image))
    files.write_text(run_folder / "compare.tex", as_latex(comparison))
    path = run_folder / "report.html"
    latents = [] if explorer is None else latents_sections(explorer, comparison["baseline"])
    shown = {name: kinds["png"] for name, kinds in images.items()}
    files.write_text(path, page(comparison, _recipe_values(run_folder / "recipe.toml"), shown, latents))
    return path


def _stale(names: Sequence[str]) -> str:
    return (
        f"<p class=conditions>Left out, as it is of an earlier SAE: the auto-interp of {_text(', '.join(names))}.</p>"
        if names
        else ""
    )


def page(comparison: dict, recipe_values: dict[str, str], images: dict[str, bytes], latents: Sequence[str] = ()) -> str:
    """The whole HTML document. recipe_values: dotted key -> value as text. images: name -> PNG. latents: sections about single latents."""
    body = [
        "<header><p class=kind>metasae report</p>",
        f"<h1>{_text(comparison['run'])}</h1>",
        f"<div class=verdict>{''.join(_verdict(comparison))}</div>",
        f"<p class=conditions>{_text(conditions_line(comparison).replace('`', ''))}</p>",
        f"<p class=conditions>Not measured yet: {_text(', '.join(comparison['missing']))}.</p>"
        if comparison["missing"]
        else "",
        _stale(comparison.get("stale", [])),
        "</header><main>",
        "<section><h2>Summary</h2>",
        _arms_table(comparison, [q for q in CATALOGUE if q.main]),
        "</section>",
        *(_figure_section(name, images[name], comparison["baseline"]) for name in CAPTIONS if name in images),
        *latents,
        *_all_measures(comparison),
        "<section><h2>How to read this</h2>",
        *(f"<p>{paragraph}</p>" for paragraph in READ),
        "</section>",
        _recipe_section(recipe_values),
        "</main>",
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(comparison['run'])}: metasae report</title><style>{STYLE}{LATENT_STYLE}</style></head><body>"
    )
    return head + "\n".join(part for part in body if part) + "</body></html>\n"


def _verdict(comparison: dict) -> Iterator[str]:
    """Each pair's conclusion as a paragraph, what it rests on as a list below it."""
    for is_listed, lines in groupby(verdict_lines(comparison), lambda line: line.startswith("- ")):
        if is_listed:
            yield f"<ul>{''.join(f'<li>{_text(line[2:])}</li>' for line in lines)}</ul>"
        else:
            yield from (f"<p>{_text(line)}</p>" for line in lines)


def _arms_table(comparison: dict, quantities: list[Quantity]) -> str:
    """Means of every arm, and every other arm's change against the baseline.

    A row's numbers are of the same seeds: where a change rests on fewer than its arms have, so do their means, and the seeds are named.
    """
    arms, pairs = comparison["arms"], comparison["pairs"]
    means = {q.key: {arm: _row_mean(comparison, arm, q.key) for arm in arms} for q in quantities}
    quantities = [q for q in quantities if any(value is not None for value, _ in means[q.key].values())]
    if not quantities:
        return ""
    heads = [
        f"<th>{_text(arm)}<small>{len(entry['seeds'])} seed{'s' if len(entry['seeds']) != 1 else ''}</small></th>"
        for arm, entry in arms.items()
    ]
    heads += [f"<th>{_text(name)}<small>change [95%]</small></th>" for name in pairs]
    rows = []
    for q in quantities:
        arrow = {"lower": "↓ better", "higher": "↑ better", None: ""}[q.better]
        head = f"<th scope=row title='{_text(q.meaning)}'>{_text(q.label)}<small>{arrow}</small></th>"
        cells = "".join(f"<td>{number(value)}{_seeds(seeds)}</td>" for value, seeds in means[q.key].values())
        changes = "".join(
            _change_cell(q, pair.get(q.key), [means[q.key][arm][0] for arm in name.split(" vs ")])
            for name, pair in pairs.items()
        )
        rows.append(f"<tr>{head}{cells}{changes}</tr>")
    return f"<div class=wide><table><thead><tr><th>measure</th>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _row_mean(comparison: dict, arm: str, key: str) -> tuple[float | None, list[int] | None]:
    """(an arm's mean, its seeds where they are not all of the arm's): over the seeds of the first pair that has fewer, else the arm's own."""
    own = comparison["arms"][arm]
    every = len(own["values"].get(key, ()))
    for name, pair in comparison["pairs"].items():
        sides = dict(zip(name.split(" vs "), "ab", strict=True))
        if arm in sides and key in pair and pair[key]["n_seeds"] > 0 and (every == 0 or pair[key]["n_seeds"] < every):
            seeds = [value["seed"] for value in pair[key]["values"]]
            return pair[key][sides[arm]], seeds if len(seeds) < len(own["seeds"]) else None
    return own["means"].get(key), None


def _seeds(seeds: list[int] | None) -> str:
    return "" if seeds is None else f"<small>seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}</small>"


def _change_cell(quantity: Quantity, entry: dict | None, shown: list[float | None]) -> str:
    """shown: the two arms' means in this row; a change between others, of other seeds or of two SAEs together, says which."""
    if entry is None:
        return "<td>-</td>"
    between = [entry["a"], entry["b"]]
    same = None in between or all(
        math.isclose(one, other, rel_tol=1e-9) for one, other in zip(between, shown, strict=True)
    )
    told = "" if same else f"<small>{number(between[0])} against {number(between[1])}</small>"
    kind = towards(quantity, entry) if is_clear(entry) and entry.get("p_holm") is not None else ""
    return f"<td class='{kind}'>{_text(change(quantity, entry))}{told}<small>{_text(reading(quantity, entry))}</small></td>"


def _all_measures(comparison: dict) -> Iterator[str]:
    for group, title in GROUPS.items():
        table = _arms_table(comparison, [q for q in CATALOGUE if q.group == group])
        if table:
            yield f"<section><h2>{title}</h2>{table}{_meanings(group)}</section>"


def _meanings(group: str) -> str:
    entries = [
        f"<dt>{_text(q.label)}</dt><dd>{_text(q.meaning)}</dd>" for q in CATALOGUE if q.group == group and q.meaning
    ]
    return f"<details><summary>What these are</summary><dl>{''.join(entries)}</dl></details>"


def _figure_section(name: str, image: bytes, baseline: str) -> str:
    title, caption = (text.replace("{baseline}", baseline) for text in CAPTIONS[name])
    source = base64.b64encode(image).decode("ascii")
    return (
        f"<section><h2>{_text(title)}</h2><figure><img alt='{_text(title)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{_text(caption)}</figcaption></figure></section>"
    )


def _recipe_section(values: dict[str, str]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{_text(key)}</th><td class=value>{_text(value)}</td></tr>" for key, value in values.items()
    )
    return f"<section><h2>Recipe</h2><details><summary>{len(values)} values</summary><div class=wide><table>{rows}</table></div></details></section>"


def _recipe_values(path: Path) -> dict[str, str]:
    """recipe.toml as dotted keys; {} when the run folder has none."""
    if not path.is_file():
        return {}
    try:
        return dict(_flat(tomli.loads(path.read_text(encoding="utf-8"))))
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _flat(table: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _drawn(figure, kind: str) -> bytes:
    """A figure as a PNG or SVG file; equal numbers give equal files, so the writer's version, the date and random ids stay out."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "metasae"}):
        figure.savefig(
            buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        )
    return buffer.getvalue()


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
