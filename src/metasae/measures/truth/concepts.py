"""How well an SAE's latents find concepts whose labels do not come from an SAE.

For each concept, with everything chosen and fitted on one half of the documents and judged on the other:

    best_f1     the latent of largest F1, as it fires
    probe5_f1   a linear probe on the activations of the five latents of largest F1
    ceiling_f1  a linear probe on the model's activations

A latent is blended where a second, unrelated concept has a quarter of its prior-free firing share q_ic = r_ic / sum_c
r_ic. r_ic is the share of concept c's tokens on which latent i fires, less the share of all other tokens on which it
does, or 0: that much recall comes by chance. Two concepts are related where their own phi is above .2, as a word and a
pair of words that ends in it.

What fools these numbers: a concept that is not in the bank is not seen, so a latent that fires on two concepts of which
the bank has one counts as clean; narrow latents lose recall, which is printed apart from precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from metasae.data.concepts.labels import Bank
from metasae.measures.truth.few_latents import Halves, few_latents
from metasae.measures.truth.probe import column, halves_of, probe_f1
from metasae.measures.truth.spike_scores import above_chance, count, mean_of, ones, phi_of_columns

PROBED, BLENDED_SHARE, RELATED_PHI = 5, 0.25, 0.2
# A latent serves a concept where it is the best one for it with at least this F1.
SERVES = 0.1
KEYS = ("best_f1", "best_recall", "best_precision", "probe5_f1", "ceiling_f1")


@dataclass(frozen=True)
class SetScores:
    """Scores on one set of tokens, of c concepts that are on in both halves of its documents.

    families: [c]. values: of `KEYS`, [1 + K, c] each: on all tokens, and without each of K blocks of documents in the
    judging; the ceiling has the first row alone. blended: 0 or 1 for each latent that serves a concept, [1 + K, l]. A
    number that does not exist is NaN.
    """

    families: np.ndarray
    values: dict[str, np.ndarray]
    blended: np.ndarray


def score_concepts(
    bank: Bank,
    firings_TN: csr_array,
    documents: np.ndarray,
    x_TD: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
) -> dict:
    """The scores of `merged` on one set of tokens.

    firings: activations of the latents, csr [T, n]. documents: int [T]. x: the model's activations [T, d], for the
    ceiling; None leaves it out. blocks: int [T], of whole documents, for leave_one_out; None leaves it out.
    """
    ceiling = None if x_TD is None else probe_f1(x_TD, ones(bank.labels), documents)
    return merged([score_set(bank, firings_TN, halves_with(documents, blocks), ceiling)])


def halves_with(documents: np.ndarray, blocks: np.ndarray | None, n_blocks: int = 1) -> Halves:
    """The halves of the documents, with blocks. documents, blocks: int [T]; None is one block, which is not left out.
    n_blocks: the least number.
    """
    block = np.zeros(len(documents), np.int64) if blocks is None else np.asarray(blocks, np.int64)
    return Halves(halves_of(documents), block, max(n_blocks, int(block.max(initial=0)) + 1))


def score_set(bank: Bank, firings_TN: csr_array, halves: Halves, ceiling: np.ndarray | None = None) -> SetScores:
    """Chosen and fitted on all of the first half, judged on the second.

    bank: C concepts with labels [T, C]. firings: activations, csr [T, n]. ceiling: F1 [C].
    """
    labels, fires = ones(bank.labels), ones(firings_TN)
    first = count(labels, fires, ~halves.second)
    judged = np.flatnonzero((first.on > 0) & (np.asarray(labels[halves.second].sum(0)).ravel() > 0))
    families = np.array([bank.concepts[place].family for place in judged], object)
    if not len(judged):
        nothing = _with_and_without(np.zeros((halves.n_blocks, 0)))
        return SetScores(families, dict.fromkeys(KEYS, nothing) | {"ceiling_f1": nothing[:1]}, nothing)
    first_f1, labels = first.f1()[judged], labels[:, judged]
    latents, place = np.unique(first_f1.argmax(1), return_inverse=True)
    both, on, fired = _counted(labels, fires[:, latents], halves)
    every = np.arange(len(judged))
    hits, fires_on = both[:, every, place], fired[:, place]
    few_hits, few_fires = _few(labels, firings_TN, first_f1, halves)
    values = {
        "best_f1": 2 * hits / np.maximum(on + fires_on, 1),
        "best_recall": hits / np.maximum(on, 1),
        "best_precision": hits / np.maximum(fires_on, 1),
        "probe5_f1": 2 * few_hits / np.maximum(on + few_fires, 1),
    }
    values = {key: np.where(on > 0, numbers, np.nan) for key, numbers in values.items()}
    values["ceiling_f1"] = np.full((1, len(judged)), np.nan) if ceiling is None else ceiling[None, judged]
    serving = np.unique(place[first_f1.max(1) >= SERVES])
    related = np.nan_to_num(phi_of_columns(labels)) > RELATED_PHI
    tokens = _with_and_without(np.bincount(halves.block[halves.second], minlength=halves.n_blocks)[:, None, None])
    recall = above_chance(both[:, :, serving], on[:, :, None], fired[:, None, serving], tokens)
    return SetScores(families, values, np.stack([_blended(of_latents, related) for of_latents in recall]))


def merged(sets: Sequence[SetScores]) -> dict:
    """Means over all concepts of all sets, the share `blended` of all latents that serve a concept, `by_family` and
    `n`. A number that does not exist is None. leave_one_out: all but the ceiling without each block of documents in the
    scoring; the choice of latents and the fits stay. Concepts that are on in only one half of the documents are left
    out; n counts the others.
    """
    families = np.concatenate([of_set.families for of_set in sets])
    values = {key: np.concatenate([of_set.values[key] for of_set in sets], axis=1) for key in KEYS}
    blended = np.concatenate([of_set.blended for of_set in sets], axis=1)
    without = {key: [mean_of(row) for row in values[key][1:]] for key in KEYS if key != "ceiling_f1"}
    return {
        **{key: mean_of(numbers[0]) for key, numbers in values.items()},
        "blended": mean_of(blended[0]),
        "by_family": {
            family: {key: mean_of(numbers[0][families == family]) for key, numbers in values.items()}
            | {"n": int((families == family).sum())}
            for family in dict.fromkeys(families)
        },
        "n": len(families),
        "n_serving": int(np.isfinite(blended[0]).sum()),
        "leave_one_out": without | {"blended": [mean_of(row) for row in blended[1:]]},
    }


def _counted(labels: csr_array, fires: csr_array, halves: Halves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """On the second half, whole and without each block: tokens with both [1 + K, c, l], with the concept [1 + K, c],
    with the latent [1 + K, l].
    """
    blocks = [count(labels, fires, halves.second & (halves.block == block)) for block in range(halves.n_blocks)]
    columns = zip(*((table.both, table.on, table.fires) for table in blocks), strict=True)
    both, on, fired = (_with_and_without(np.stack(counts)) for counts in columns)
    return both, on, fired


def _few(labels: csr_array, firings: csr_array, first_f1: np.ndarray, halves: Halves) -> tuple[np.ndarray, np.ndarray]:
    """For a probe on the PROBED best latents of each concept: (tokens on which it fires and the concept is on, tokens
    on which it fires), [1 + K, c] each.
    """
    by_concept, by_latent = labels.tocsc(), csr_array(firings).tocsc()
    fires, hits = np.zeros((2, halves.n_blocks, labels.shape[1]))
    for place, f1 in enumerate(first_f1):
        on = column(by_concept, place) > 0
        fires[:, place], hits[:, place] = few_latents(by_latent, _largest(f1, PROBED), on, halves)
    return _with_and_without(hits), _with_and_without(fires)


def _largest(values: np.ndarray, number: int) -> np.ndarray:
    """Places of the largest values, the largest first; of equal ones the lower place."""
    cut = np.partition(values, -number)[-number] if number < len(values) else values.min()
    places = np.flatnonzero(values >= cut)
    return places[np.argsort(-values[places], kind="stable")][:number]


def _with_and_without(by_block: np.ndarray) -> np.ndarray:
    """Counts of K blocks [K, ...] -> of all, then without each block [1 + K, ...]; of one block the first alone."""
    total = by_block.sum(0, keepdims=True)
    return np.concatenate([total, total - by_block]) if len(by_block) > 1 else total


def _blended(recall_CL: np.ndarray, related: np.ndarray) -> np.ndarray:
    """0 or 1 for each latent: whether a second concept, not related to its first, has BLENDED_SHARE or more of it."""
    share = recall_CL / np.maximum(recall_CL.sum(0), 1e-300)
    main = share.argmax(0)
    second = np.where(related[:, main], 0.0, share)
    second[main, np.arange(len(main))] = 0.0
    return (second.max(0, initial=0) >= BLENDED_SHARE).astype(np.float64)
