"""Word senses as ground truth without a judge: does a latent that fires on a word fire on one of its senses only?

Per word: atomicity and blends of the latents that fire on it (`sense_scores.py`), also on equally many firings of each,
so that narrow latents do not look atomic because they are narrow; how well the best latent of each sense finds it
(coverage F1); how much the latent that stands out tells about the sense (adjusted mutual information); and the same
activations read by a linear probe, the ceiling. What is drawn at random is drawn once for all SAEs of a run
(`sense_reference.py`).
"""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from metasae.data.senses import SenseActivations
from metasae.intervals.crossed import jackknife, t_half_width
from metasae.measures.firing.firings import BLOCKS
from metasae.measures.words.sense_matching import recall_profile
from metasae.measures.words.sense_reference import WordReference
from metasae.measures.words.sense_scores import (
    adjusted_mutual_information,
    atomicity,
    blended,
    coverage_f1,
    detection_f1,
    firings_per_sense,
    matched,
    standing_out,
    weighted_mean,
)
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.sae.sae import SAE

BATCH = 512
FEW_WORDS = 5


@torch.no_grad()
def measure_senses(sae: SAE, reference: Sequence[WordReference], progress: Progress = SILENT) -> dict:
    """The `senses` part of measures.json: every score as the mean over words, with its intervals, and each word by
    itself.

    sae: with a threshold. ci95: Student's t over words, the words being the clusters; None with one word.
    ci95_sentences: these words, other sentences: a jackknife over blocks of sentences, whose values lie in
    leave_one_out. headroom: probe_f1 less coverage_f1. Raises ValueError when the SAE has no threshold.
    """
    words = {}
    for word in tracked(progress, reference, "scoring word senses", len(reference), "words", size=lambda _: 1):
        words[word.activations.word] = measure_word(sae, word)
    return {
        **overall(list(words.values())),
        "seed": reference[0].seed,
        "point": reference[0].activations.point,
        "words": words,
    }


def measure_word(sae: SAE, reference: WordReference) -> dict:
    """The scores of one SAE on one word with their intervals over sentences, and the conditions they hold under."""
    word, ceiling = reference.activations, reference.ceiling
    acts, latents = activations_on(sae, word.x)
    all_rows = np.arange(word.n_tokens)
    scores = score(acts, reference, all_rows)
    without = [score(acts, reference, all_rows[reference.blocks != block]) for block in range(BLOCKS)]
    leave_one_out = {key: [values[key] for values in without] for key in scores}
    leave_one_out["probe_f1"] = list(ceiling.leave_one_out)
    both = zip(ceiling.leave_one_out, leave_one_out["coverage_f1"], strict=True)
    leave_one_out["headroom"] = [probe - coverage for probe, coverage in both]
    scores |= {"probe_f1": ceiling.f1, "headroom": ceiling.f1 - scores["coverage_f1"]}
    # the score of latents that know nothing of the senses
    shuffled = zip(reference.shuffled, reference.halves, strict=True)
    floor = fmean(coverage_f1(acts, sense, len(word.senses), half[None]) for sense, half in shuffled)
    return {
        **scores,
        "ci95": {key: jackknife_interval(value, leave_one_out[key]) for key, value in scores.items()},
        "leave_one_out": leave_one_out,
        "coverage_floor": floor,
        "probe_floor": ceiling.floor,
        "probe_fits": {"n": ceiling.n_fits, "not_converged": ceiling.not_converged},
        "n_tokens": word.n_tokens,
        "n_per_sense": dict(zip(word.senses, word.sizes.tolist(), strict=True)),
        "excluded": {"sentences": word.skipped, "rare_senses": word.rare},
        **describe_latents(acts, latents, reference),
    }


def score(acts: csr_array, reference: WordReference, rows: np.ndarray) -> dict[str, float | None]:
    """The scores of one SAE on one word.

    acts: [T, l], the latents that fire on the word. rows: the occurrences to go by.

    The first four are means over the latents that fire, each weighing as its summed activation there. atomicity: 1 -
    H(q) / ln S.
    blend: share of latents whose second largest prior-free share is at least 1/4. Both favour latents that fire rarely.
    atomicity_matched, blend_matched: the same on equally many firings of each latent, the first above chance, over
    latents with enough of them. coverage_f1: macro F1 of the best latent per sense on sentences it was not chosen on.
    ami: adjusted mutual information between the sense and the latent that stands out. None where no latent fires
    (enough), or nothing is there to be shared.
    """
    acts, sense, n_senses = acts[rows], reference.activations.sense[rows], len(reference.activations.senses)
    sizes = np.bincount(sense, minlength=n_senses)
    counts, energy = firings_per_sense(acts, sense, n_senses), energy_of(acts)
    atomicity_matched, blend_matched = matched(counts, sizes, reference.draw, np.random.default_rng(reference.seed))
    return {
        "atomicity": weighted_mean(atomicity(counts, sizes), energy),
        "atomicity_matched": weighted_mean(atomicity_matched, energy),
        "blend": weighted_mean(blended(counts, sizes), energy),
        "blend_matched": weighted_mean(blend_matched, energy),
        "coverage_f1": coverage_f1(acts, sense, n_senses, reference.halves[:, rows]),
        "ami": adjusted_mutual_information(sense, standing_out(acts)),
    }


def describe_latents(acts: csr_array, latents: np.ndarray, reference: WordReference) -> dict:
    """How many latents fire, which of them are judged on equal firings, their atomicity by recall, and the best latent
    of each sense."""
    word, draw = reference.activations, reference.draw
    counts, energy = firings_per_sense(acts, word.sense, len(word.senses)), energy_of(acts)
    atomicity_matched, _ = matched(counts, word.sizes, draw, np.random.default_rng(reference.seed))
    judged = ~np.isnan(atomicity_matched)
    return {
        "l0_realised": int(counts.sum()) / word.n_tokens,
        "n_latents": len(latents),
        "matched": {
            "firings": draw.size,
            "atomicity_at_random": draw.atomicity,
            "blend_at_random": draw.blend,
            "n_latents": int(judged.sum()),
            "energy": float(energy[judged].sum() / energy.sum()) if judged.any() else 0.0,
        },
        "by_recall": recall_profile(atomicity_matched, counts, word.sizes, energy),
        "detectors": detectors(counts, word, latents) if len(latents) else {},
    }


def detectors(counts: np.ndarray, word: SenseActivations, latents: np.ndarray) -> dict[str, dict]:
    """sense -> the latent that finds it best.

    For inspection, not for comparison, as latents are chosen and scored on the same sentences. counts: c int [l, S].
    """
    f1 = detection_f1(counts, word.sizes)
    best = f1.argmax(0)
    return {
        sense: {
            "latent": int(latents[i]),
            "recall": float(counts[i, s] / word.sizes[s]),
            "precision": float(counts[i, s] / counts[i].sum()),
            "f1": float(f1[i, s]),
        }
        for s, (sense, i) in enumerate(zip(word.senses, best, strict=True))
    }


@torch.no_grad()
def activations_on(sae: SAE, x: torch.Tensor) -> tuple[csr_array, np.ndarray]:
    """x [T, d] -> (activations [T, l] of the l latents that fire on some row, rising within a row; their numbers,
    rising int64 [l])."""
    blocks = (block.to(sae.W_dec.device, torch.float32) for block in x.split(BATCH))
    acts = vstack([csr_array(sae.encode(block).cpu().numpy()) for block in blocks], format="csr")
    latents = np.unique(acts.indices).astype(np.int64)
    acts = acts[:, latents]
    acts.sort_indices()
    return acts, latents


def jackknife_interval(estimate: float | None, without: Sequence[float | None]) -> tuple[float, float] | None:
    """95% interval of a score over sentences, from its values without each block of them; None where one of them is
    missing.

    A delete-a-group jackknife: a bootstrap would put copies of one sentence into both halves.
    """
    if estimate is None or None in without:
        return None
    half = t_half_width(float(jackknife(np.array([[without]]))[0, 0]), len(without))
    return estimate - half, estimate + half


def overall(words: Sequence[dict]) -> dict:
    """Means over words with their intervals.

    A word without a score is left out of that mean and counted in `missing`.
    """
    scores = words[0]["leave_one_out"].keys()
    having = {
        key: [word for word in words if word[key] is not None] for key in (*scores, "coverage_floor", "probe_floor")
    }
    values = {key: [word[key] for word in some] for key, some in having.items()}
    means = {key: fmean(numbers) if numbers else None for key, numbers in values.items()}
    without = {key: _mean_without([word["leave_one_out"][key] for word in having[key]]) for key in scores}
    number = f"{len(words)} word{'s' if len(words) > 1 else ''}"
    few = f"{number}: read each word by itself; their mean says nothing about other words"
    return {
        **means,
        "ci95": {key: words_interval(numbers) for key, numbers in values.items()},
        "ci95_sentences": {key: jackknife_interval(means[key], numbers) for key, numbers in without.items()},
        "leave_one_out": without,
        "n_words": len(words),
        "missing": {key: len(words) - len(some) for key, some in having.items() if len(some) < len(words)},
        "note": few if len(words) < FEW_WORDS else "",
    }


def words_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean over words, Student's t with the words as units; None for fewer than two."""
    if len(values) < 2:
        return None
    half = t_half_width(float(np.var(values, ddof=1)) / len(values), len(values))
    return fmean(values) - half, fmean(values) + half


def _mean_without(words: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean over words without block b of each: the blocks of two words are drawn apart, so they may be left out
    together."""
    return [None if None in block else fmean(block) for block in zip(*words, strict=True)] or [None] * BLOCKS


def energy_of(acts: csr_array) -> np.ndarray:
    """Each latent's summed activation on the word: float64 [l]."""
    # one row where scipy is older
    return np.asarray(acts.sum(axis=0, dtype=np.float64)).ravel()
