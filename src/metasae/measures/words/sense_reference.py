"""The reference for the senses of a word, made once for all SAEs: halves and blocks of sentences, chance levels, and
the probe.

The probe is linear. Its score on the activations themselves is the ceiling for every linear detector. It is a
multinomial logistic regression on standardised inputs, every class weighing the same:

    min over W, b of   mean_c mean_{t in c} -ln softmax(W x_t + b)_c  +  (STRENGTH / 2) ||W||^2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from metasae.data.senses import SenseActivations
from metasae.measures.firing.firings import BLOCKS
from metasae.measures.words.sense_scores import Draw, draw_for
from metasae.progress.progress import SILENT, Progress, tracked

STRENGTH = 0.02
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """weights: [d, C] on standardised inputs.

    bias: [C]. mean, scale: [d], of the training rows; a constant input has scale 1.

    converged: whether the minimum was reached.
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    converged: bool

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x [T, d] -> the likeliest class of each row, int64 [T]."""
        return np.argmax((x - self.mean) / self.scale @ self.weights + self.bias, axis=1)


def fit_probe(x: np.ndarray, labels: np.ndarray, n_classes: int) -> Probe:
    """Fits the probe to rows x [T, d]. labels: int [T], of which each of the n_classes occurs. Deterministic: it starts
    from zero and the minimum is unique.

    Raises ValueError when a class has no row.
    """
    from scipy.optimize import minimize

    sizes = np.bincount(labels, minlength=n_classes)
    x = np.asarray(x, np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - mean) / scale
    target = np.eye(n_classes)[labels]
    weight = 1 / (n_classes * sizes[labels])[:, None]
    d = x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: d * n_classes].reshape(d, n_classes), flat[d * n_classes :]
        scores = z @ weights + bias
        scores -= scores.max(1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        of_scores = weight * (np.exp(log_p) - target)
        gradient = np.concatenate([(z.T @ of_scores + STRENGTH * weights).ravel(), of_scores.sum(0)])
        return float(-(weight * target * log_p).sum() + STRENGTH / 2 * np.square(weights).sum()), gradient

    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-6}
    minimum = minimize(loss, np.zeros((d + 1) * n_classes), jac=True, method="L-BFGS-B", options=options)
    weights, bias = minimum.x[: d * n_classes].reshape(d, n_classes), minimum.x[d * n_classes :]
    return Probe(weights, bias, mean, scale, bool(minimum.success))


def macro_f1(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> float:
    """Mean over classes of F1 = 2 hits / (true + predicted); a class that is neither there nor predicted has F1 = 0."""
    hits = np.bincount(true[true == predicted], minlength=n_classes)
    both = np.bincount(true, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    return float((2 * hits / np.maximum(both, 1)).mean())


@dataclass(frozen=True)
class Ceiling:
    """A linear probe on the activations themselves, trained on one half of the sentences, scored on the other; over all
    splits.

    f1: macro F1. leave_one_out: f1 without each block of sentences in the scoring (the training is left as it is).
    floor: f1 of the same probe trained on shuffled senses, on the first split. n_fits, not_converged: probes trained
    for f1 and floor.
    """

    f1: float
    leave_one_out: tuple[float, ...]
    floor: float
    n_fits: int
    not_converged: int


@dataclass(frozen=True)
class WordReference:
    """The part of the sense measures that is the same for every SAE.

    halves: 0 or 1, int64 [splits, T]. shuffled: senses in random order, int64 [splits, T].

    blocks: of sentences, int64 [T], 0 to 7. draw: on how many firings latents are judged. seed: of the draws.
    """

    activations: SenseActivations
    halves: np.ndarray
    shuffled: np.ndarray
    blocks: np.ndarray
    draw: Draw
    ceiling: Ceiling
    seed: int


def sense_reference(
    words: Sequence[SenseActivations], seed: int = 0, splits: int = 5, progress: Progress = SILENT
) -> tuple[WordReference, ...]:
    """Halves, blocks, chance levels and probes: once for all SAEs, so that they are compared on the same draws.

    words: from `metasae.data.senses.sense_activations`.
    """
    references = []
    for number, word in tracked(
        progress, enumerate(words), "fitting probes for word senses", len(words), "words", lambda _: 1
    ):
        rng = np.random.default_rng([seed, number])
        halves = np.stack([even_parts(word.sense, word.sentence, 2, rng) for _ in range(splits)])
        shuffled = np.stack([rng.permutation(word.sense) for _ in range(splits)])
        blocks = even_parts(word.sense, word.sentence, BLOCKS, rng)
        draw = draw_for(word.sizes, rng)
        ceiling = probe_ceiling(word, halves, shuffled, blocks)
        references.append(WordReference(word, halves, shuffled, blocks, draw, ceiling, seed))
    return tuple(references)


def even_parts(sense: np.ndarray, sentence: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of each occurrence, 0 to count - 1, every sense spread evenly and no sentence in two parts: int64
    [T].

    A sentence with several occurrences goes by the sense of its first.
    """
    _, first, unit = np.unique(sentence, return_index=True, return_inverse=True)
    part = np.empty(len(first), np.int64)
    for one in np.unique(sense[first]):
        members = rng.permutation(np.flatnonzero(sense[first] == one))
        part[members] = (np.arange(len(members)) + rng.integers(count)) % count
    return part[unit]


def probe_ceiling(word: SenseActivations, halves: np.ndarray, shuffled: np.ndarray, blocks: np.ndarray) -> Ceiling:
    """See `Ceiling`. A sense that a half does not hold cannot be learned there, and counts as not found."""
    x, n_senses, converged = word.x.double().numpy(), len(word.senses), []

    def predictions(labels: np.ndarray, half: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(occurrences, the senses predicted for them), trained on one half, and on the other."""
        pairs = []
        for trained in (0, 1):
            train, test = np.flatnonzero(half == trained), np.flatnonzero(half != trained)
            present, local = np.unique(labels[train], return_inverse=True)
            probe = fit_probe(x[train], local, len(present))
            converged.append(probe.converged)
            pairs.append((test, present[probe.predict(x[test])]))
        return pairs

    def score(pairs: list[tuple[np.ndarray, np.ndarray]], kept: np.ndarray) -> float:
        return fmean(
            macro_f1(word.sense[test[kept[test]]], predicted[kept[test]], n_senses) for test, predicted in pairs
        )

    real = [pair for half in halves for pair in predictions(word.sense, half)]
    random = predictions(shuffled[0], halves[0])
    everywhere = np.ones(len(blocks), bool)
    without = tuple(score(real, blocks != block) for block in range(BLOCKS))
    return Ceiling(score(real, everywhere), without, score(random, everywhere), len(converged), converged.count(False))
