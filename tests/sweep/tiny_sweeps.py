"""A planted recipe that trains in a tenth of a second, and what two sweeps must have in common."""

import json
from pathlib import Path

TINY = {
    "planted": {"d": 16, "independent": 20, "words": 4, "top_rate": 0.12, "noise": 0.03},
    "sae.n": 32, "sae.k": 3, "meta.n": 6, "meta.k": 2,
    "train.tokens": 2_400, "train.batch": 200, "train.n_primary_steps": 4, "train.n_meta_steps": 2,
    "train.lr": 1e-2, "train.dead_after": 10_000, "train.warmup": 2, "train.checkpoint_every": 5,
    "measure.tokens": 2_000, "measure.calibration_tokens": 1_000, "measure.meta_steps": 5, "measure.critics": 1,
}  # fmt: skip


def entries(grid: dict[str, list]) -> list[str]:
    """A grid as the command line takes it."""
    return [f"{key}={json.dumps(values)}" for key, values in grid.items()]


def without_machine(result: dict) -> dict:
    """sweep.json without what depends on the machine and the place."""
    result = {key: value for key, value in result.items() if key not in ("time", "confirm", "folder")}
    return result | {
        "cells": [{key: value for key, value in cell.items() if key != "seconds"} for cell in result["cells"]]
    }


def contents(folder: Path) -> dict:
    """Every SAE's weights, metrics and measures, byte by byte."""
    wanted = ("*/primary/*", "*/meta/*", "*/metrics.jsonl", "*/measures.json")
    return {
        str(path.relative_to(folder / "saes")): path.read_bytes()
        for pattern in wanted
        for path in (folder / "saes").glob(pattern)
    }


def workers_of(folder: Path) -> dict[str, list[str]]:
    """SAE -> the workers that took it up, in turn."""
    return {path.parent.name: json.loads(path.read_text())["workers"] for path in folder.glob("saes/*/sae.json")}
