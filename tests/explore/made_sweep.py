"""A sweep's folder with a result made up by hand, with names that try to be markup."""

import json
from pathlib import Path

from metasae.recipe.recipe import Recipe

PHI, FVU, OUTPUT = "cooccurrence.mean_abs_phi", "fidelity.fvu", "fidelity.output_cosine_distance"
LIFT, ROWS, L0 = (
    "cooccurrence.dependence.value",
    "decomposability.meta_ve_excess_over_gaussian",
    "fidelity.l0",
)
OBJECTIVES = [FVU, LIFT, ROWS]
NASTY = "<script>alert(1)</script>"
# name, lambda2, the means of the three objectives; the middle one of the last is not known
DONE = (("aaa111", 0.1, (0.15, 2.0, 0.03)), ("bbb222", 0.3, (0.16, 1.5, 0.02)), ("ccc333", 1.0, (0.17, 1.6, None)))


def entry(a: float, b: float, half: float, seeds: int = 3) -> dict:
    """A difference with its interval, as compare.json has it."""
    percent = 100 * (a - b) / b
    return {
        "a": a, "b": b, "difference": a - b, "percent": percent,
        "ci95": [(percent - half) * b / 100, (percent + half) * b / 100],
        "percent_ci95": [percent - half, percent + half], "documents_ci95": None, "se_seeds": 0.1, "se_documents": None,
        "p": 0.01,
        "p_holm": 0.02, "n_seeds": seeds, "n_blocks": 0, "values": [{"seed": seed, "a": a,
                                                                     "b": b} for seed in range(seeds)], "note": "",
    }  # fmt: skip


def cell(name: str, lambda2: float, means: tuple, state: str = "done", why: str = "") -> dict:
    fvu, lift, _ = means
    differences = {
        PHI: entry(0.0099 - 0.001 * lambda2, 0.01, 1),
        FVU: entry(fvu, 0.15, 1),
        LIFT: entry(lift, 2.0, 60),
        L0: entry(8.0, 8.0, 1),
    }
    done = state == "done"
    return {
        "name": name, "folder": f"cells/{name}", "setting": {"train.lambda2": lambda2,
                                                             "meta.input": "token" if lambda2 < 1 else NASTY},
                                                             "kind": "",
        "state": state, "why": why, "trials": [0], "seeds": [0, 1, 2] if done else [0], "saes": {},
        "means": dict(zip(OBJECTIVES, means, strict=True)) if state != "failed" else {},
        "differences": differences if done else {},
        "kappa": {"value": lambda2 / 3, "e": 0.7, "e_of": "control"} if done else None,
        "on_front": name in ("aaa111", "bbb222"),
        "best": name == "bbb222", "seconds": None,
    }  # fmt: skip


def result() -> dict:
    cells = [cell(*done_cell) for done_cell in DONE]
    cells.append(cell("ddd444", 3.0, (0.3, 3.0, 0.1), "stopped", "behind after the first seed"))
    cells.append(cell("eee555", 9.0, (0.0, 0.0, 0.0), "failed", f"not a number {NASTY}"))
    done = cells[:3]
    settings = [
        {"key": key, "label": key, "values": [done_cell["setting"][key] for done_cell in done]}
        for key in ("meta.input", "train.lambda2")
    ]
    labels = ("FVU", "dependence of firing", "meta VE beyond covariance")
    objectives = [
        {"key": key, "label": label, "values": [done_cell["means"][key] for done_cell in done]}
        for key, label in zip(OBJECTIVES, labels, strict=True)
    ]
    at_equal = {**entry(1.9, 2.0, 1), "interpolation_error": 0.004, "brackets": {"0": [4, 5], "1": [4, 5], "2": None}}
    not_reached = {
        **at_equal,
        **dict.fromkeys(("difference", "percent", "ci95", "percent_ci95", "interpolation_error")),
        "n_seeds": 0,
    }
    return {
        "title": f"made by hand {NASTY}", "objectives": OBJECTIVES, "seeds": [0, 1, 2], "arms": ["solo", "control"],
        "subject": "joint",
        "baseline": "solo of the same cell", "base": Recipe.load({}).model_dump(mode="json"),
        "settings": ["meta.input", "train.lambda2"],
        "cells": cells, "front": ["aaa111", "bbb222"], "best": "bbb222", "failed": {"eee555": cells[-1]["why"]},
        "stopped": ["ddd444"],
        "equal_fvu": {"target": {"kind": "solo", "k": 8}, "baseline": "target",
                      "k": {"ortsae": [7, 8, 9], "c2r": [7, 8]},
                      "not_done": {"cofiring": "failed"}, "kinds": {"ortsae": {LIFT: at_equal},
                                                                    "c2r": {LIFT: not_reached}}},
        "parallel": {"cells": [done_cell["name"] for done_cell in done], "dimensions": settings + objectives},
        "time": {"steps": 60.0, "train": 70.0, "measure": 30.0, "harvest": 4.0, "whole": 120.0, "overhead": 1.0,
                 "overhead_with_harvest": 1.1,
                 "saes": 15, "workers": 2, "peak_memory_gib": 2.0},
        "confirm": {"cell": "bbb222", "recipe": "best.toml", "seeds": [3, 4, 5], "note": "Judged on other documents.",
                    "command": "as it was then"},
    }  # fmt: skip


def write_sweep(folder: Path) -> Path:
    """A folder that holds what the pages read: sweep.json, best.toml, and the folders of the cells that are trained."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "best.toml").write_text("")
    (folder / "sweep.json").write_text(json.dumps(result()))
    for name, *_ in DONE:
        (folder / "cells" / name / "arms").mkdir(parents=True)
    firings = folder / "cells" / "aaa111" / "arms" / "joint-s0" / "firings"
    firings.mkdir(parents=True)
    (firings / "index.json").write_text("{}")
    return folder
