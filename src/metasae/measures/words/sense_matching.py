"""Two SAEs compared at matched recall: a latent that only fires less is not a purer one.

A latent's recall on a word is max_s r_is, what it finds of its best sense. A latent that misses some of its firings at random has
less of it; one that drops a second sense and keeps the first has as much as before. Within fixed bins of that recall the latents of
two SAEs are compared, and the bins weigh the same for both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from metasae.measures.words.sense_scores import weighted_mean

RECALL_BINS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class MatchedRecall:
    """a, b: matched atomicity at the same recalls, the mean over words of means over bins with common weights.

    shared: share of the summed activation, mean of both SAEs, that lies in bins where both have latents; the rest is compared
    with nothing. words: word -> (a, b, shared). None where no bin is shared; `unmatched` counts such words.
    """

    a: float | None
    b: float | None
    difference: float | None
    shared: float
    unmatched: int
    words: dict[str, tuple[float | None, float | None, float]]

    def as_dict(self) -> dict:
        return asdict(self)


def recall_profile(atomicity: np.ndarray, counts: np.ndarray, sizes: np.ndarray, energy: np.ndarray) -> list[dict]:
    """One entry per bin of recall, (from, to]: number of latents, their share of the energy, their mean matched atomicity.

    atomicity: matched, [l], NaN for latents that are not judged, which are left out. counts: c int [l, S]. sizes: n [S].
    energy: summed activations [l], the weights of the mean.
    """
    total = float(energy.sum())
    bins = np.digitize((counts / sizes).max(1), RECALL_BINS[1:-1], right=True)
    profile = []
    for number, (low, high) in enumerate(pairwise(RECALL_BINS)):
        own = ~np.isnan(atomicity) & (bins == number)
        profile.append(
            {
                "from": low,
                "to": high,
                "n_latents": int(own.sum()),
                "energy": float(energy[own].sum() / total) if own.any() else 0.0,
                "atomicity_matched": weighted_mean(atomicity[own], energy[own]),
            }
        )
    return profile


def matched_recall(a: Mapping, b: Mapping) -> MatchedRecall:
    """a, b: the `senses` parts of two measures.json on the same words. A bin weighs the mean of its two shares of the energy.

    Raises ValueError for other words, other sentences or other bins.
    """
    if a["words"].keys() != b["words"].keys():
        raise ValueError(f"the two were judged on other words: {sorted(a['words'])} and {sorted(b['words'])}")
    words = {}
    for word, of_a in a["words"].items():
        of_b = b["words"][word]
        if of_a["n_per_sense"] != of_b["n_per_sense"]:
            raise ValueError(f"the two were judged on other sentences of '{word}'")
        words[word] = _match(of_a["by_recall"], of_b["by_recall"])
    found = [(value_a, value_b) for value_a, value_b, _ in words.values() if value_a is not None]
    mean_a, mean_b = (float(np.mean(side)) for side in zip(*found, strict=True)) if found else (None, None)
    return MatchedRecall(
        a=mean_a,
        b=mean_b,
        difference=mean_a - mean_b if found else None,
        shared=float(np.mean([shared for _, _, shared in words.values()])),
        unmatched=len(words) - len(found),
        words=words,
    )


def _match(a: list[dict], b: list[dict]) -> tuple[float | None, float | None, float]:
    if [(bin_["from"], bin_["to"]) for bin_ in a] != [(bin_["from"], bin_["to"]) for bin_ in b]:
        raise ValueError("the two have other bins of recall; measure them again alike")
    key = "atomicity_matched"
    both = [
        (x, y, (x["energy"] + y["energy"]) / 2)
        for x, y in zip(a, b, strict=True)
        if x[key] is not None and y[key] is not None
    ]
    shared = sum(weight for _, _, weight in both)
    if not both:
        return None, None, 0.0
    return (
        sum(x[key] * weight for x, _, weight in both) / shared,
        sum(y[key] * weight for _, y, weight in both) / shared,
        shared,
    )
