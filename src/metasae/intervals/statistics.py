"""Differences between arms, with their intervals.

The unit is a trained SAE (a seed), never a pair of latents or a token.

Arms are paired: they share initialisation and batches, so each seed gives one difference. All seeds are measured on the
same text, so an interval has two parts, seeds and text (`metasae.intervals.crossed`). The text's part needs the values
with one block of documents left out (`metasae.measures.firing.firings`); a measure of the weights alone has none, and
its interval is Student's t over seeds. A measure by critics (`metasae.measures.rows.critic`) is one of the weights, but
all SAEs are measured by critics of the same few seeds. So critics take the place of blocks: there are values with one
critic left out, and the interval has a part for critics. For a number that takes SAEs of two seeds, `between` gives
both, as numbers that share a seed are not independent.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from metasae.intervals.crossed import (
    ALPHA,
    Covariance,
    covariance,
    jackknife,
    over_shared_seeds,
    ratio_interval,
    t_half_width,
)
from metasae.intervals.estimates import Difference, Interval, Mean
from metasae.intervals.shares import at_least_binomial

Values = Mapping[int, float | None]
Blocks = Mapping[int, Sequence[float | None] | None]
# {seed: the seeds whose SAEs its number takes}; None if that is not known
Between = Mapping[int, Collection[int] | None]
# The units that are left out in turn.
Source = Literal["documents", "critics"]


def paired_difference(
    a: Values,
    b: Values,
    a_blocks: Blocks | None = None,
    b_blocks: Blocks | None = None,
    between: Between | None = None,
    blocks_of: Source = "documents",
    shares_of: tuple[Values, Values] | None = None,
) -> Difference:
    """The difference a - b over the seeds that both arms have. a, b: {seed: value on the whole text}.

    a_blocks, b_blocks: {seed: the B values with one document block left out each}.

    Only seeds with a finite number on both sides count; the note names the others. If a seed lacks blocks, or they hold
    something that is not a number, the interval is over seeds alone and the note says so. between: for numbers that
    take several seeds, all seeds that either side takes; None: each number takes its own seed. If leaving out one seed
    leaves no number, there is no interval. blocks_of "critics": a_blocks, b_blocks are the values with one critic left
    out each. shares_of: if a and b are shares of counted things, the number of these for each seed
    (`metasae.intervals.shares`). Raises ValueError if only one arm has blocks, their number differs between arms or
    seeds, or both blocks and `between` are given.
    """
    if (a_blocks is None) != (b_blocks is None):
        raise ValueError("blocks must be given for both arms or for neither")
    seeds, notes = _usable(a, b, between=between)
    if not seeds:
        return Difference(note="; ".join(notes))
    full_a, full_b = (np.array([arm[seed] for seed in seeds], dtype=np.float64) for arm in (a, b))
    without, trouble = _left_out(seeds, blocks_of, a_blocks, b_blocks)
    members, unknown = _members(seeds, between, without)
    trouble += unknown
    # differences are taken within a seed before anything is summed, as arms may agree in all but the last digits
    full = np.stack([full_a - full_b, full_b])
    if without is not None:
        without = np.stack([without[0] - without[1], without[1]])
    difference, mean_b = (float(mean) for mean in full.mean(axis=1))
    spread = _covariance(full, without, members)
    if spread is not None and shares_of is not None:
        spread = at_least_binomial(spread, full_a, full_b, *([of[seed] for seed in seeds] for of in shares_of))
    if spread is not None and difference and spread.half_width() <= 1e-12 * np.abs(full).max():
        trouble.append("the same difference in every seed, so the interval has no width")
    percent, percent_ci95 = _percent(full, spread)
    if percent is None and mean_b:
        why = "baseline is negative" if spread is None else "baseline's interval includes 0"
        trouble.append(f"no percentage, as the {why}")
    return Difference(
        a=float(full_a.mean()),
        b=mean_b,
        difference=difference,
        percent=percent,
        percent_ci95=percent_ci95,
        n_seeds=len(seeds),
        values=tuple(zip(seeds, full_a.tolist(), full_b.tolist(), strict=True)),
        note="; ".join(notes + trouble),
        p=None if spread is None else spread.p_value(difference),
        **_intervals(difference, spread, without, blocks_of),
    )


def mean_interval(
    values: Values, blocks: Blocks | None = None, between: Between | None = None, blocks_of: Source = "documents"
) -> Mean:
    """The mean of one arm over its seeds.

    values, blocks, between, blocks_of: as for one arm of `paired_difference`, which also describes errors and notes.
    """
    seeds, notes = _usable(values, between=between)
    if not seeds:
        return Mean(note="; ".join(notes))
    full = np.array([[values[seed] for seed in seeds]], dtype=np.float64)
    without, trouble = _left_out(seeds, blocks_of, blocks)
    members, unknown = _members(seeds, between, without)
    mean = float(full.mean())
    intervals = _intervals(mean, _covariance(full, without, members), without, blocks_of)
    return Mean(mean=mean, n_seeds=len(seeds), note="; ".join(notes + trouble + unknown), **intervals)


def is_clear(entry: Mapping) -> bool:
    """Whether a difference is clear: its interval excludes 0 and, if its family was adjusted by Holm, p_holm is at most
    ALPHA.

    entry: `Difference.as_dict()`, or the same read from compare.json.
    """
    adjusted = entry.get("p_holm")
    return leaves_out_zero(entry) and (adjusted is None or adjusted <= ALPHA)


def leaves_out_zero(entry: Mapping) -> bool:
    """Whether a difference has an interval that excludes 0, without correction for other tests."""
    interval = entry["ci95"]
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _usable(*arms: Values, between: Between | None = None) -> tuple[list[int], list[str]]:
    """(seeds with a finite number in every arm, in rising order; notes on the rest)."""
    every = sorted(set().union(*arms))
    present = [seed for seed in every if all(arm.get(seed) is not None for arm in arms)]
    usable = [seed for seed in present if all(math.isfinite(arm[seed]) for arm in arms)]
    both = (between or {}).get(usable[0]) or () if len(usable) == 1 else ()
    notes = [] if len(usable) != 1 else ["1 pair of seeds, no interval" if len(both) > 1 else "1 seed, no interval"]
    missing, broken = sorted(set(every) - set(present)), sorted(set(present) - set(usable))
    if set(missing) <= set(both):
        # with two seeds the second has no number of its own
        missing = []
    if missing:
        notes.append(f"no {'pair' if len(arms) > 1 else 'value'} for seed {_listed(missing)}")
    if broken:
        notes.append(f"not a finite number for seed {_listed(broken)}")
    return usable, notes or ([] if usable else ["no seeds"])


def _left_out(seeds: list[int], of: Source, *arms: Blocks | None) -> tuple[np.ndarray | None, list[str]]:
    """(leave-one-block-out values float64 [arms, S, B] or None, notes on why there are none)."""
    if arms[0] is None:
        return None, []
    error, block = ("text error", "document block") if of == "documents" else ("error of critics", "critic")
    missing = [seed for seed in seeds if any(arm.get(seed) is None or not len(arm[seed]) for arm in arms)]
    lengths = {len(arm[seed]) for arm in arms for seed in seeds if seed not in missing}
    if len(lengths) > 1:
        raise ValueError(f"arms and seeds must have the same {block}s, not {_listed(sorted(lengths))} of them")
    if missing:
        return None, [f"{error} left out: no {block}s for seed {_listed(missing)}"]
    without = np.array([[arm[seed] for seed in seeds] for arm in arms], dtype=np.float64)
    if without.shape[2] < 2:
        return None, [f"{error} left out: 1 {block}"]
    broken = [seed for seed, finite in zip(seeds, np.isfinite(without).all(axis=(0, 2)), strict=True) if not finite]
    if broken:
        return None, [f"{error} left out: a {block} without a number for seed {_listed(broken)}"]
    return without, []


def _members(
    seeds: list[int], between: Between | None, without: np.ndarray | None
) -> tuple[np.ndarray | None, list[str]]:
    """(the seeds that each number takes, bool [S, U], None if each takes its own; notes on why there is no
    interval).
    """
    of = {seed: {seed} for seed in seeds} if between is None else {seed: between.get(seed) for seed in seeds}
    if None in of.values():
        unknown = "no interval, as it is not recorded which seeds each number takes"
        return np.ones((len(seeds), 1), bool), [unknown] if len(seeds) > 1 else []
    if all(set(takes) == {seed} for seed, takes in of.items()):
        return None, []
    if without is not None:
        raise ValueError("numbers that share seeds have no document blocks")
    units = sorted(set().union(*of.values()))
    members = np.array([[unit in of[seed] for unit in units] for seed in seeds])
    everywhere = [unit for unit, in_all in zip(units, members.all(axis=0), strict=True) if in_all]
    if not everywhere or len(seeds) < 2:
        return members, []
    return members, [f"no interval, as every number takes seed {_listed(everywhere)}"]


def _covariance(full: np.ndarray, without: np.ndarray | None, members: np.ndarray | None) -> Covariance | None:
    """The covariance over seeds; None with one seed, and if one seed is in every number."""
    if full.shape[1] < 2 or (members is not None and members.all(axis=0).any()):
        return None
    return covariance(full, without) if members is None else over_shared_seeds(full, members)


def _intervals(mean: float, spread: Covariance | None, without: np.ndarray | None, of: Source) -> dict:
    """The fields of `Estimate` for the error of the first quantity. spread: None with one seed."""
    fields = {}
    if without is not None:
        # with one seed, the error is that of exactly this SAE
        variance = float(jackknife(without)[0, 0]) if spread is None else spread.documents
        fields[f"se_{of}"] = math.sqrt(variance)
        fields["n_blocks" if of == "documents" else "n_critics"] = without.shape[2]
        if of == "documents":
            half = t_half_width(float(jackknife(without)[0, 0]), without.shape[2])
            fields["documents_ci95"] = _around(mean, half)
    if spread is not None:
        fields |= {"ci95": _around(mean, spread.half_width()), "se_seeds": math.sqrt(spread.seeds[0, 0])}
    return fields


def _percent(full: np.ndarray, spread: Covariance | None) -> tuple[float | None, Interval | None]:
    """(100 d / |b|, its interval) from full = (d, b) per seed [2, S]."""
    difference, baseline = (float(mean) for mean in full.mean(axis=1))
    if baseline == 0:
        return None, None
    percent = 100 * difference / abs(baseline)
    if spread is None:
        # nothing tells whether a negative baseline is a real one or noise around 0, as of cross-entropy added
        return (percent if baseline > 0 else None), None
    if not full[0].any():
        return 0.0, (0.0, 0.0)
    ratio = ratio_interval(difference, baseline, spread)
    if ratio is None:
        return None, None
    low, high = sorted(math.copysign(100, baseline) * end for end in ratio)
    return percent, (low, high)


def _around(mean: float, half: float) -> Interval:
    return mean - half, mean + half


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
