"""Arm against arm: RUN/interp.json, from what every arm's interp.json holds.

An arm's mean is over its own random covered latents. Where partners of the baseline's latents were scored as well (Hungarian on decoder
cosine), the difference within pairs is reported beside that of the means. sense_intruder is of siblings (`metasae.interp.siblings`), not
of these latents, so it has no matched difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from metasae.compare.shared_seeds import of_both, of_names
from metasae.interp.held import INTRUDER, Held
from metasae.interp.result import CHANCE, matched_difference, over_seeds

# What must be alike before two arms are held against each other.
ALIKE = ("windows", "seed", "asked")


def merged(held: Sequence[Held], baseline: str) -> dict:
    """{"baseline", "arms": name -> {"interp": summary}, "pairs": `arm vs baseline` -> score -> part -> {unpaired, matched, matched_by_seed}}.

    held: of arms whose conditions are alike.
    """
    return {
        "baseline": baseline,
        "arms": {each.name: {"interp": each.summary()} for each in held},
        "pairs": _pairs(held, baseline),
    }


def alike(one: Mapping, other: Mapping) -> bool:
    """Whether the conditions of two arms let them be compared."""
    return all(one.get(name) == other.get(name) for name in ALIKE)


def matched_values(arm: Held, base: Held, key: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the arm's numbers, the baseline's, clusters), each [p], of the pairs of matched latents; NaN where one lacks windows.

    Without pairs where the arm was matched with other weights of the baseline than these.
    """
    rows = [{latent: row for row, latent in enumerate(each.latents)} for each in (base, arm)]
    known = arm.file["pairs"] if arm.file["conditions"]["matched_with"] == base.file["conditions"]["of"] else ()
    pairs = [[rows[0][one], rows[1][other]] for one, other in known]
    b, a = np.array(pairs, np.int64).reshape(-1, 2).T
    return arm.values(key, part)[a], base.values(key, part)[b], base.clusters()[b]


def _pairs(held: Sequence[Held], baseline: str) -> dict:
    by_arm: dict[str, dict[int, Held]] = {}
    for each in held:
        by_arm.setdefault(each.arm, {})[each.seed] = each
    base = by_arm.pop(baseline, {})
    pairs: dict[str, dict] = {}
    for arm, of_arm in by_arm.items() if base else ():
        found = pairs.setdefault(f"{arm} vs {baseline}", {})
        for key in CHANCE:
            sides = [
                {seed: each for seed, each in side.items() if key in each.file["scores"]} for side in (of_arm, base)
            ]
            both = [each for side in sides for each in side.values()]
            # scores by two judges are not of one kind
            if not all(sides) or len({each.judge(key) for each in both}) > 1:
                continue
            if key == INTRUDER:
                found |= _of_siblings(*sides)
            else:
                parts = [part for part in both[0].parts(key) if all(part in each.parts(key) for each in both)]
                found[key] = {part: _differences(*sides, key, part) for part in parts}
    return pairs


def _of_siblings(arm: Mapping[int, Held], base: Mapping[int, Held]) -> dict:
    """{} where a side has no siblings: one seed of the baseline may have no sibling seed to be split in."""
    sides = [
        {seed: score for seed, each in side.items() if (score := each.file["scores"][INTRUDER]).get("parents")}
        for side in (arm, base)
    ]
    if not all(sides):
        return {}
    means = [{seed: score["parts"]["all"]["estimate"] for seed, score in side.items()} for side in sides]
    # solo's own are split in its next seed, so its numbers share seeds
    behind = [
        {seed: of_names(seed, [score["parents"], score["children"]]) for seed, score in side.items()} for side in sides
    ]
    return {
        INTRUDER: {"all": {"unpaired": over_seeds(*means, of_both(*behind)), "matched": None, "matched_by_seed": {}}}
    }


def _differences(arm: Mapping[int, Held], base: Mapping[int, Held], key: str, part: str) -> dict:
    means = [{seed: _mean(each.values(key, part)[each.own]) for seed, each in side.items()} for side in (arm, base)]
    within = {
        seed: matched_difference(*matched_values(each, base[seed], key, part), each.file["conditions"]["seed"])
        for seed, each in arm.items()
        if seed in base and each.file["conditions"]["matched_with"] == base[seed].file["conditions"]["of"]
    }
    within = {seed: entry for seed, entry in within.items() if entry["n_values"] + entry["excluded"]}
    matched = (
        over_seeds(*({seed: entry[name] for seed, entry in within.items()} for name in ("a", "b"))) if within else None
    )
    return {
        "unpaired": over_seeds(*means),
        "matched": matched,
        "matched_by_seed": {str(seed): entry for seed, entry in within.items()},
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
