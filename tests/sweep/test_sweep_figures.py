"""What the figures show, read from their axes."""

import pytest

from metasae.sweep.charts import dose_response, pareto

FVU, BLENDED = "fidelity.fvu", "truth.blend_rate"
COVERAGE = "senses.coverage_f1"


def result_of(cells):
    return {"objectives": [FVU, BLENDED], "cells": cells, "equal_fvu": None}


def cell(number, fvu, lift, kappa=None, state="done", front=False, **more):
    entry = {
        "percent": 100 * (fvu - 1),
        "percent_ci95": [-1, 1] if number % 2 else None,
        "difference": fvu - 1,
        "ci95": None,
    }
    return {
        "name": str(number), "setting": {"train.lambda2": number}, "kind": "", "state": state, "means": {FVU: fvu,
        BLENDED: lift}, "on_front": front,
        "best": False, "differences": {FVU: entry}, "kappa": {"value": kappa, "e": 0.7,
        "e_of": "control"} if kappa is not None else None, **more,
    }  # fmt: skip


def test_the_scatter_has_a_point_per_cell_and_the_front_as_steps():
    cells = [cell(0, 1.0, 3.0), cell(1, 2.0, 1.0, front=True), cell(2, 3.0, 2.0), cell(3, 1.0, 1.0, state="failed")]
    (axes,) = pareto(result_of(cells)).axes
    points = [tuple(float(line.get_xydata()[0][i]) for i in (0, 1)) for line in axes.lines if line.get_marker() == "o"]
    assert points == [(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)]
    # x first, then y: what can be had of y where x is at least as good
    assert axes.lines[-1].get_drawstyle() == "steps-post"
    assert axes.lines[-1].get_xydata().tolist() == [[1, 3], [2, 1]]
    assert axes.get_xlabel() == "FVU (lower is better)"


def test_named_cells_have_the_row_of_the_table_beside_them():
    # kinds that differ in other settings than k; none is trained at several k
    cells = [cell(0, 1.0, 3.0), cell(1, 2.0, 1.0), cell(2, 1.5, 2.0, state="failed"), cell(3, 3.0, 2.0)]
    cells = [{**entry, "kind": f"kind {entry['name']}"} for entry in cells]
    (axes,) = pareto(result_of(cells)).axes
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("1", (1.0, 3.0)), ("2", (2.0, 1.0)), ("4", (3.0, 2.0))
    ]  # fmt: skip


def test_steps_where_higher_is_better():
    # lower FVU is better; of the other measure, higher is
    places = [(1, 1), (2, 3), (3, 2)]
    cells = [{**cell(number, x, 0.0), "means": {FVU: x, COVERAGE: y}} for number, (x, y) in enumerate(places)]
    (axes,) = pareto({**result_of(cells), "objectives": [FVU, COVERAGE]}).axes
    assert axes.lines[-1].get_xydata().tolist() == [[1, 1], [2, 3]]
    (axes,) = pareto({**result_of(cells), "objectives": [COVERAGE, FVU]}).axes
    assert axes.lines[-1].get_xydata().tolist() == [[3, 2], [1, 1]]


def test_the_dose_is_kappa_and_the_response_has_its_interval():
    cells = [
        cell(1, 1.1, 1.0, kappa=0.1),
        cell(2, 1.2, 1.0, kappa=0.4),
        cell(3, 1.0, 1.0, kappa=0.0),
        cell(4, 9.0, 1.0, kappa=0.2, state="stopped"),
    ]
    (axes,) = dose_response({"cells": cells}).axes
    points = [tuple(line.get_xydata()[0].tolist()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [(0.1, pytest.approx(10)), (0.4, pytest.approx(20))]
    assert [
        line.get_ydata() for line in axes.lines if line.get_marker() == "None" and list(line.get_ydata()) == [-1, 1]
    ]


def test_nothing_to_draw_is_none():
    assert pareto({**result_of([cell(0, 1, 1), cell(1, 2, 1)]), "objectives": [FVU]}) is None
    assert pareto(result_of([cell(0, 1, 1)])) is None
    assert dose_response({"cells": [cell(0, 1, 1, kappa=0.3)]}) is None
