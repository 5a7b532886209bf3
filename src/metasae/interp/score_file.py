"""What an arm's interp.json holds, and which earlier scores stand beside those of a new call.

{conditions, coverage, matched, scores, latents, pairs, siblings}: `conditions` say which windows of which SAE were looked at; scores that
were given under the same conditions are of the same latents, so a later call adds to them. Everything that compares arms is worked out from
these files (`metasae.interp.pairs`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metasae.arms.folder import Arm
from metasae.errors import UserError
from metasae.interp.choice import INTRUDER

FILE = "interp.json"
# What is said of single latents and pairs, not of the SAE as a whole.
DETAILS = ("latents", "pairs", "siblings")


@dataclass(frozen=True)
class ScoreFile:
    """An arm's interp.json and what stands in it, for m latents: the own sample, then partners of the baseline's latents."""

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
    """(the file to write, the earlier scores it has no place for). Scores of the same conditions are kept unless they were given anew."""
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
