"""What an arm's interp.json holds, and which earlier scores stand beside those of a new call.

{conditions, coverage, matched, scores, latents, pairs, siblings}: `conditions` say which windows of which SAE were looked at; scores that
were given under the same conditions are of the same latents, so a later call adds to them. Everything that compares arms is worked out from
these files (`metasae.interp.pairs`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metasae import files
from metasae.errors import UserError

FILE = "interp.json"
# The score that is of pairs of siblings, not of the latents.
INTRUDER = "sense_intruder"


@dataclass(frozen=True)
class Held:
    """An arm's file. arm, seed: of its folder's name."""

    arm: str
    seed: int
    file: Mapping

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    @property
    def latents(self) -> list[int]:
        """The own sample, then partners of the baseline's latents."""
        return [int(latent) for latent in self.file["latents"]]

    @property
    def own(self) -> np.ndarray:
        """bool [m]: which are of the own sample."""
        return np.array([entry["own"] for entry in self.file["latents"].values()], bool)

    def judge(self, key: str) -> str | None:
        """Who read for a score, or encoded."""
        return self.file["scores"][key].get("judge")

    def parts(self, key: str) -> list[str]:
        """The parts of a score for which any latent has a number."""
        found = {part: True for entry in self.file["latents"].values() for part in entry.get(key, {})}
        return [part for part in self.file["scores"][key]["parts"] if part in found]

    def values(self, key: str, part: str) -> np.ndarray:
        """float64 [m], NaN for a latent without the number."""
        numbers = [entry.get(key, {}).get(part) for entry in self.file["latents"].values()]
        return np.array([np.nan if number is None else number for number in numbers], np.float64)

    def clusters(self) -> np.ndarray:
        """int64 [m]: the vocabulary id on which each latent fires most often."""
        return np.array([entry["token"] for entry in self.file["latents"].values()], np.int64)

    def summary(self) -> dict:
        """What is said of the SAE as a whole."""
        return {name: part for name, part in self.file.items() if name not in ("latents", "pairs", "siblings")}


def read_held(folder: Path, arm: str, seed: int) -> Held | None:
    """None where an arm has no scores, or those of a release that kept no conditions to compare by.

    Raises UserError for a file that is not whole.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    found = files.read_json(path)
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("conditions"), dict)
        or not isinstance(found.get("scores"), dict)
    ):
        raise UserError(f"{path} holds no scores; delete it and run `metasae interp` again")
    return Held(arm, seed, found) if "of" in found["conditions"] else None


def with_earlier(new: dict, earlier: Held | None) -> tuple[dict, list[str]]:
    """(the file to write, the earlier scores it has no place for). Scores of the same conditions are kept unless they were given anew."""
    if earlier is None:
        return new, []
    kept = [key for key in earlier.file["scores"] if key not in new["scores"]]
    if earlier.file["conditions"] != new["conditions"]:
        return new, kept
    return {
        **new,
        "scores": {
            key: new["scores"].get(key) or earlier.file["scores"][key]
            for key in (*earlier.file["scores"], *new["scores"])
        },
        "latents": {
            latent: _both(entry, earlier.file["latents"][latent], kept) for latent, entry in new["latents"].items()
        },
        **({"siblings": earlier.file["siblings"]} if INTRUDER in kept and "siblings" in earlier.file else {}),
    }, []


def _both(new: Mapping, earlier: Mapping, kept: Sequence[str]) -> dict:
    said = {} if "explanation" in new else {name: earlier[name] for name in ("explanation", "judge") if name in earlier}
    return {**new, **said, **{key: earlier[key] for key in kept if key in earlier}}
