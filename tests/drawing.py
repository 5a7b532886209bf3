"""Runs and sweeps without their figures, which take longer to draw than a tiny run takes to train."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FIGURES = [
    "metasae.report.figures.relative_differences",
    "metasae.report.figures.phi_difference",
    "metasae.report.figures.firing_rates",
    "metasae.report.figures.loss_curves",
    "metasae.report.score_figures.interp_scores",
    "metasae.report.score_figures.score_difference",
    "metasae.sweep.charts.pareto",
    "metasae.sweep.charts.dose_response",
]


@contextmanager
def undrawn() -> Iterator[None]:
    """While it is open, a report has no figures, as if there were nothing to draw. All else is written."""
    with pytest.MonkeyPatch.context() as patch:
        for figure in FIGURES:
            patch.setattr(figure, lambda *arguments: None)
        yield
