"""Detectors with a threshold: linear probes on activations or on a few latents, and F1 on documents they did not see.

    direction = pooled covariance^-1 (mean where on - mean of all)          Fisher's, in closed form

The threshold is the best one on one half of the documents; F1 is that on the other half.
"""

import numpy as np
from scipy.sparse import csr_array

# Added to the covariance's diagonal, as a share of its mean: rows may lie in a subspace.
RIDGE = 1e-6


def halves_of(documents: np.ndarray) -> np.ndarray:
    """bool [T]: every second document, in the order of their numbers."""
    _, number = np.unique(documents, return_inverse=True)
    return number % 2 == 1


def directions(x_SD: np.ndarray, on_SM: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(mean [d], directions [d, m]) from rows x and what is on at them; a column of zeros where nothing ever is."""
    mean = x_SD.mean(0, dtype=np.float64)
    centred = x_SD - mean.astype(x_SD.dtype)
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    count = np.asarray(on_SM.sum(0), np.float64).ravel()
    means_MD = (on_SM.T @ centred) / np.maximum(count, 1)[:, None]
    return mean, np.linalg.solve(covariance, means_MD.T)


def threshold_f1(scores_T: np.ndarray, on_T: np.ndarray, second_T: np.ndarray) -> float:
    """F1 on the second half at the threshold that is best on the first; NaN where either half has nothing on."""
    first_on, second_on = on_T[~second_T], on_T[second_T]
    if not first_on.any() or not second_on.any():
        return float("nan")
    first = scores_T[~second_T]
    order = np.argsort(-first, kind="stable")
    ranked = first[order]
    f1 = 2 * np.cumsum(first_on[order]) / (np.arange(1, len(order) + 1) + first_on.sum())
    # a threshold takes all tokens of one score or none
    last_of_score = np.append(ranked[1:] != ranked[:-1], True)
    best = np.where(last_of_score, f1, -1.0).argmax()
    fires = scores_T[second_T] >= ranked[best]
    return float(2 * (fires & second_on).sum() / (fires.sum() + second_on.sum()))


def probe_f1(
    x_TD: np.ndarray, on_TM: csr_array, documents: np.ndarray, fitted_on: tuple[np.ndarray, csr_array] | None = None
) -> np.ndarray:
    """F1 [m] of a linear probe on activations x [T, d]: a ceiling for latents. NaN where a half has nothing on.

    on: zeros and ones. fitted_on: (x, on) of other tokens that directions come from; None takes the first half.
    """
    second = halves_of(documents)
    mean, to_probe = directions(*(fitted_on or (x_TD[~second], on_TM[~second])))
    scores_TM = (x_TD - mean.astype(x_TD.dtype)) @ to_probe.astype(x_TD.dtype)
    by_column = on_TM.tocsc()
    return np.array([threshold_f1(scores_TM[:, j], column(by_column, j) > 0, second) for j in range(on_TM.shape[1])])


def column(entries, j: int) -> np.ndarray:
    """Column j of a csc array, dense."""
    out = np.zeros(entries.shape[0], entries.dtype)
    start, stop = entries.indptr[j], entries.indptr[j + 1]
    out[entries.indices[start:stop]] = entries.data[start:stop]
    return out
