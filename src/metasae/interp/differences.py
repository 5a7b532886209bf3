"""Compares auto-interp scores between arms: which scores become more common, changes within pairs, and the means.

The shares of latents per bin of a score, an arm's less the baseline's of the same seed, show which scores become more
common; the difference of two seeds of the baseline shows what chance alone gives. An arm's own random latents are not
pairs, so their difference is one of distributions. Within pairs of matched latents (the paper's figure) each has a
difference of its own; mirrored about 0, they show what they would look like if neither arm were better.

The interval of the baseline against itself is made of both means' intervals (Zou and Donner, 2008, MOVER).
"""

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from metasae.arms.folder import Arm, RunFolder, read_object, split_label
from metasae.compare.catalogue import by_pair
from metasae.interp.scores import ScoreFile, matched_values, read_scores
from metasae.recipe.registry import BASELINE

BINS = 20
# The kind of silent windows that notices blends, where a score has it.
HARDEST = ("same_token", "all")
# The unit that is counted in a row of each kind.
UNITS = {"seeds": "seeds", "pairs": "pairs", "null": "latents"}


def score_differences(run_folder: str | Path) -> list[dict]:
    """One entry per score: {score, part, chance, judge, baseline, edges, n, changes, null, paired, rows}.

    [] for a run without auto-interp. edges: bins + 1. n: SAE -> own latents with the score. changes: arm -> change of
    the share per bin, mean over seeds that both have. null: [{of, change}], one seed of the baseline less another.
    paired: arm -> {edges, share, mirrored, n, higher, lower, tied}, of the differences within all seeds' pairs: shares
    of pairs per bin, and how many pairs score higher in the arm. rows: [{what, kind, arm, difference, ci95, n, unit}],
    means; kind: seeds, pairs or null; ci95 is None where there is none. n: seeds, pairs or latents, as unit says.
    Raises UserError for a damaged file.
    """
    run = RunFolder(run_folder)
    merged = read_object(run.folder / "interp.json")
    baseline = merged.get("baseline", BASELINE)
    scored = {run.arm(*split_label(label)): entry["interp"] for label, entry in merged.get("arms", {}).items()}
    latents = {arm: arm.interp().get("latents", {}) for arm in scored}
    files = {arm: file for arm in scored if (file := read_scores(arm)) is not None}
    differences = []
    for score, part in _hardest_parts(scored.values()).items():
        values = {arm: _own_values(latents[arm], score, part) for arm in scored}
        values = {arm: numbers for arm, numbers in values.items() if len(numbers)}
        if not values:
            continue
        every = np.concatenate(list(values.values()))
        low, high = float(every.min()), float(every.max())
        edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
        shares = {arm: np.histogram(numbers, edges)[0] / len(numbers) for arm, numbers in values.items()}
        of_score = {arm: entry["scores"][score] for arm, entry in scored.items() if score in entry["scores"]}
        means = {arm: entry["parts"].get(part) for arm, entry in of_score.items()}
        differences.append(
            {
                "score": score,
                "part": part,
                "chance": list(of_score.values())[-1]["chance"],
                "judge": next(iter(of_score.values())).get("judge"),
                "baseline": baseline,
                "edges": edges.tolist(),
                "n": {arm.label: len(numbers) for arm, numbers in values.items()},
                "changes": _changes(shares, baseline),
                "null": [
                    {"of": [other.label, one.label], "change": (shares[other] - shares[one]).tolist()}
                    for one, other in _seed_pairs(shares, baseline)
                ],
                "paired": _paired(files, baseline, score, part),
                "rows": [*_between_arms(merged.get("pairs", {}), score, part), *_within_baseline(means, baseline)],
            }
        )
    return differences


def _hardest_parts(scored: Collection[dict]) -> dict[str, str]:
    """Score -> the hardest of its parts that any SAE has, in the order in which the scores come."""
    parts: dict[str, dict[str, None]] = {}
    for entry in scored:
        for score, of_score in entry["scores"].items():
            known = [part for part, mean in of_score["parts"].items() if mean["estimate"] is not None]
            parts.setdefault(score, {}).update(dict.fromkeys(known))
    return {
        score: next((part for part in HARDEST if part in known), next(iter(known)))
        for score, known in parts.items()
        if known
    }


def _own_values(latents: Mapping[str, dict], score: str, part: str) -> np.ndarray:
    """The values of the arm's own random latents, without the partners that were added for matching, as those are not a
    random sample.
    """
    numbers = [entry.get(score, {}).get(part) for entry in latents.values() if entry["own"]]
    return np.array([number for number in numbers if number is not None], np.float64)


def _changes(shares: Mapping[Arm, np.ndarray], baseline: str) -> dict[str, list[float]]:
    base = {arm.seed: share for arm, share in shares.items() if arm.name == baseline}
    changes: dict[str, list[np.ndarray]] = {}
    for arm, share in shares.items():
        if arm.name != baseline and arm.seed in base:
            changes.setdefault(arm.name, []).append(share - base[arm.seed])
    return {name: np.mean(of_seeds, axis=0).tolist() for name, of_seeds in changes.items()}


def _paired(files: Mapping[Arm, ScoreFile], baseline: str, score: str, part: str) -> dict[str, dict]:
    scored = {arm: file for arm, file in files.items() if score in file.content["scores"]}
    base = {arm.seed: file for arm, file in scored.items() if arm.name == baseline}
    of_seeds: dict[str, list[float]] = {}
    for arm, file in scored.items():
        if arm.name != baseline and arm.seed in base:
            a, b, _ = matched_values(file, base[arm.seed], score, part)
            of_seeds.setdefault(arm.name, []).extend((a - b)[np.isfinite(a - b)])
    differences = {name: np.array(of_arm) for name, of_arm in of_seeds.items() if of_arm}
    reach = max((float(np.abs(of_arm).max()) for of_arm in differences.values()), default=0.0) or 1e-6
    # an odd number of bins, so that pairs without any change are in the middle one
    edges = np.linspace(-reach, reach, BINS + 2)
    return {
        name: {
            "edges": edges.tolist(),
            "share": (np.histogram(of_arm, edges)[0] / len(of_arm)).tolist(),
            "mirrored": (np.histogram(-of_arm, edges)[0] / len(of_arm)).tolist(),
            "n": len(of_arm),
            "higher": int((of_arm > 0).sum()),
            "lower": int((of_arm < 0).sum()),
            "tied": int((of_arm == 0).sum()),
        }
        for name, of_arm in differences.items()
    }


def _seed_pairs(arms: Collection[Arm], baseline: str) -> list[tuple[Arm, Arm]]:
    return list(combinations(sorted((arm for arm in arms if arm.name == baseline), key=lambda arm: arm.seed), 2))


def _between_arms(pairs: Mapping[str, dict], score: str, part: str) -> list[dict]:
    """Rows of the differences between arms, over seeds and within pairs. pairs: as in the run's interp.json."""
    rows = []
    for pair, scores in by_pair(pairs).items():
        entry = scores.get(score, {}).get(part)
        if entry is None:
            continue
        name = f"{pair.arm} − {pair.baseline}"
        rows += [
            _row(f"{name}, {what}", "seeds", pair.arm, difference, difference["n_seeds"])
            for what, difference in (("own latents", entry["unpaired"]), ("matched pairs", entry["matched"]))
            if difference is not None and difference["difference"] is not None
        ]
        rows += [
            _row(f"{name}, matched pairs, seed {seed}", "pairs", pair.arm, difference, difference["n_values"])
            for seed, difference in entry["matched_by_seed"].items()
            if difference["difference"] is not None
        ]
    return rows


def _within_baseline(means: Mapping[Arm, dict | None], baseline: str) -> list[dict]:
    """The baseline's seeds against each other: the differences that occur without any penalty."""
    known = {arm: mean for arm, mean in means.items() if mean is not None and mean["estimate"] is not None}
    rows = []
    for one, other in _seed_pairs(known, baseline):
        a, b = known[other], known[one]
        difference = {"difference": a["estimate"] - b["estimate"], "ci95": _interval_of_difference(a, b)}
        name = f"{other.label} − {one.label}, own latents"
        rows.append(_row(name, "null", baseline, difference, a["n_values"] + b["n_values"]))
    return rows


def _interval_of_difference(a: dict, b: dict) -> list[float] | None:
    """The 95% interval of a - b from the intervals of two independent means."""
    if a["ci95"] is None or b["ci95"] is None:
        return None
    difference = a["estimate"] - b["estimate"]
    below = math.hypot(a["estimate"] - a["ci95"][0], b["ci95"][1] - b["estimate"])
    above = math.hypot(a["ci95"][1] - a["estimate"], b["estimate"] - b["ci95"][0])
    return [difference - below, difference + above]


def _row(what: str, kind: str, arm: str, entry: Mapping, n: int) -> dict:
    return {
        "what": what,
        "kind": kind,
        "arm": arm,
        "difference": entry["difference"],
        "ci95": entry["ci95"],
        "n": n,
        "unit": UNITS[kind],
    }
