"""The overview of a run: verdict, measures, histograms and training curves, gathered from the run folder's files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metasae import files
from metasae.compare.catalogue import CATALOGUE, GROUPS, WHY_NOT_PHI_ALONE
from metasae.compare.words import change, reading
from metasae.data.model.model_folder import local_folder
from metasae.errors import UserError
from metasae.explore.store.members import Member
from metasae.files import json_safe
from metasae.interp.differences import score_differences
from metasae.intervals.statistics import is_clear
from metasae.recipe.recipe import Recipe

POINTS = 300
CURVES = ("tokens", "fvu", "penalty", "aux")
# In what a point of the Pareto plot is read: key -> path in measures.json.
PARETO = {
    "fvu": ("fidelity", "fvu"),
    "mean_abs_phi": ("cooccurrence", "mean_abs_phi"),
    "nearest_phi": ("cooccurrence", "nearest_phi"),
    "meta_ve_excess": ("decomposability", "meta_ve_excess"),
}


def overview_of(run_folder: Path, members: Sequence[Member], saes: Sequence[dict], causal: bool) -> dict:
    """saes: what the store knows of each. What the run folder lacks is None or empty."""
    path = run_folder / "compare.json"
    compared = files.read_json(path) if path.is_file() else {}
    measured = [member for member in members if member.measures]
    conditions = compared.get("conditions") or {}
    texts = [_at(member.measures, ("conditions", "n_tokens")) for member in measured]
    return json_safe(
        {
            "run": run_folder.resolve().name,
            "verdict": compared.get("verdict"),
            "conditions": conditions,
            "baseline": compared.get("baseline"),
            "missing": compared.get("missing", [member.name for member in members if not member.measures]),
            "saes": [{**sae, **_numbers(member, run_folder)} for member, sae in zip(members, saes, strict=True)],
            "quantities": _quantities(),
            "note": WHY_NOT_PHI_ALONE,
            "arms": {
                arm: {key: entry[key] for key in ("seeds", "means", "intervals", "values")}
                for arm, entry in compared.get("arms", {}).items()
            },
            "pairs": {name: _worded(pair) for name, pair in compared.get("pairs", {}).items()},
            "pareto": [_point(member) for member in measured],
            "phi_histogram": _histograms(measured, ("cooccurrence", "histogram"), "edges"),
            "rates": _histograms(measured, ("fidelity", "rates", "histogram"), "log10_edges"),
            "scores": score_differences(run_folder),
            "training": {member.name: training_curve(member.folder / "metrics.jsonl") for member in members},
            "causal": causal,
            "tokens": next((count for count in texts if count is not None), None),
        }
    )


def is_causal(run_folder: Path) -> bool:
    """Whether the run's model predicts tokens; False where there is none, or its configuration is not at hand."""
    recipe = Recipe.load(run_folder / "recipe.toml") if (run_folder / "recipe.toml").is_file() else None
    if recipe is None or recipe.text.source == "planted":
        return False
    try:
        folder = local_folder(recipe.model)
        config = folder / "config.json" if folder is not None else _cached_config(recipe.model)
        # transformers, which brings torch along, is asked only where the name of the model's class does not tell
        names = (files.read_json(config).get("architectures") or ()) if config is not None else ()
        if names and not any(name.endswith("ForConditionalGeneration") for name in names):
            return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
        import transformers

        from metasae.data.model import loading

        return loading._is_causal(
            transformers.AutoConfig.from_pretrained(str(folder or recipe.model.source), local_files_only=True)
        )
    except (UserError, OSError, ValueError):
        return False


def _cached_config(model) -> Path | None:
    """The configuration of a model on the hub, where it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.source, "config.json", revision=model.revision or None)
    return Path(found) if isinstance(found, str) else None


def _numbers(member: Member, run_folder: Path) -> dict:
    recipe = Recipe.load(run_folder / "recipe.toml") if (run_folder / "recipe.toml").is_file() else None
    planted = recipe is not None and recipe.text.source == "planted"
    return {
        "l0": _at(member.measures, ("fidelity", "l0")),
        "fvu": _at(member.measures, ("fidelity", "fvu")),
        "hook": None if recipe is None or planted else recipe.hook.point,
        "model": None if recipe is None else "planted world" if planted else recipe.model.name or recipe.model.path,
    }


def _worded(pair: dict) -> dict:
    """The differences of a pair of arms, each with the words of the report. clear: after Holm's correction, so main measures alone can be."""
    known = {q.key: q for q in CATALOGUE}
    return {
        key: {
            **entry,
            "clear": is_clear(entry) and entry.get("p_holm") is not None,
            "reading": reading(known[key], entry),
            "change": change(known[key], entry),
        }
        for key, entry in pair.items()
        if key in known
    }


def _quantities() -> list[dict]:
    return [
        {
            "key": q.key, "label": q.label, "group": q.group, "group_label": GROUPS[q.group], "better": q.better, "main": q.main,
            "meaning": q.meaning, "relative": q.relative, "speaks_of": q.speaks_of, "robust": q.robust,
        }
        for q in CATALOGUE
    ]  # fmt: skip


def _point(member: Member) -> dict:
    return {
        "name": member.name,
        "arm": member.arm,
        "seed": member.seed,
        **{key: _at(member.measures, path) for key, path in PARETO.items()},
    }


def _histograms(measured: Sequence[Member], path: tuple[str, ...], edges: str) -> dict:
    found = {member.name: _at(member.measures, path) for member in measured}
    return {name: {"edges": entry[edges], "counts": entry["counts"]} for name, entry in found.items() if entry}


def training_curve(path: Path) -> list[dict]:
    """At most POINTS rows of a metrics.jsonl, evenly spaced, the last one among them; a line cut off by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append({key: row[key] for key in CURVES if row.get(key) is not None})
    if len(rows) <= POINTS:
        return rows
    return [rows[place] for place in np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]


def _at(measures: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return measures
