"""Compares two SAEs at matched recall, so that a latent does not look purer because it fires less.

A latent's recall on a word is max_s r_is, the share of its best sense on which it fires. A latent that loses firings at
random has a lower recall; one that drops a second sense and keeps the first has the same recall as before. The latents
of two SAEs are compared within fixed bins of recall, and a bin has the same weight for both.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from metasae.measures.words.sense_scores import weighted_mean

RECALL_BINS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def recall_profile(atomicity: np.ndarray, counts: np.ndarray, sizes: np.ndarray, energy: np.ndarray) -> list[dict]:
    """One entry per bin of recall, (from, to]: number of latents, their share of the energy, their mean matched
    atomicity.

    atomicity: matched, [l], NaN for latents that are not judged, which are left out. counts: c int [l, S]. sizes: n
    [S].
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


def matched_recall(a: Mapping, b: Mapping) -> tuple[float | None, float | None]:
    """Matched atomicity of two SAEs at the same recalls: the mean over words of means over bins, weighed alike for
    both.

    a, b: the `senses` parts of two measures.json on the same words. A bin weighs the mean of its two shares of the
    energy, and only bins in which both have latents count. None where no word has such a bin. Raises ValueError for
    other words, other sentences or other bins.
    """
    if a["words"].keys() != b["words"].keys():
        raise ValueError(f"the two SAEs were judged on different words: {sorted(a['words'])} and {sorted(b['words'])}")
    pairs = []
    for word, of_a in a["words"].items():
        of_b = b["words"][word]
        if of_a["n_per_sense"] != of_b["n_per_sense"]:
            raise ValueError(f"the two SAEs were judged on different sentences of '{word}'")
        pairs += _match(of_a["by_recall"], of_b["by_recall"])
    mean_a, mean_b = (float(np.mean(side)) for side in zip(*pairs, strict=True)) if pairs else (None, None)
    return mean_a, mean_b


def _match(a: list[dict], b: list[dict]) -> list[tuple[float, float]]:
    """[(mean of a, mean of b)] over the bins that both have; [] where there is none."""
    if [(bin_["from"], bin_["to"]) for bin_ in a] != [(bin_["from"], bin_["to"]) for bin_ in b]:
        raise ValueError("the two SAEs have different bins of recall; measure both again with the same settings")
    key = "atomicity_matched"
    both = [(x, y) for x, y in zip(a, b, strict=True) if x[key] is not None and y[key] is not None]
    weights = [(x["energy"] + y["energy"]) / 2 for x, y in both]
    total = sum(weights)
    if not both:
        return []
    of_a = sum(x[key] * weight for (x, _), weight in zip(both, weights, strict=True)) / total
    of_b = sum(y[key] * weight for (_, y), weight in zip(both, weights, strict=True)) / total
    return [(of_a, of_b)]
