"""Concepts with labels from outside: how well latents find them, for any SAE.

For each concept, with everything chosen and fitted on one half of the documents and judged on the other:

    best_f1     the latent of largest F1, as it fires
    probe5_f1   a linear probe on the activations of the five latents of largest F1
    ceiling_f1  a linear probe on the model's activations

A latent is blended where a second, unrelated concept has a quarter of its prior-free firing share q_ic = r_ic / sum_c
r_ic, r_ic being the share of concept c's tokens on which latent i fires. Two concepts are related where their own phi
is above .2, as a word and a pair of words that ends in it.

What fools these numbers: a concept that is not in the bank is not seen, so a latent that fires on two concepts of which
the bank has one counts as clean; narrow latents lose recall, which is printed apart from precision.
"""

import numpy as np
from scipy.sparse import csr_array

from metasae.data.concepts.labels import Bank
from metasae.measures.truth.probe import column, directions, halves_of, probe_f1, threshold_f1
from metasae.measures.truth.spike_scores import count, mean_of, ones, phi_of_columns

PROBED, BLENDED_SHARE, RELATED_PHI = 5, 0.25, 0.2
# A latent serves a concept where it is the best one for it with at least this F1.
SERVES = 0.1


def score_concepts(bank: Bank, firings_TN: csr_array, documents: np.ndarray, x_TD: np.ndarray | None = None) -> dict:
    """best_f1, best_recall, best_precision, probe5_f1, ceiling_f1, blended, by_family, n; None where nothing tells.

    firings: activations of the latents, csr [T, n]. documents: int [T]. x: the model's activations [T, d], for the
    ceiling; None leaves it out. Concepts that one half of the documents lacks are left out; n is the rest.
    """
    second, labels, fires = halves_of(documents), ones(bank.labels), ones(firings_TN)
    tables = [count(labels, fires, half) for half in (~second, second)]
    judged = np.flatnonzero((tables[0].on > 0) & (tables[1].on > 0))
    first_f1 = tables[0].f1()[judged]
    latents = first_f1.argmax(1) if len(judged) else np.zeros(0, np.int64)
    both = tables[1].both[judged, latents]
    by_concept = {
        "best_f1": tables[1].f1()[judged, latents],
        "best_recall": both / tables[1].on[judged],
        "best_precision": both / np.maximum(tables[1].fires[latents], 1),
        "probe5_f1": _few_latents_f1(labels, firings_TN, first_f1, judged, second),
        "ceiling_f1": np.full(len(judged), np.nan) if x_TD is None else probe_f1(x_TD, labels, documents)[judged],
    }
    families = np.array([bank.concepts[place].family for place in judged], object)
    serving = latents[first_f1.max(1, initial=0) >= SERVES] if len(judged) else latents
    return {
        **{key: mean_of(values) for key, values in by_concept.items()},
        "blended": _blended(labels[second], tables[1].recall(), np.unique(serving), judged),
        "by_family": {
            family: {key: mean_of(values[families == family]) for key, values in by_concept.items()}
            | {"n": int((families == family).sum())}
            for family in dict.fromkeys(families)
        },
        "n": len(judged),
    }


def _few_latents_f1(
    labels: csr_array, firings: csr_array, first_f1: np.ndarray, judged: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """F1 [c] of a probe on the PROBED best latents of each concept."""
    by_concept, by_latent = labels.tocsc(), csr_array(firings).tocsc()
    out = np.zeros(len(judged))
    for place, concept in enumerate(judged):
        best = np.argsort(-first_f1[place], kind="stable")[:PROBED]
        x = np.stack([column(by_latent, latent) for latent in best], axis=1).astype(np.float64)
        on = column(by_concept, concept)
        mean, to_probe = directions(x[~second], csr_array(on[~second, None]))
        out[place] = threshold_f1(((x - mean) @ to_probe)[:, 0], on > 0, second)
    return out


def _blended(labels: csr_array, recall_CN: np.ndarray, latents: np.ndarray, judged: np.ndarray) -> float | None:
    """The share of these latents with a second, unrelated concept."""
    if not len(judged):
        return None
    related = np.nan_to_num(phi_of_columns(labels[:, judged])) > RELATED_PHI
    np.fill_diagonal(related, True)
    blended = []
    for latent in latents:
        share = recall_CN[judged, latent] / max(recall_CN[judged, latent].sum(), 1e-300)
        blended.append((share[~related[share.argmax()]] >= BLENDED_SHARE).any())
    return mean_of(blended)
