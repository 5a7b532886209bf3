"""Our measures of a run in SAEBench's result envelope, so that whatever reads its results reads ours beside them.

The envelope (`BaseEvalOutput` of SAEBench 0.6): eval_type_id, eval_config, eval_id, datetime_epoch_millis, eval_result_metrics (category ->
metric -> number, flat), eval_result_details, sae_bench_commit_hash, sae_lens_id, sae_lens_release_id, sae_lens_version, sae_cfg_dict and
eval_result_unstructured. Nothing is evaluated here, and SAEBench need not be installed; where it is, its own classes check the envelope.
"""

import json
import re
import uuid
from dataclasses import make_dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from metasae import files
from metasae.compare.catalogue import CATALOGUE, Quantity
from metasae.errors import UserError
from metasae.interop.checked import table

EVAL_TYPE = "metasae"


def write_results(run: str | Path, out: str | Path) -> list[Path]:
    """Writes `OUT/metasae/RUN_ARM_eval_results.json` for every measured arm of a run folder; gives the files.

    Metrics are those of the catalogue that measures.json has as numbers. One that it has as null is left out, never written as -1 or 0,
    and named in eval_result_unstructured.missing, beside what each metric means and which way is better.
    Raises UserError when no arm is measured or a file is damaged.
    """
    run = Path(run)
    arms = sorted(each.parent for each in run.glob("arms/*-s*/measures.json"))
    if not arms:
        raise UserError(f"no arm of {run} is measured yet; run `metasae run` on it first")
    written = []
    for arm in arms:
        result = envelope(arm, run.resolve().name)
        check(result)
        path = (
            Path(out)
            / EVAL_TYPE
            / f"{result['sae_lens_release_id']}_{result['sae_lens_id']}_eval_results.json".replace("/", "_")
        )
        files.write_json(path, result)
        written.append(path)
    return written


def envelope(arm: Path, release: str) -> dict[str, Any]:
    """The envelope of one arm's folder with `measures.json` and `primary/cfg.json`.

    eval_id is worked out from the rest, so the same measures have the same one. datetime_epoch_millis: when they were taken.
    """
    file = arm / "measures.json"
    measures, cfg = files.read_json(file), files.read_json(arm / "primary" / "cfg.json")
    place = table(cfg, "metadata", str(arm / "primary" / "cfg.json"))
    recipe = place.get("metasae", {}).get("recipe", {})
    config = {**table(measures, "conditions", str(file)), "measure": recipe.get("measure", {})}
    config |= {key: place.get(key) for key in ("model_name", "hook_name", "dataset_path", "context_size")}
    metrics, missing, meanings = _metrics(measures)
    identity = json.dumps([release, arm.name, config, metrics], sort_keys=True)
    return {
        "eval_type_id": EVAL_TYPE,
        "eval_config": config,
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, identity)),
        "datetime_epoch_millis": int(file.stat().st_mtime * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": f"none: measured by metasae {metadata.version('metasae')}",
        "sae_lens_id": arm.name,
        "sae_lens_release_id": release,
        "sae_lens_version": metadata.version("sae-lens") if util.find_spec("sae_lens") else None,
        "sae_cfg_dict": {**{key: value for key, value in cfg.items() if key != "metadata"}, **_flat(place)},
        "eval_result_unstructured": {"missing": missing, "meanings": meanings},
    }


def check(result: dict[str, Any]) -> bool:
    """Whether SAEBench is installed and takes the envelope; False where it is not installed. Raises ValueError where it refuses."""
    if util.find_spec("sae_bench") is None:
        return False
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.dataclasses import dataclass
    from sae_bench.evals import base_eval_output as base

    # pydantic's ValidationError is a ValueError; extra keys are errors, so that none is dropped in silence
    strict = dataclass(config=ConfigDict(extra="forbid", strict=True))

    def category(name: str, values: dict) -> type:
        return strict(make_dataclass(name, [(key, int | float) for key in values], bases=(base.BaseMetrics,)))

    found = result["eval_result_metrics"]
    categories = strict(
        make_dataclass(
            "Categories", [(name, category(name, found[name])) for name in found], bases=(base.BaseMetricCategories,)
        )
    )
    config = strict(
        make_dataclass("Config", [(key, Any) for key in result["eval_config"]], bases=(base.BaseEvalConfig,))
    )

    @strict
    class Output(base.BaseEvalOutput[config, categories, base.BaseResultDetail]):
        eval_config: config
        eval_id: str
        datetime_epoch_millis: int
        eval_result_metrics: categories
        eval_type_id: str

    TypeAdapter(Output).validate_json(json.dumps(result, allow_nan=False))
    return True


def _metrics(measures: dict) -> tuple[dict[str, dict[str, float]], list[str], dict[str, dict]]:
    """(group -> metric -> number, keys that are null, key -> what it means)."""
    metrics: dict[str, dict[str, float]] = {}
    missing, meanings = [], {}
    for quantity in CATALOGUE:
        held, value = _at(measures, quantity)
        if not held:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            missing.append(quantity.key)
            continue
        metrics.setdefault(quantity.group, {})[_name(quantity)] = value
        meanings[f"{quantity.group}.{_name(quantity)}"] = {
            "label": quantity.label,
            "better": quantity.better,
            "meaning": quantity.meaning,
        }
    return metrics, missing, meanings


def _at(measures: Any, quantity: Quantity) -> tuple[bool, Any]:
    for key in quantity.path:
        if not isinstance(measures, dict) or key not in measures:
            return False, None
        measures = measures[key]
    return True, measures


def _name(quantity: Quantity) -> str:
    """As SAEBench's metrics are named: a word that may be an attribute."""
    return re.sub(r"\W", "_", "_".join(quantity.path[1:]))


def _flat(place: dict) -> dict[str, Any]:
    """Where the SAE belongs and what it was trained by, without the recipe's tables of other rooms."""
    ours = place.get("metasae", {})
    provenance = {key: ours[key] for key in ("version", "arm", "seed", "data_fingerprint") if key in ours}
    names = ("model_name", "hook_name", "dataset_path", "context_size", "prepend_bos", "k", "trained_architecture")
    train = ours.get("recipe", {}).get("train", {})
    return {key: place[key] for key in names if key in place} | {
        "metasae": provenance | ({"train": train} if train else {})
    }
