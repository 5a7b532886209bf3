"""Dictionaries whose quality is known, made by hand from a planted world, and what can be done to them without making
them more atomic.

A subject's firings are given, not read from its encoder: they follow from the events of the world. Every function here
returns a new subject; rows stay unit and activations positive.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from metasae.data.planted.planted_cache import PlantedSplit
from metasae.data.split import Split
from metasae.measures.firing.firings import Firings
from metasae.measures.truth.truth import as_firings, unit
from metasae.sae.sae import SAE, SAEConfig

# Weaker activations are lost, as below the threshold of a trained SAE.
FIRES_ABOVE = 0.4


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary and its firings on the tokens of `split`.

    Of hand-made ones the split is planted, its `world` is the truth, and W_enc = W_dec^T.
    """

    sae: SAE
    firings: Firings
    split: Split

    @property
    def rows(self) -> np.ndarray:
        """Decoder rows, float32 [n, d]."""
        return self.sae.W_dec.detach().numpy()

    @property
    def columns(self) -> np.ndarray:
        """Encoder columns, float32 [n, d]."""
        return self.sae.W_enc.detach().t().numpy()

    @property
    def live(self) -> np.ndarray:
        """Latents that fire at least once, rising."""
        return np.flatnonzero(self.firings.counts())

    @cached_property
    def places(self) -> np.ndarray:
        """The token of each firing, int64 [nnz]."""
        return np.repeat(np.arange(self.firings.n_tokens), np.diff(self.firings.indptr))

    def fvu(self) -> float:
        """Share of the variance of x that the firings do not rebuild."""
        x = self.split.x.double().numpy()
        error = x - self.firings.csr.astype(np.float64) @ self.rows.astype(np.float64) - self.sae.b_dec.double().numpy()
        return float(np.square(error).sum() / np.square(x - x.mean(0)).sum())


def dictionary(split: PlantedSplit, blended: tuple[int, ...] = (), composed: bool = False) -> Subject:
    """One latent per feature, that fires where the feature is stronger than FIRES_ABOVE; except:

    blended: words that have one latent in place of one per sense. Its row is the mean of the senses' directions,
    weighted with how often each occurs, and it fires on the word in any sense.
    composed: every composite has a latent of its own, along the sum of its atoms; the atoms' latents fire only where
    the atom is on by itself.
    """
    world = split.world
    m, mixing = world.n_features, world.mixing()
    single = np.flatnonzero(~np.isin(world.word, blended) | (world.word < 0))
    rows, carries = [world.directions[single]], [mixing[:, single]]
    for word in blended:
        senses = np.flatnonzero(world.word == word)
        row = unit(world.rates[senses][None, :] @ world.directions[senses])
        rows.append(row)
        carries.append(_carry(mixing, senses, world.directions[senses] @ row[0]))
    if composed:
        carries[0][m:] = 0
        for number, members in enumerate(world.members):
            whole = world.directions[list(members)].sum(0, keepdims=True)
            rows.append(unit(whole))
            carries.append(_carry(mixing, np.array([m + number]), np.linalg.norm(whole)))
    return _subject(split, np.concatenate(rows), split.events @ np.concatenate(carries, axis=1))


def thinned(subject: Subject, share: float, seed: int) -> Subject:
    """Every firing is lost with probability `share`."""
    kept = np.random.default_rng(seed).random(len(subject.firings.indices)) >= share
    return replace(subject, firings=only(subject.firings, kept))


def in_fewer_documents(subject: Subject, share: float, seed: int) -> Subject:
    """Every latent fires in this share of the documents only, drawn for each latent; there as before."""
    documents, place = np.unique(subject.firings.documents, return_inverse=True)
    allowed = np.zeros((len(subject.rows), len(documents)), bool)
    allowed[:, : round(share * len(documents))] = True
    allowed = np.random.default_rng(seed).permuted(allowed, axis=1)
    where = place[subject.places]
    return replace(subject, firings=only(subject.firings, allowed[subject.firings.indices, where]))


def noisy(subject: Subject, size: float, seed: int) -> Subject:
    """A random vector of length `size`, in any direction alike likely, is added to every decoder row, which is unit
    again then. W_enc stays."""
    noise = np.random.default_rng(seed).standard_normal(subject.rows.shape)
    return replace(subject, sae=sae_of(unit(subject.rows + size * unit(noise)), subject.columns, subject.sae.b_dec))


def twinned(subject: Subject, latents: np.ndarray, seed: int | None = None) -> Subject:
    """Each of these latents is there twice, the twin at the end.

    seed: every firing goes to one of the two at random; None: both fire, half as strong.
    """
    firings, n = subject.firings, subject.firings.n_latents
    twin = np.full(n, -1)
    twin[latents] = n + np.arange(len(latents))
    doubled = twin[firings.indices] >= 0
    where = subject.places
    if seed is None:
        values = np.where(doubled, firings.values / 2, firings.values)
        where, values = np.concatenate([where, where[doubled]]), np.concatenate([values, values[doubled]])
        indices = np.concatenate([firings.indices, twin[firings.indices[doubled]]])
    else:
        moves = doubled & (np.random.default_rng(seed).random(len(doubled)) < 0.5)
        indices, values = np.where(moves, twin[firings.indices], firings.indices), firings.values
    rows, columns = (np.concatenate([matrix, matrix[latents]]) for matrix in (subject.rows, subject.columns))
    table = table_of(where, indices, values, firings.n_tokens, len(rows))
    return Subject(sae_of(rows, columns, subject.sae.b_dec), as_firings(table, subject.split), subject.split)


def read_by_encoder(subject: Subject) -> Subject:
    """The same firings with the strength that a linear encoder reads: x w_i, other features' interference included."""
    firings = subject.firings
    read = np.einsum("ed,ed->e", subject.split.x.numpy()[subject.places], subject.rows[firings.indices])
    return replace(subject, firings=only(replace(firings, values=read), read > 0))


def sparser_at_equal_fvu(subject: Subject) -> Subject:
    """The strongest firings over all tokens, refitted by least squares; as few as rebuild x no worse than the subject
    does.

    Found by bisection; so FVU is the subject's to within what one more firing changes, and never above it.
    Raises ValueError where even all firings, refitted, do worse.
    """
    goal, cuts = subject.fvu(), np.append(0, np.unique(subject.firings.values))
    if _refitted(subject, 0.0).fvu() > goal:
        raise ValueError(
            "the subject rebuilds x better than a least-squares fit of its firings with positive strengths"
        )
    low, high = 0, len(cuts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _refitted(subject, cuts[middle]).fvu() <= goal else (low, middle)
    return _refitted(subject, cuts[low])


def _refitted(subject: Subject, cut: float) -> Subject:
    """The firings above `cut`, with the strengths that rebuild each token best; those that come out at 0 or below are
    dropped."""
    firings = only(subject.firings, subject.firings.values > cut)
    rows = subject.rows.astype(np.float64)
    gram, read = rows @ rows.T, subject.split.x.double().numpy() @ rows.T
    values, counts = np.empty(len(firings.indices), np.float64), np.diff(firings.indptr)
    for count in np.unique(counts[counts > 0]):
        tokens = np.flatnonzero(counts == count)
        places = firings.indptr[tokens][:, None] + np.arange(count)
        active = firings.indices[places]
        # a trace of ridge, so that twins share their strength
        system = gram[active[:, :, None], active[:, None, :]] + 1e-6 * np.eye(count)
        values[places] = np.linalg.solve(system, read[tokens[:, None], active][:, :, None])[:, :, 0]
    return replace(subject, firings=only(replace(firings, values=values.astype(np.float32)), values > 0))


def _subject(split: PlantedSplit, rows: np.ndarray, activations: np.ndarray) -> Subject:
    """activations: dense [T, n]."""
    where, latent = np.nonzero(activations > FIRES_ABOVE)
    firings = as_firings(table_of(where, latent, activations[where, latent], *activations.shape), split)
    return Subject(sae_of(rows, rows), firings, split)


def _carry(mixing: np.ndarray, events: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """float32 [E, 1]: what a latent's activation takes from each event."""
    column = np.zeros((len(mixing), 1), np.float32)
    column[events, 0] = strength
    return column


def sae_of(rows: np.ndarray, columns: np.ndarray, b_dec: torch.Tensor | None = None) -> SAE:
    """rows, columns: of decoder and encoder, [n, d]; b_dec: [d], zeros where None."""
    sae = SAE(SAEConfig(d_in=rows.shape[1], d_sae=len(rows)))
    sae.W_dec.copy_(torch.from_numpy(np.asarray(rows, np.float32)))
    sae.W_enc.copy_(torch.from_numpy(np.array(columns.T, np.float32)))
    if b_dec is not None:
        sae.b_dec.copy_(b_dec)
    sae.threshold = torch.full([len(rows)], FIRES_ABOVE)
    return sae


def only(firings: Firings, kept: np.ndarray) -> Firings:
    """The firings where `kept`, bool [nnz], is true."""
    indptr = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)[firings.indptr]
    return replace(firings, indptr=indptr, indices=firings.indices[kept], values=firings.values[kept])


def table_of(where: np.ndarray, latents: np.ndarray, values: np.ndarray, n_tokens: int, n_latents: int):
    """csr float32 [T, n] of firings: the token of each, its latent and its strength, in any order."""
    from scipy.sparse import csr_array

    table = csr_array((values.astype(np.float32), (where, latents)), shape=(n_tokens, n_latents))
    table.sort_indices()
    return table
