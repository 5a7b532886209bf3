"""The overview of a run: verdict, measures, histograms and training curves, gathered from the run folder's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache

from metasae.arms.folder import Arm, read_object
from metasae.compare.catalogue import CATALOGUE, GROUPS, WHY_NOT_PHI_ALONE, Quantity, change, named_side, reading
from metasae.compare.older import completed
from metasae.compare.verdict import headline
from metasae.data.model.model_folder import local_folder
from metasae.errors import UserError
from metasae.files import json_safe
from metasae.interp.differences import score_differences
from metasae.interp.standing import Standing, standings
from metasae.recipe.recipe import Recipe

CONFIG = "config.json"
POINTS = 300
CURVES = ("tokens", "fvu", "penalty", "aux")
# Where the numbers of the Pareto plot are in measures.json.
PARETO = {
    "fvu": ("fidelity", "fvu"),
    "recovery_f1": ("spikes", "recovery_f1"),
    "concept_f1": ("concepts", "best_f1"),
    "mean_abs_phi": ("cooccurrence", "mean_abs_phi"),
    "nearest_phi": ("cooccurrence", "nearest_phi"),
    "meta_ve_excess": ("decomposability", "meta_ve_excess"),
}
QUANTITIES = {quantity.key: quantity for quantity in CATALOGUE}


def overview_of(
    run_folder: Path, recipe: Recipe | None, arms: Sequence[Arm], saes: Sequence[dict], causal: bool
) -> dict:
    """The data of the overview. saes: the store's facts of each arm. Whatever the run folder lacks is None or empty."""
    compared = read_object(run_folder / "compare.json")
    compared = completed(compared) if compared else {}
    enough = compared["trained"]["enough"] if compared else None
    measures = {arm.label: arm.measures() for arm in arms}
    of = {name: of_arm for name, of_arm in measures.items() if of_arm}
    planted = recipe is not None and recipe.text.source == "planted"
    model = None if recipe is None else "planted world" if planted else recipe.model.name or recipe.model.path
    subject = {"hook": None if recipe is None or planted else recipe.hook.point, "model": model}
    texts = [_at(measured, ("conditions", "n_tokens")) for measured in of.values()]
    return json_safe(
        {
            "run": run_folder.resolve().name,
            "headline": headline(compared) if compared else None,
            "verdict": compared.get("verdict"),
            # of each arm the seeds that are measured, not those that are trained
            "seeds": {arm: entry["seeds"] for arm, entry in compared.get("arms", {}).items()},
            "conditions": compared.get("conditions") or {},
            "baseline": compared.get("baseline"),
            "missing": compared.get("missing", [arm.label for arm in arms if arm.label not in of]),
            "saes": [
                {**sae, **{key: _at(measures[sae["name"]], ("fidelity", key)) for key in ("l0", "fvu")}, **subject}
                for sae in saes
            ],
            "quantities": [facts_of(quantity) for quantity in CATALOGUE],
            "note": WHY_NOT_PHI_ALONE,
            "arms": {
                arm: {key: entry[key] for key in ("seeds", "means", "intervals", "values")}
                for arm, entry in compared.get("arms", {}).items()
            },
            "pairs": {
                name: {
                    key: {**entry, **in_words(key, entry, enough)} for key, entry in pair.items() if key in QUANTITIES
                }
                for name, pair in compared.get("pairs", {}).items()
            },
            "pareto": [
                {"name": arm.label, "arm": arm.name, "seed": arm.seed}
                | {key: _at(of[arm.label], path) for key, path in PARETO.items()}
                for arm in arms
                if arm.label in of
            ],
            "phi_histogram": _histograms(of, ("cooccurrence", "histogram"), "edges"),
            "rates": _histograms(of, ("fidelity", "rates", "histogram"), "log10_edges"),
            "scores": score_differences(run_folder),
            "judges": [standing._asdict() | {"line": standing.line} for standing in _standings(arms)],
            "training": {arm.label: _training_curve(arm) for arm in arms},
            "causal": causal,
            "tokens": next((count for count in texts if count is not None), None),
        }
    )


def _standings(arms: Sequence[Arm]) -> list[Standing]:
    interp = {arm.label: arm.interp() for arm in arms}
    return standings({label: {"interp": scores} for label, scores in interp.items() if scores})


def is_causal(recipe: Recipe | None) -> bool:
    """Whether the run's model predicts tokens; False where there is none, or its configuration is not at hand."""
    if recipe is None or not recipe.reads_text:
        return False
    try:
        folder, revision = local_folder(recipe.model), recipe.model.revision or None
        # of a model on the hub where it was downloaded before
        path = folder / CONFIG if folder else try_to_load_from_cache(recipe.model.source, CONFIG, revision=revision)
        names = read_object(Path(path)).get("architectures") or () if isinstance(path, (str, Path)) else ()
        if not any(name.endswith("ForConditionalGeneration") for name in names):
            return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
        # transformers, which brings torch along, is asked only where the name of the model's class does not tell
        import transformers

        from metasae.data.model import loading

        return loading._is_causal(
            transformers.AutoConfig.from_pretrained(str(folder or recipe.model.source), local_files_only=True)
        )
    except (UserError, OSError, ValueError):
        return False


def in_words(key: str, entry: dict, enough: bool | None) -> dict:
    """A difference as the report words it. clear: shown as better or worse (`metasae.compare.catalogue.named_side`)."""
    quantity = QUANTITIES[key]
    return {
        "clear": bool(named_side(quantity, entry, enough)),
        "reading": reading(quantity, entry, enough),
        "change": change(quantity, entry),
    }


def facts_of(quantity: Quantity) -> dict:
    """The facts of a measure that the pages need."""
    return {
        "key": quantity.key, "label": quantity.label, "group": quantity.group, "group_label": GROUPS[quantity.group],
        "better": quantity.better, "main": quantity.main, "meaning": quantity.meaning, "relative": quantity.relative,
        "kind": quantity.kind,
    }  # fmt: skip


def _histograms(measures: Mapping[str, dict], path: tuple[str, ...], edges: str) -> dict:
    entries = {name: _at(measured, path) for name, measured in measures.items()}
    return {name: {"edges": entry[edges], "counts": entry["counts"]} for name, entry in entries.items() if entry}


def _training_curve(arm: Arm) -> list[dict]:
    """At most POINTS rows of the arm's metrics, evenly spaced, the last one among them."""
    rows = [{key: row[key] for key in CURVES if row.get(key) is not None} for row in arm.metrics()]
    if len(rows) <= POINTS:
        return rows
    return [rows[place] for place in np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]


def _at(measures: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return measures
