"""Arm against arm: RUN/interp.json, from what every arm's interp.json holds.

An arm's mean is over its own random covered latents. Where partners of the baseline's latents were scored as well
(Hungarian on decoder cosine), the difference within pairs is reported beside that of the means. sense_intruder is of
siblings (`metasae.interp.intruder`), not of these latents, so it has no matched difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from metasae.compare.compare import of_both, of_names
from metasae.interp.choice import CHANCE, INTRUDER
from metasae.interp.scores import ScoreFile
from metasae.intervals.resampling import bootstrap_interval
from metasae.intervals.statistics import paired_difference


def merged(scores: Sequence[ScoreFile], baseline: str) -> dict:
    """{"baseline", "arms": name -> {"interp": summary}, "pairs": `arm vs baseline` -> score -> part -> {unpaired,
    matched, matched_by_seed}}.

    scores: of arms whose conditions are alike.
    """
    by_arm: dict[str, dict[int, ScoreFile]] = {}
    for file in scores:
        by_arm.setdefault(file.arm.name, {})[file.arm.seed] = file
    base = by_arm.pop(baseline, {})
    return {
        "baseline": baseline,
        "arms": {file.arm.label: {"interp": file.summary()} for file in scores},
        "pairs": {f"{arm} vs {baseline}": _compared(of_arm, base) for arm, of_arm in by_arm.items() if base},
    }


def matched_values(arm: ScoreFile, base: ScoreFile, key: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the arm's numbers, the baseline's, clusters), each [p], of the pairs of matched latents; NaN where one lacks
    windows.

    Without pairs where the arm was matched with other weights of the baseline than these.
    """
    row_of_arm, row_of_base = ({latent: row for row, latent in enumerate(side.latents)} for side in (arm, base))
    pairs = arm.content["pairs"] if _are_matched(arm, base) else ()
    a = np.array([row_of_arm[latent] for _, latent in pairs], np.int64)
    b = np.array([row_of_base[latent] for latent, _ in pairs], np.int64)
    return arm.values(key, part)[a], base.values(key, part)[b], base.clusters()[b]


def matched_difference(a: np.ndarray, b: np.ndarray, clusters: np.ndarray, seed: int) -> dict:
    """a - b over pairs of matched latents, float64 [p] each: means, the mean difference and its interval; pairs without
    both are counted.
    """
    both = np.isfinite(a) & np.isfinite(b)
    interval = bootstrap_interval(np.where(both, a - b, np.nan), seed=seed, clusters=clusters).as_dict()
    means = {name: float(values[both].mean()) if both.any() else None for name, values in (("a", a), ("b", b))}
    return {**means, "difference": interval.pop("estimate"), **interval}


def _are_matched(arm: ScoreFile, base: ScoreFile) -> bool:
    """Whether these are the very weights of the baseline that the arm's latents were matched with."""
    return arm.content["conditions"]["matched_with"] == base.content["conditions"]["of"]


def _compared(arm: Mapping[int, ScoreFile], base: Mapping[int, ScoreFile]) -> dict:
    """score -> part -> differences. arm, base: seed -> scores."""
    differences = {}
    for key in CHANCE:
        sides = [{seed: file for seed, file in side.items() if key in file.content["scores"]} for side in (arm, base)]
        both = [file for side in sides for file in side.values()]
        # scores by two judges are not of one kind
        if not all(sides) or len({file.judge(key) for file in both}) > 1:
            continue
        if key == INTRUDER:
            differences |= _of_siblings(*sides)
        else:
            parts = [part for part in both[0].parts(key) if all(part in file.parts(key) for file in both)]
            differences[key] = {part: _differences(*sides, key, part) for part in parts}
    return differences


def _of_siblings(arm: Mapping[int, ScoreFile], base: Mapping[int, ScoreFile]) -> dict:
    """{} where a side has no siblings: one seed of the baseline may have no sibling seed to be split in."""
    means, behind = [], []
    for side in (arm, base):
        scores = {seed: file.content["scores"][INTRUDER] for seed, file in side.items()}
        scores = {seed: score for seed, score in scores.items() if score.get("parents")}
        means.append({seed: score["parts"]["all"]["estimate"] for seed, score in scores.items()})
        # solo's own are split in its next seed, so its numbers share seeds
        behind.append({seed: of_names(seed, [score["parents"], score["children"]]) for seed, score in scores.items()})
    if not all(means):
        return {}
    unpaired = paired_difference(*means, between=of_both(*behind)).as_dict()
    return {INTRUDER: {"all": {"unpaired": unpaired, "matched": None, "matched_by_seed": {}}}}


def _differences(arm: Mapping[int, ScoreFile], base: Mapping[int, ScoreFile], key: str, part: str) -> dict:
    means = [{seed: _mean(file.values(key, part)[file.own]) for seed, file in side.items()} for side in (arm, base)]
    within = {}
    for seed, file in arm.items():
        if seed in base and _are_matched(file, base[seed]):
            values = matched_values(file, base[seed], key, part)
            difference = matched_difference(*values, file.content["conditions"]["seed"])
            if difference["n_values"] + difference["excluded"]:
                within[seed] = difference
    sides = [{seed: difference[side] for seed, difference in within.items()} for side in ("a", "b")]
    return {
        "unpaired": paired_difference(*means).as_dict(),
        "matched": paired_difference(*sides).as_dict() if within else None,
        "matched_by_seed": {str(seed): difference for seed, difference in within.items()},
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
