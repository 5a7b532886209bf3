"""Scores of one SAE's latents: their means with intervals, the file in which an arm keeps them, and the comparison of
arms.

An interval within one SAE is a bootstrap of latents in clusters: latents that fire most often on the same token share
what a reader can say about them. It is an interval over the other latents of this SAE; only the difference over paired
seeds has an interval over seeds.

An arm's interp.json holds {conditions, coverage, matched, scores, latents, pairs, siblings}. `conditions` say which
windows of which SAE were looked at. Scores that were given under the same conditions are of the same latents, so a
later call adds to them.

Everything that compares arms is worked out from these files. An arm's mean is over its own random covered latents.
Where partners of the baseline's latents were scored as well (Hungarian on decoder cosine), the difference within pairs
is reported beside that of the means. sense_intruder is of siblings (`metasae.interp.intruder`), not of these latents,
so it has no matched difference.

Imports no torch, as reports read these files, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metasae.arms.folder import Arm
from metasae.compare.compare import of_both, of_names
from metasae.errors import UserError
from metasae.interp.choice import CHANCE, INTRUDER
from metasae.intervals.resampling import bootstrap_interval
from metasae.intervals.statistics import paired_difference

FILE = "interp.json"
# Entries about single latents and pairs, not about the SAE as a whole.
DETAILS = ("latents", "pairs", "siblings")


@dataclass(frozen=True)
class Score:
    """One score of m latents (or pairs of them).

    values: part -> float64 [m], NaN for a latent without that part's windows.

    Parts are the kinds of silent windows, or "all" where a score has none. shuffled: the same with another latent's
    explanation, of the first latents alone where no more were asked; empty where there is no such floor. counts: what
    was asked and how much of it could not be read. explanations: of the m latents, None for one that could not be read;
    empty where the score has none.
    """

    key: str
    values: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    explanations: tuple[str | None, ...] = ()

    def as_dict(self, rows: Sequence[int], clusters: np.ndarray, seed: int) -> dict:
        """Means over these of the m latents. clusters: int [m]."""
        rows = np.asarray(rows, np.int64)

        def mean(values: np.ndarray) -> dict:
            asked = rows[rows < len(values)]
            return bootstrap_interval(values[asked], seed=seed, clusters=clusters[asked]).as_dict()

        parts = {part: mean(values) for part, values in self.values.items()}
        for part in parts.keys() & self.shuffled.keys():
            parts[part]["shuffled"] = mean(self.shuffled[part])
        summary = {"chance": CHANCE[self.key], "parts": parts, **self.counts}
        if "repeated" in self.counts:
            repeated = self.counts["repeated"]
            summary["self_agreement"] = self.counts["repeated_alike"] / repeated if repeated else None
            by_chance = self.counts["repeated_by_chance"]
            summary["self_agreement_by_chance"] = by_chance / repeated if repeated else None
        return summary


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in which the positive is larger; a tie and a pair with a number that is not known (NaN) count one
    half.

    NaN without pairs.
    """
    pairs = len(positive) * len(negative)
    if not pairs:
        return np.nan
    higher = (positive[:, None] > negative).sum()
    lower = (positive[:, None] < negative).sum()
    return float((higher + 0.5 * (pairs - higher - lower)) / pairs)


def other_latents(count: int, seed: int) -> np.ndarray | None:
    """int64 [count]: for every latent another one, each taken once, in one random round; None without another."""
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(count)
    return np.roll(order, 1)[np.argsort(order)]


@dataclass(frozen=True)
class ScoreFile:
    """An arm's interp.json with its contents, for m latents: the arm's own sample, then partners of the baseline's
    latents.
    """

    arm: Arm
    content: Mapping

    @property
    def latents(self) -> list[int]:
        return [int(latent) for latent in self.content["latents"]]

    @property
    def own(self) -> np.ndarray:
        """bool [m]: which are of the own sample."""
        return np.array([entry["own"] for entry in self.content["latents"].values()], bool)

    def parts(self, key: str) -> list[str]:
        """The parts of a score for which any latent has a number."""
        known = {part for entry in self.content["latents"].values() for part in entry.get(key, {})}
        return [part for part in self.content["scores"][key]["parts"] if part in known]

    def values(self, key: str, part: str) -> np.ndarray:
        """float64 [m], NaN for a latent without the number."""
        # None becomes NaN
        return np.array([entry.get(key, {}).get(part) for entry in self.content["latents"].values()], np.float64)


def read_scores(arm: Arm) -> ScoreFile | None:
    """None where an arm has no scores, or those of a release that kept no conditions to compare by.

    Raises UserError for a file that is not whole.
    """
    content = arm.interp()
    if not content:
        return None
    if not all(isinstance(content.get(name), dict) for name in ("conditions", "scores")):
        raise UserError(f"{arm.folder / FILE} holds no scores; delete it and run `metasae interp` again")
    return ScoreFile(arm, content) if "of" in content["conditions"] else None


def with_earlier(new: dict, earlier: ScoreFile | None) -> tuple[dict, list[str]]:
    """(the file to write, the earlier scores it has no place for).

    Scores of the same conditions are kept unless they were given anew.
    """
    if earlier is None:
        return new, []
    old = earlier.content
    kept = [key for key in old["scores"] if key not in new["scores"]]
    if old["conditions"] != new["conditions"]:
        return new, kept
    siblings = {"siblings": old["siblings"]} if INTRUDER in kept and "siblings" in old else {}
    latents = {}
    for latent, entry in new["latents"].items():
        # the explanation and its judge are the earlier ones where there are no new ones
        names = kept if "explanation" in entry else ["explanation", "judge", *kept]
        earlier_entry = old["latents"][latent]
        latents[latent] = entry | {name: earlier_entry[name] for name in names if name in earlier_entry}
    return {**new, "scores": old["scores"] | new["scores"], "latents": latents, **siblings}, []


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
        "arms": {
            file.arm.label: {"interp": {name: part for name, part in file.content.items() if name not in DETAILS}}
            for file in scores
        },
        "pairs": {f"{arm} vs {baseline}": _compared(of_arm, base) for arm, of_arm in by_arm.items() if base},
    }


def matched_values(arm: ScoreFile, base: ScoreFile, key: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the arm's numbers, the baseline's, clusters), each [p], of the pairs of matched latents; NaN where one lacks
    windows.

    Without pairs where the arm was matched with other weights of the baseline than these.
    """
    row_of_arm, row_of_base = ({latent: row for row, latent in enumerate(side.latents)} for side in (arm, base))
    pairs = arm.content["pairs"] if _are_matched(arm, base) else ()
    # the vocabulary id on which each latent fires most often
    clusters = np.array([entry["token"] for entry in base.content["latents"].values()], np.int64)
    a = np.array([row_of_arm[latent] for _, latent in pairs], np.int64)
    b = np.array([row_of_base[latent] for latent, _ in pairs], np.int64)
    return arm.values(key, part)[a], base.values(key, part)[b], clusters[b]


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
        if not all(sides) or len({file.content["scores"][key].get("judge") for file in both}) > 1:
            continue
        if key == INTRUDER:
            differences |= _of_siblings(*sides)
        else:
            parts = [part for part in both[0].parts(key) if all(part in file.parts(key) for file in both)]
            differences[key] = {part: _differences(*sides, key, part) for part in parts}
    return differences


def _of_siblings(arm: Mapping[int, ScoreFile], base: Mapping[int, ScoreFile]) -> dict:
    """{} where a side has no siblings in another seed, which one seed of the baseline cannot have."""
    means, behind = [], []
    for side in (arm, base):
        scores = {seed: file.content["scores"][INTRUDER] for seed, file in side.items()}
        scores = {seed: score for seed, score in scores.items() if score.get("parents") and "all" in score["parts"]}
        means.append({seed: score["parts"]["all"]["estimate"] for seed, score in scores.items()})
        # children are of the next seed, so the numbers share seeds
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
