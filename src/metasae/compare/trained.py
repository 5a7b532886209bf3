"""Whether the arms of a run were trained enough to say which has more atomic latents.

    r        cosine of the baseline's matched decoder rows in two seeds: seeds of a short training share little
    fall     how much less FVU is in the last tenth of the steps at the full learning rate than in the tenth before,
             over an arm's seeds, of the arm that falls most
    share    F1 of the baseline's recovered spike-ins over that of a linear probe: near 0 no method can be told apart

A run passes at r >= .4, a fall below 2.5% and a share of .5 or more. r and share are the baseline's, as another arm's
method may change them. The limits tell `demo` (1,400 steps) from `demo-full` (5,860); docs/measures.md says why they
are not stricter. While the learning rate decays, FVU falls by 2 to 4% per tenth in any run, as the noise of the steps
shrinks. That says nothing about whether training was long enough.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from metasae.arms.folder import Arm
from metasae.recipe.registry import ARMS

LIMITS = {"r": 0.4, "fall": 0.025, "share": 0.5}
# Least rows of metrics.jsonl in a tenth of the steps, for their mean.
_LEAST_ROWS = 5


def trained_enough(comparison: dict, arms: Sequence[Arm], decay: float, own_starts: bool = True) -> dict:
    """{enough, r, fall, share, limits}; a number that is not known is None.

    comparison: as `metasae.compare.compare.compare` makes it. decay: the share of the steps at the end over which the
    learning rate fell. own_starts: whether each seed started from its own weights; if all started from one SAE
    (`train.init`), r says nothing about training and counts as not known. enough: False if a known number misses its
    limit; None if none does but r is not known, as with one seed.

    The fall leaves out arms of `atomic`: the FVU of such an arm falls after its nesting, however long it trains.
    """
    means = comparison["arms"][comparison["baseline"]]["means"]
    recovered, ceiling = (means.get(f"spikes.{key}") for key in ("recovery_f1", "ceiling_f1"))
    steady = (arm for arm in arms if not (arm.name in ARMS and ARMS[arm.name].atomic))
    by_name = groupby(sorted(steady, key=lambda arm: arm.name), key=lambda arm: arm.name)
    falls = [fall for fall in (fall_of(list(seeds), decay) for _, seeds in by_name) if fall is not None]
    known = {
        "r": means.get("seeds.mean_r") if own_starts else None,
        "fall": max(falls, default=None),
        "share": recovered / ceiling if recovered is not None and ceiling else None,
    }
    missed = missing_its_limit(known)
    enough = False if missed else None if known["r"] is None else True
    return {"enough": enough, **known, "limits": LIMITS}


def missing_its_limit(known: dict) -> list[str]:
    """The names of the known numbers that miss their limits."""
    passes = {
        "r": known["r"] is None or known["r"] >= LIMITS["r"],
        "fall": known["fall"] is None or known["fall"] < LIMITS["fall"],
        "share": known["share"] is None or known["share"] >= LIMITS["share"],
    }
    return [key for key, passed in passes.items() if not passed]


def fall_of(seeds: Sequence[Arm], decay: float) -> float | None:
    """The share by which an arm's FVU falls in the last tenth of the steps at the full learning rate, over its seeds.

    None if no training curve is known or long enough, or if the learning rate decays for more than 70% of the steps.
    """
    end, means = 1.0 - decay, []
    for arm in seeds if end >= 0.3 else ():
        rows = [(row["step"], row["fvu"]) for row in arm.metrics() if "fvu" in row and "step" in row]
        steps, fvu = np.array(rows, float).reshape(-1, 2).T
        place = steps / steps.max(initial=1.0)
        before, last = fvu[(place > end - 0.2) & (place <= end - 0.1)], fvu[(place > end - 0.1) & (place <= end)]
        if min(len(before), len(last)) >= _LEAST_ROWS:
            means.append((before.mean(), last.mean()))
    if not means:
        return None
    before, last = np.mean(means, axis=0)
    return float(1 - last / before)
