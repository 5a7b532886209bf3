"""A linear probe on the activations of a few latents, judged block by block of documents.

Where none of the latents fires, their activations are 0. All these tokens have the same score, so they are only
counted. The result is that of `metasae.measures.truth.probe` on the dense columns.
"""

from dataclasses import dataclass

import numpy as np

from metasae.measures.truth.probe import best_threshold, fisher


@dataclass(frozen=True)
class Halves:
    """T tokens: the probe is fitted on one half of the documents and judged on the other.

    second: bool [T], the half it is judged on. block: int [T], 0 to n_blocks - 1.
    """

    second: np.ndarray
    block: np.ndarray
    n_blocks: int

    def by_block(self, tokens: np.ndarray) -> np.ndarray:
        """How many of some tokens are in each block of the second half: int64 [K]. tokens: their numbers, int [S]."""
        return np.bincount(self.block[tokens[self.second[tokens]]], minlength=self.n_blocks)


def few_latents(by_latent, latents: np.ndarray, on: np.ndarray, halves: Halves) -> tuple[np.ndarray, np.ndarray]:
    """(tokens on which the probe fires, those of them on which the concept is on) in each block of the second half:
    int64 [K] each.

    by_latent: activations, csc [T, n]. latents: the few. on: bool [T], somewhere in the first half.
    """
    tokens, x = _active(by_latent, latents)
    first, on_there = ~halves.second[tokens], on[tokens]
    n_first, on_first = int((~halves.second).sum()), int((on & ~halves.second).sum())
    x_first = x[first]
    mean = x_first.sum(0) / n_first
    covariance = x_first.T @ x_first / n_first - np.outer(mean, mean)
    total = x_first[on_there[first]].sum(0) - on_first * mean
    direction = fisher(covariance, np.array([on_first]), total[None])[:, 0]
    scores, silent = (x - mean) @ direction, float(-mean @ direction)
    threshold = _threshold(scores[first], on_there[first], silent, n_first, on_first)
    firing = tokens[scores >= threshold]
    if silent >= threshold:
        others = np.ones(len(on), bool)
        others[tokens] = False
        firing = np.append(firing, np.flatnonzero(others))
    return halves.by_block(firing), halves.by_block(firing[on[firing]])


def _active(by_latent, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens on which any of the latents fires, rising [S]; their activations there, float64 [S, few])."""
    spans = [slice(by_latent.indptr[latent], by_latent.indptr[latent + 1]) for latent in latents]
    place = np.zeros(by_latent.shape[0], np.int64)
    for span in spans:
        place[by_latent.indices[span]] = 1
    tokens = np.flatnonzero(place)
    place[tokens] = np.arange(len(tokens))
    x = np.zeros((len(tokens), len(latents)))
    for number, span in enumerate(spans):
        x[place[by_latent.indices[span]], number] = by_latent.data[span]
    return tokens, x


def _threshold(scores: np.ndarray, on: np.ndarray, silent: float, n_first: int, on_first: int) -> float:
    """The best threshold on the first half. scores, on: of its tokens on which something fires; silent: of the rest."""
    tokens = np.ones(len(scores))
    if n_first > len(scores):
        scores, on = np.append(scores, silent), np.append(on.astype(np.int64), on_first - on.sum())
        tokens = np.append(tokens, n_first - len(tokens))
    return best_threshold(scores, on, tokens)
