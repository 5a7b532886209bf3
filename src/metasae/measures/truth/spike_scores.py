"""How well an SAE finds spike-ins, given which spike-ins and which latents are on at each held-out token.

A spike-in's latent is the one of largest F1 on one half of the documents; it is judged on the other half.

    F1 = 2 N11 / (N1 + Nf)       N1: tokens with the spike-in on, Nf: tokens on which the latent fires, N11: both
    r_ij = N11 / N1_j            recall of spike-in j by latent i
    q_ij = r'_ij / sum_j r'_ij   is free of the rates; r'_ij = max(0, r_ij - b_ij), where b_ij is the share of all other
                                 tokens on which latent i fires: that much recall comes by chance

What fools these numbers: spike-ins judge a method that is trained on spike-ins, not an SAE from elsewhere. Cutting weak
firings can raise recovery after a short training. Losing any firings lowers the phi error. Where many spike-ins are on
at once, the blend rate misses a second one (docs/measures.md).
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from metasae.data.spikes.draw import KINDS, Spike, sense_pairs
from metasae.measures.truth.probe import halves_of

# A latent is blended where a second, unrelated spike-in has BLENDED_SHARE of it, or where no spike-in is on at more
# than FREE_SHARE of its firings. Two senses are told apart where each latent has SENSE_SHARE of its recall on its own
# sense.
BLENDED_SHARE, FREE_SHARE, SENSE_SHARE = 0.25, 0.5, 0.75


@dataclass(frozen=True)
class Table:
    """Counts on one half of the documents. both: float64 [m, n]; on: [m] tokens of each spike-in; fires: [n]; tokens:
    how many there are.
    """

    both: np.ndarray
    on: np.ndarray
    fires: np.ndarray
    tokens: int

    def f1(self) -> np.ndarray:
        """[m, n]; 0 where neither is ever on."""
        return 2 * self.both / np.maximum(self.on[:, None] + self.fires[None], 1)

    def recall(self) -> np.ndarray:
        """r transposed: [m, n]."""
        return self.both / np.maximum(self.on[:, None], 1)

    def above_chance(self) -> np.ndarray:
        """r': [m, n]."""
        return above_chance(self.both, self.on[:, None], self.fires[None], self.tokens)


def above_chance(both: np.ndarray, on: np.ndarray, fires: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
    """Recall less the rate of firing on all other tokens, at least 0. Counts of any shapes that go together."""
    by_chance = (fires - both) / np.maximum(tokens - on, 1)
    return np.maximum(both / np.maximum(on, 1) - by_chance, 0)


def count(on_TM: csr_array, fires_TN: csr_array, chosen: np.ndarray) -> Table:
    """on: spike-ins, fires: latents, both csr of zeros and ones; chosen: bool [T], the tokens to count."""
    on, fires = on_TM[chosen].astype(np.float64), fires_TN[chosen].astype(np.float64)
    return Table((on.T @ fires).toarray(), _sums(on), _sums(fires), on.shape[0])


def score_spikes(
    spikes: list[Spike],
    strengths_TM: csr_array,
    fires_TN: csr_array,
    documents: np.ndarray,
    directions_MD: np.ndarray | None = None,
    rows_ND: np.ndarray | None = None,
) -> dict:
    """The scores of an SAE: recovery_f1, by_kind, told_apart, blend_rate, absorption, cosine, phi_error; None for a
    number that does not exist. n: spike-ins that are judged. n_pairs, n_serving: the sense pairs and the latents that
    the shares count.

    strengths: s [T, m]; fires: nonzero where a latent fires [T, n]; documents: int [T]. directions, rows: unit rows of
    spike-ins and latents, for the cosine. Spike-ins that are on in only one half are left out; n counts the others.
    """
    on, fires, second = ones(strengths_TM), ones(fires_TN), halves_of(documents)
    first_half, second_half = count(on, fires, ~second), count(on, fires, second)
    judged = (first_half.on > 0) & (second_half.on > 0)
    latents = first_half.f1().argmax(1)
    every = np.arange(len(spikes))
    f1 = np.where(judged, second_half.f1()[every, latents], np.nan)
    cosine = None
    if directions_MD is not None and rows_ND is not None:
        cosine = mean_of((directions_MD * rows_ND[latents]).sum(1)[judged])
    return {
        "recovery_f1": mean_of(f1),
        "by_kind": by_kind(spikes, f1),
        "told_apart": _told_apart(spikes, latents, judged, second_half),
        "blend_rate": _blend_rate(spikes, latents[judged], second_half, _free_share(on, fires, second)),
        "absorption": _absorption(spikes, latents, judged, on[second], fires[second]),
        "cosine": cosine,
        "phi_error": _phi_error(on[second], fires[second], latents, np.flatnonzero(judged)),
        "n": int(judged.sum()),
        "n_pairs": len(_judged_pairs(spikes, judged)),
        "n_serving": len(np.unique(latents[judged])),
    }


def by_kind(spikes: list[Spike], f1: np.ndarray) -> dict[str, float | None]:
    """Mean F1 of each kind; NaN entries are left out."""
    kinds = np.array([spike.kind for spike in spikes])
    return {kind: mean_of(f1[kinds == kind]) for kind in KINDS}


def _told_apart(spikes: list[Spike], latents: np.ndarray, judged: np.ndarray, table: Table) -> float | None:
    """The share of sense pairs with a latent for each sense: another one, that has SENSE_SHARE of its recall there."""
    recall = table.recall()

    def is_of(own: int, other: int) -> bool:
        latent = latents[own]
        return recall[own, latent] > 0 and recall[own, latent] >= SENSE_SHARE * recall[[own, other], latent].sum()

    return mean_of([latents[a] != latents[b] and is_of(a, b) and is_of(b, a) for a, b in _judged_pairs(spikes, judged)])


def _judged_pairs(spikes: list[Spike], judged: np.ndarray) -> list[tuple[int, int]]:
    return [(one, other) for one, other in sense_pairs(spikes) if judged[one] and judged[other]]


def _blend_rate(spikes: list[Spike], latents: np.ndarray, table: Table, free_share: np.ndarray) -> float | None:
    """The share of the latents that serve a spike-in that fire on two unrelated ones, or mostly where none is on."""
    groups, senses = (np.array(values) for values in zip(*((s.group, s.kind == "sense") for s in spikes), strict=True))
    recall = table.above_chance()
    blended = []
    for latent in np.unique(latents):
        share = recall[:, latent] / max(recall[:, latent].sum(), 1e-300)
        main = share.argmax()
        # members of a family and two atoms come together by themselves; two senses of a word never do
        unrelated = (groups != groups[main]) | senses
        unrelated[main] = False
        blended.append((share[unrelated] >= BLENDED_SHARE).any() or free_share[latent] > FREE_SHARE)
    return mean_of(blended)


def _free_share(on: csr_array, fires: csr_array, second: np.ndarray) -> np.ndarray:
    """The share of each latent's firings at tokens without any spike-in, on the second half: [n]."""
    free = second & (np.diff(on.indptr) == 0)
    return _sums(fires[free]) / np.maximum(_sums(fires[second]), 1)


def _absorption(spikes, latents: np.ndarray, judged: np.ndarray, on: csr_array, fires: csr_array) -> float | None:
    """Mean over parents: recall by the parent's latent where no child is on, less its recall where one is."""
    differences = []
    for place, spike in enumerate(spikes):
        if spike.kind != "parent" or not judged[place]:
            continue
        children = [other for other, child in enumerate(spikes) if child.group == spike.group and child.kind == "child"]
        parent_on = on[:, [place]].toarray()[:, 0] > 0
        child_on = on[:, children].sum(1) > 0
        fired = fires[:, [latents[place]]].toarray()[:, 0] > 0
        sides = parent_on & ~child_on, parent_on & child_on
        if all(side.any() for side in sides):
            differences.append(fired[sides[0]].mean() - fired[sides[1]].mean())
    return mean_of(differences)


def _phi_error(on: csr_array, fires: csr_array, latents: np.ndarray, judged: np.ndarray) -> float | None:
    """Mean |phi of two latents - phi of their spike-ins| over pairs of spike-ins with two different latents."""
    if len(judged) < 2:
        return None
    chosen = latents[judged]
    error = np.abs(phi_of_columns(fires[:, chosen]) - phi_of_columns(on[:, judged]))
    one, other = np.triu_indices(len(judged), 1)
    return mean_of(error[one, other][chosen[one] != chosen[other]])


def phi_of_columns(columns: csr_array) -> np.ndarray:
    """phi of all pairs of 0/1 columns, float64; NaN where one never or always fires."""
    columns = columns.astype(np.float64)
    n, total = columns.shape[0], _sums(columns)
    spread = np.sqrt(total * (n - total))
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((columns.T @ columns).toarray() * n - np.outer(total, total)) / np.outer(spread, spread)


def ones(entries: csr_array) -> csr_array:
    """The same places with ones in them, float32."""
    entries = csr_array(entries)
    if not np.all(entries.data):
        entries = entries.copy()
        entries.eliminate_zeros()
    return csr_array((np.ones(entries.nnz, np.float32), entries.indices, entries.indptr), shape=entries.shape)


def _sums(entries: csr_array) -> np.ndarray:
    return np.asarray(entries.sum(0), np.float64).ravel()


def mean_of(values) -> float | None:
    """The mean of what is not NaN; None of nothing."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else None
