"""The report of a run: figures as PNG and SVG, tables for LaTeX, and one HTML file without scripts or network."""

import io
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from metasae import files
from metasae.compare.compare import compare
from metasae.compare.measured import read_measured
from metasae.errors import UserError
from metasae.files import toml
from metasae.interp.differences import score_differences
from metasae.report import figures, score_figures
from metasae.report.page import as_latex, latents_sections, page


def write_report(run_folder: str | Path, comparison: dict | None = None, explorer=None) -> Path:
    """Draws figures/*.png and *.svg, writes compare.tex and report.html; returns the page's path.

    comparison: as `compare` gives it; None compares the measured arms again. explorer: the run's
    `metasae.explore.pages.queries.Explorer`, from which single latents are shown; None shows none.
    Raises UserError as `compare` does, and when recipe.toml is there but unreadable.
    """
    run_folder = Path(run_folder)
    comparison = comparison or compare(run_folder)
    baseline = comparison["baseline"]
    measured, _ = read_measured(run_folder)
    drawings = {
        "differences": figures.relative_differences(comparison["pairs"], baseline),
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
    files.write_text(path, page(comparison, _recipe_values(run_folder / "recipe.toml"), images, latents))
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
    """recipe.toml as dotted keys; {} when the run folder has none."""
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
