"""Linear probes with a threshold, on activations or on a few latents, and their F1 on documents that they did not see.

    direction = pooled covariance^-1 (mean where on - mean of all)          Fisher's, in closed form

The threshold is the best one on one half of the documents; F1 is that on the other half.
"""

import numpy as np
import torch
from scipy.sparse import csr_array

from metasae.data.split import Split

# Added to the covariance's diagonal, as a share of its mean: rows may lie in a subspace, or be fewer than dimensions.
RIDGE, RIDGE_OF_FEW = 1e-6, 0.1
# Tokens read at a time, and scores kept at a time.
BATCH, SCORES = 4096, 1 << 26


def halves_of(documents: np.ndarray) -> np.ndarray:
    """bool [T]: every second document, in the order of their numbers."""
    _, number = np.unique(documents, return_inverse=True)
    return number % 2 == 1


def fisher(covariance_DD: np.ndarray, count_M: np.ndarray, total_MD: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Directions [d, m], float64; a column of zeros where nothing ever is on.

    covariance: of all rows. count: rows on which each of m things is on. total: the sum of these rows, less the mean of
    all.
    """
    # rows that never vary give no direction, whatever the ridge
    added = ridge * np.trace(covariance_DD) / len(covariance_DD) or 1.0
    means_MD = total_MD / np.maximum(count_M, 1)[:, None]
    return np.linalg.solve(covariance_DD + added * np.eye(len(covariance_DD)), means_MD.T)


def directions(x_SD: np.ndarray, on_SM: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(mean [d], directions [d, m]) from rows x and what is on at them; a column of zeros where nothing ever is."""
    mean = x_SD.mean(0, dtype=np.float64)
    centred = x_SD - mean.astype(x_SD.dtype)
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    return mean, fisher(covariance, np.asarray(on_SM.sum(0), np.float64).ravel(), on_SM.T @ centred)


def directions_of_split(
    split: Split, on_TM: csr_array, chosen: np.ndarray, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """`directions` from the chosen tokens of a split, bool [T], in one pass over its activations."""
    first, done = None, 0
    for block in split.blocks(BATCH):
        here = np.flatnonzero(chosen[done : done + len(block)])
        x, on = block[torch.from_numpy(here)], on_TM[here + done]
        done += len(block)
        if not len(x):
            continue
        if first is None:
            # sums of squares lose digits where the mean is large, so a rough one is taken off
            first = x.mean(0)
            total, square = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
            of_on, n_tokens = np.zeros((on_TM.shape[1], x.shape[1])), 0
        x = x - first
        total, square = total + x.double().sum(0).numpy(), square + (x.T @ x).double().numpy()
        of_on, n_tokens = of_on + on.T @ x.numpy(), n_tokens + len(x)
    mean = total / n_tokens
    count = np.asarray(on_TM[chosen].sum(0), np.float64).ravel()
    to_probe = fisher(square / n_tokens - np.outer(mean, mean), count, of_on - np.outer(count, mean), ridge)
    return mean + first.double().numpy(), to_probe


def best_threshold(scores: np.ndarray, on: np.ndarray, tokens: np.ndarray) -> float:
    """The threshold of largest F1; of equal ones the highest.

    scores: [S], each that of `tokens` [S] tokens, at least one, of which the thing is on at `on` [S].
    """
    order = np.argsort(-scores)
    ranked = scores[order]
    f1 = 2 * np.cumsum(on[order]) / (np.cumsum(tokens[order]) + on.sum())
    # a threshold takes all tokens of one score or none
    last_of_score = np.append(ranked[1:] != ranked[:-1], True)
    return float(ranked[np.where(last_of_score, f1, -1.0).argmax()])


def threshold_f1(scores_T: np.ndarray, on_T: np.ndarray, second_T: np.ndarray) -> float:
    """F1 on the second half at the threshold that is best on the first; NaN where either half has nothing on."""
    first_on, second_on = on_T[~second_T], on_T[second_T]
    if not first_on.any() or not second_on.any():
        return float("nan")
    fires = scores_T[second_T] >= best_threshold(scores_T[~second_T], first_on, np.ones(len(first_on)))
    return float(2 * (fires & second_on).sum() / (fires.sum() + second_on.sum()))


def probe_f1(x_TD: np.ndarray, on_TM: csr_array, documents: np.ndarray) -> np.ndarray:
    """F1 [m] of a linear probe on activations x [T, d]: a ceiling for latents. NaN where a half has nothing on.

    on: zeros and ones. The directions are fitted on the first half of the documents.
    """
    second = halves_of(documents)
    mean, to_probe = directions(x_TD[~second], on_TM[~second])
    scores_TM = (x_TD - mean.astype(x_TD.dtype)) @ to_probe.astype(x_TD.dtype)
    by_column = on_TM.tocsc()
    return np.array([threshold_f1(scores_TM[:, j], column(by_column, j) > 0, second) for j in range(on_TM.shape[1])])


def probe_f1_of_split(split: Split, on_TM: csr_array, documents: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """`probe_f1` on the activations of a split, which need not fit into memory."""
    second, out = halves_of(documents), np.full(on_TM.shape[1], np.nan)
    if second.all() or not second.any():
        return out
    mean, to_probe = directions_of_split(split, on_TM, ~second, ridge)
    by_column, step = on_TM.tocsc(), max(1, SCORES // split.n_tokens)
    for start in range(0, len(out), step):
        some, done = to_probe[:, start : start + step].astype(np.float32), 0
        # a column lies in one piece
        scores_TM = np.empty((split.n_tokens, some.shape[1]), np.float32, order="F")
        for block in split.blocks(BATCH):
            scores_TM[done : done + len(block)] = (block.numpy() - mean.astype(np.float32)) @ some
            done += len(block)
        for j in range(some.shape[1]):
            out[start + j] = threshold_f1(scores_TM[:, j], column(by_column, start + j) > 0, second)
    return out


def column(entries, j: int) -> np.ndarray:
    """Column j of a csc array, dense."""
    out = np.zeros(entries.shape[0], entries.dtype)
    start, stop = entries.indptr[j], entries.indptr[j + 1]
    out[entries.indices[start:stop]] = entries.data[start:stop]
    return out
