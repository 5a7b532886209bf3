"""Scores of one SAE's latents, their means with intervals, and the file that an arm keeps them in.

An interval within one SAE is a bootstrap of latents in clusters: latents that fire most often on the same token share
what a reader can say about them. It is an interval over these SAEs' other latents; only the difference over paired
seeds is one over other seeds.

An arm's interp.json holds {conditions, coverage, matched, scores, latents, pairs, siblings}. `conditions` say which
windows of which SAE were looked at. Scores that were given under the same conditions are of the same latents, so a
later call adds to them. Everything that compares arms is worked out from these files (`metasae.interp.pairs`).

Imports no torch, as reports read these files, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metasae.arms.folder import Arm
from metasae.errors import UserError
from metasae.interp.choice import CHANCE, INTRUDER
from metasae.intervals.resampling import bootstrap_interval

FILE = "interp.json"
# What is said of single latents and pairs, not of the SAE as a whole.
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

    @property
    def chance(self) -> float:
        return CHANCE[self.key]

    def as_dict(self, rows: Sequence[int], clusters: np.ndarray, seed: int) -> dict:
        """Means over these of the m latents. clusters: int [m]."""
        rows = np.asarray(rows, np.int64)

        def mean(values: np.ndarray) -> dict:
            asked = rows[rows < len(values)]
            return bootstrap_interval(values[asked], seed=seed, clusters=clusters[asked]).as_dict()

        parts = {part: mean(values) for part, values in self.values.items()}
        for part in parts.keys() & self.shuffled.keys():
            parts[part]["shuffled"] = mean(self.shuffled[part])
        summary = {"chance": self.chance, "parts": parts, **self.counts}
        if "repeated" in self.counts:
            repeated = self.counts["repeated"]
            summary["self_agreement"] = self.counts["repeated_alike"] / repeated if repeated else None
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
    by = np.empty(count, np.int64)
    by[order] = np.roll(order, 1)
    return by


@dataclass(frozen=True)
class ScoreFile:
    """An arm's interp.json and what stands in it, for m latents: the own sample, then partners of the baseline's
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

    def judge(self, key: str) -> str | None:
        """Who read for a score, or encoded."""
        return self.content["scores"][key].get("judge")

    def parts(self, key: str) -> list[str]:
        """The parts of a score for which any latent has a number."""
        known = {part for entry in self.content["latents"].values() for part in entry.get(key, {})}
        return [part for part in self.content["scores"][key]["parts"] if part in known]

    def values(self, key: str, part: str) -> np.ndarray:
        """float64 [m], NaN for a latent without the number."""
        # None becomes NaN
        return np.array([entry.get(key, {}).get(part) for entry in self.content["latents"].values()], np.float64)

    def clusters(self) -> np.ndarray:
        """int64 [m]: the vocabulary id on which each latent fires most often."""
        return np.array([entry["token"] for entry in self.content["latents"].values()], np.int64)

    def summary(self) -> dict:
        """What is said of the SAE as a whole."""
        return {name: entry for name, entry in self.content.items() if name not in DETAILS}


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
    latents = {
        latent: _with_earlier_numbers(entry, old["latents"][latent], kept) for latent, entry in new["latents"].items()
    }
    return {**new, "scores": old["scores"] | new["scores"], "latents": latents, **siblings}, []


def _with_earlier_numbers(new: Mapping, earlier: Mapping, kept: list[str]) -> dict:
    """A latent's entry. The explanation and its judge are the earlier ones where there are no new ones."""
    names = kept if "explanation" in new else ["explanation", "judge", *kept]
    return {**new, **{name: earlier[name] for name in names if name in earlier}}
