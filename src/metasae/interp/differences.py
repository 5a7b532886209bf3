"""How auto-interp scores differ between arms: where latents become more or fewer, what changes within pairs, and the means with intervals.

The shares of latents per bin of a score, an arm's less the baseline's of the same seed, show which scores become more common; two seeds of
the baseline held against each other show what chance does. An arm's own random latents are not pairs, so their difference is one of
distributions. Within pairs of matched latents (the paper's figure) each has a difference of its own; mirrored about 0, they show what
they would look like if neither arm were better.

The interval of the baseline against itself is made of both means' intervals (Zou and Donner, 2008, MOVER).
"""

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from metasae import files
from metasae.arms.folder import RunFolder
from metasae.interp.pairs import matched_values
from metasae.interp.scores import ScoreFile, read_scores

BINS = 20
# Of the kinds of silent windows the one that sees blends, where a score has it.
HARDEST = ("same_token", "all")


def score_differences(run_folder: str | Path) -> list[dict]:
    """One entry per score: {score, part, chance, judge, baseline, edges, n, changes, null, paired, rows}; [] for a run without auto-interp.

    edges: bins + 1. n: SAE -> own latents with the score. changes: arm -> change of the share per bin, mean over seeds that both have.
    null: [{of, change}], one seed of the baseline less another. paired: arm -> {edges, share, mirrored, n, higher, lower, tied}, of the
    differences within all seeds' pairs: shares of pairs per bin, and how many pairs score higher in the arm. rows: [{what, kind, arm,
    difference, ci95, n, unit}], means; kind: seeds, pairs or null; ci95 is None where there is none. n: seeds, pairs or latents, as unit
    says. Raises UserError for a damaged file.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "interp.json").is_file():
        return []
    merged = files.read_json(run_folder / "interp.json")
    baseline = merged.get("baseline", "solo")
    told = {name: entry["interp"] for name, entry in merged.get("arms", {}).items()}
    latents = {name: _latents(run_folder / "arms" / name / "interp.json") for name in told}
    held = {name: each for name in told if (each := read_scores(RunFolder(run_folder).arm(*_split(name)))) is not None}
    found = []
    for score, part, chance in _scores(told):
        values = {name: _values(of, score, part) for name, of in latents.items()}
        values = {name: of for name, of in values.items() if len(of)}
        if not values:
            continue
        every = np.concatenate(list(values.values()))
        low, high = float(every.min()), float(every.max())
        edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
        shares = {name: np.histogram(of, edges)[0] / len(of) for name, of in values.items()}
        parts = {name: entry["scores"].get(score, {}).get("parts", {}).get(part) for name, entry in told.items()}
        about = next(entry["scores"][score] for entry in told.values() if score in entry["scores"])
        found.append(
            {
                "score": score,
                "part": part,
                "chance": chance,
                "judge": about.get("judge"),
                "baseline": baseline,
                "edges": edges.tolist(),
                "n": {name: len(of) for name, of in values.items()},
                "changes": _changes(shares, baseline),
                "null": [
                    {"of": [b, a], "change": (shares[b] - shares[a]).tolist()} for a, b in _seeds_of(shares, baseline)
                ],
                "paired": _paired(held, baseline, score, part),
                "rows": [*_between_arms(merged.get("pairs", {}), score, part), *_within_baseline(parts, baseline)],
            }
        )
    return found


def _scores(told: Mapping[str, dict]) -> list[tuple[str, str, float | None]]:
    """(score, the hardest of its parts that any SAE has, chance), in the order in which the scores come."""
    chances, parts = {}, {}
    for each in told.values():
        for score, entry in each["scores"].items():
            chances[score] = entry["chance"]
            parts.setdefault(score, {}).update(
                {part: True for part, mean in entry["parts"].items() if mean["estimate"] is not None}
            )
    return [
        (score, next((part for part in HARDEST if part in known), next(iter(known))), chances[score])
        for score, known in parts.items()
        if known
    ]


def _latents(path: Path) -> dict:
    return files.read_json(path).get("latents", {}) if path.is_file() else {}


def _values(latents: Mapping[str, dict], score: str, part: str) -> np.ndarray:
    """Of the arm's own random latents; the partners that were added for matching are no random sample."""
    numbers = [entry.get(score, {}).get(part) for entry in latents.values() if entry["own"]]
    return np.array([number for number in numbers if number is not None], np.float64)


def _split(name: str) -> tuple[str, int]:
    arm, _, seed = name.rpartition("-s")
    return arm, int(seed)


def _changes(shares: Mapping[str, np.ndarray], baseline: str) -> dict[str, list[float]]:
    changes: dict[str, list[np.ndarray]] = {}
    for name, share in shares.items():
        arm, seed = _split(name)
        if arm != baseline and f"{baseline}-s{seed}" in shares:
            changes.setdefault(arm, []).append(share - shares[f"{baseline}-s{seed}"])
    return {arm: np.mean(each, axis=0).tolist() for arm, each in changes.items()}


def _paired(held: Mapping[str, ScoreFile], baseline: str, score: str, part: str) -> dict[str, dict]:
    found: dict[str, list[np.ndarray]] = {}
    for name, each in held.items():
        arm, seed = _split(name)
        base = held.get(f"{baseline}-s{seed}")
        if arm == baseline or base is None or any(score not in side.content["scores"] for side in (each, base)):
            continue
        a, b, _ = matched_values(each, base, score, part)
        found.setdefault(arm, []).append((a - b)[np.isfinite(a - b)])
    differences = {arm: np.concatenate(each) for arm, each in found.items()}
    differences = {arm: each for arm, each in differences.items() if len(each)}
    reach = max((float(np.abs(each).max()) for each in differences.values()), default=0.0) or 1e-6
    # an odd number of bins: what does not change at all is in the middle one
    edges = np.linspace(-reach, reach, BINS + 2)
    return {
        arm: {
            "edges": edges.tolist(),
            "share": (np.histogram(each, edges)[0] / len(each)).tolist(),
            "mirrored": (np.histogram(-each, edges)[0] / len(each)).tolist(),
            "n": len(each),
            "higher": int((each > 0).sum()),
            "lower": int((each < 0).sum()),
            "tied": int((each == 0).sum()),
        }
        for arm, each in differences.items()
    }


def _seeds_of(names: Mapping[str, object], baseline: str) -> list[tuple[str, str]]:
    return list(combinations(sorted((name for name in names if _split(name)[0] == baseline), key=_split), 2))


def _between_arms(pairs: Mapping[str, dict], score: str, part: str) -> list[dict]:
    rows = []
    for pair, scores in pairs.items():
        entry, arm = scores.get(score, {}).get(part), pair.split(" vs ")[0]
        if entry is None:
            continue
        told = pair.replace(" vs ", " − ")
        for kind, what in (("unpaired", "own latents"), ("matched", "matched pairs")):
            if entry[kind] is not None and entry[kind]["difference"] is not None:
                rows.append(
                    _row(
                        f"{told}, {what}",
                        "seeds",
                        arm,
                        entry[kind]["difference"],
                        entry[kind]["ci95"],
                        entry[kind]["n_seeds"],
                        "seeds",
                    )
                )
        for seed, own in entry["matched_by_seed"].items():
            if own["difference"] is not None:
                rows.append(
                    _row(
                        f"{told}, matched pairs, seed {seed}",
                        "pairs",
                        arm,
                        own["difference"],
                        own["ci95"],
                        own["n_values"],
                        "pairs",
                    )
                )
    return rows


def _within_baseline(parts: Mapping[str, dict | None], baseline: str) -> list[dict]:
    """The baseline's seeds against each other: what there is to see without any penalty."""
    known = {name: part for name, part in parts.items() if part is not None and part["estimate"] is not None}
    rows = []
    for one, other in _seeds_of(known, baseline):
        a, b = known[other], known[one]
        count = a["n_values"] + b["n_values"]
        rows.append(
            _row(
                f"{other} − {one}, own latents",
                "null",
                baseline,
                a["estimate"] - b["estimate"],
                _of_two(a, b),
                count,
                "latents",
            )
        )
    return rows


def _of_two(a: dict, b: dict) -> list[float] | None:
    """The 95% interval of a - b from the intervals of two independent means."""
    if a["ci95"] is None or b["ci95"] is None:
        return None
    difference = a["estimate"] - b["estimate"]
    below = math.hypot(a["estimate"] - a["ci95"][0], b["ci95"][1] - b["estimate"])
    above = math.hypot(a["ci95"][1] - a["estimate"], b["estimate"] - b["ci95"][0])
    return [difference - below, difference + above]


def _row(what: str, kind: str, arm: str, difference: float, ci95: list[float] | None, n: int, unit: str) -> dict:
    return {"what": what, "kind": kind, "arm": arm, "difference": difference, "ci95": ci95, "n": n, "unit": unit}
