"""Which latents are near a latent: by phi, by decoder cosine, by encoder cosine, by the meta SAE's latents, and matched one to one."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.explore.store import edge_blobs
from metasae.explore.store.schema import key_of
from metasae.measures.cofiring.partners import mutual_partners, top_partners
from metasae.measures.firing.firings import Firings
from metasae.measures.rows.seeds import match
from metasae.progress.progress import SILENT, Progress
from metasae.sae.kernels import fast
from metasae.sae.sae import SAE

NEIGHBOURS = 10
SIBLINGS = 50
TILE = 1024
# A matching of more rows on a side takes minutes and gigabytes; there the nearest row of the other SAE is shown and called so.
MATCHED_UP_TO = 8192
PHI, COSINE, ENCODER, MATCH, NEAREST, META = "phi", "cosine", "encoder_cosine", "match", "nearest", "meta"


@dataclass(frozen=True)
class Near:
    """latents int [n, count], -1 for none; values float [n, count], the largest first."""

    latents: np.ndarray
    values: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The value of the nearest, NaN for none: float64 [n]."""
        if not self.latents.shape[1]:
            return np.full(len(self.latents), np.nan)
        return np.where(self.latents[:, 0] >= 0, self.values[:, 0], np.nan).astype(np.float64)


@torch.no_grad()
def nearest_rows(rows: Tensor, other: Tensor | None = None, count: int = NEIGHBOURS) -> Near:
    """rows [a, d], other [b, d]: the rows with the largest cosine, of `other` or of the same matrix but for itself. A zero row has cosine 0."""
    one, two = (
        nn.functional.normalize(rows.float(), dim=1),
        nn.functional.normalize((rows if other is None else other).float(), dim=1),
    )
    able = min(count, len(two) - (other is None))
    latents, values = torch.full((len(one), count), -1), torch.full((len(one), count), torch.nan)
    for start in range(0, len(one) if able else 0, TILE):
        cosines = one[start : start + TILE] @ two.t()
        if other is None:
            own = torch.arange(len(cosines))
            cosines[own, start + own] = -torch.inf
        found = cosines.topk(able, dim=1)
        values[start : start + TILE, :able], latents[start : start + TILE, :able] = (
            found.values.clamp(-1, 1),
            found.indices,
        )
    return Near(latents.numpy(), values.numpy())


def nearest_phi(firings: Firings, progress: Progress = SILENT) -> Near:
    """Each latent's closest partners by phi in its own SAE."""
    partners = top_partners(firings, NEIGHBOURS, progress=progress)
    return Near(partners.latents, partners.phi)


def mutual_phi(one: Firings, other: Firings, progress: Progress = SILENT) -> tuple[Near, Near]:
    """Each latent's closest partners by phi in the other SAE, both ways."""
    return tuple(Near(partners.latents, partners.phi) for partners in mutual_partners(one, other, NEIGHBOURS, progress))


def encoder_decoder_cosines(sae: SAE) -> np.ndarray:
    """Of each latent's encoder column and decoder row, float64 [n]; NaN where either is zero."""
    columns, rows = sae.W_enc.detach().double().cpu().t(), sae.W_dec.detach().double().cpu()
    lengths = columns.norm(dim=1) * rows.norm(dim=1)
    return torch.where(lengths > 0, (columns * rows).sum(1) / lengths, torch.nan).numpy()


@dataclass(frozen=True)
class Rebuilt:
    """How a meta SAE builds the decoder rows. errors: float64 [n], ||w - wh||^2 / ||w||^2, NaN for a zero row.

    latents, meta_latents int64 [k], weights float64 [k]: the meta-latents that are on for each latent, latents rising.
    """

    errors: np.ndarray
    latents: np.ndarray
    meta_latents: np.ndarray
    weights: np.ndarray
    n_meta: int


@torch.no_grad()
def rebuild_rows(sae: SAE, meta_sae: SAE) -> Rebuilt:
    """By the run's own meta SAE with BatchTopK over the rows, as the penalty saw it at the end."""
    rows = sae.W_dec.detach().to(meta_sae.W_dec)
    normalised, mean, std = meta_sae.normalise(rows)
    kept, _ = fast.select(meta_sae.pre_activations(normalised), meta_sae.config.k * len(rows))
    rebuilt = fast.decode(kept, meta_sae.W_dec) + meta_sae.b_dec
    rebuilt = rebuilt if mean is None else rebuilt * std + mean
    length = rows.double().square().sum(1)
    errors = torch.where(length > 0, (rows.double() - rebuilt.double()).square().sum(1) / length, torch.nan)
    latents = np.repeat(np.arange(len(rows)), np.diff(kept.offsets.numpy()))
    return Rebuilt(
        errors.numpy(), latents, kept.latents.numpy().astype(np.int64), kept.values.double().numpy(), meta_sae.n_latents
    )


def write_near(store: sqlite3.Connection, sae: int, kind: str, other: int, near: Near) -> None:
    """other: number of the SAE that the neighbours are in."""
    sizes = (near.latents >= 0).sum(1).tolist()
    packed = (
        (key_of(sae, i), kind, other, edge_blobs.pack(near.latents[i, :size], near.values[i, :size]))
        for i, size in enumerate(sizes)
        if size
    )
    store.executemany("INSERT INTO edges VALUES (?, ?, ?, ?)", packed)


def write_meta(store: sqlite3.Connection, sae: int, rebuilt: Rebuilt) -> None:
    """Of each latent its meta-latents, and of each meta-latent the latents that it helps to build, the largest weight first."""
    for index, table in ((rebuilt.latents, "edges"), (rebuilt.meta_latents, "meta_latents")):
        partner = rebuilt.meta_latents if table == "edges" else rebuilt.latents
        for i, members in _groups(index, partner, rebuilt.weights):
            packed = edge_blobs.pack(partner[members][:SIBLINGS], rebuilt.weights[members][:SIBLINGS])
            row = (key_of(sae, i), META, sae, packed) if table == "edges" else (sae, i, packed)
            store.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _groups(index: np.ndarray, partner: np.ndarray, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(i, the entries with index i, the largest weight first, ties to the lower partner)."""
    order = np.lexsort((partner, -weights, index))
    names, first = np.unique(index[order], return_index=True)
    yield from zip(names.tolist(), np.split(order, first[1:]), strict=True)


def write_matches(
    store: sqlite3.Connection,
    sides: tuple[int, int],
    rows: tuple[Tensor, Tensor],
    live: tuple[np.ndarray, np.ndarray],
    near: tuple[Near, Near] | None = None,
) -> None:
    """Both ways: the partner in a one-to-one matching of the live latents' decoder rows, or above MATCHED_UP_TO rows the nearest row.

    near: the `nearest_rows` of each side among all of the other's, where they are known.
    """
    (one, two), (a, b) = sides, (_usable(*each) for each in zip(rows, live, strict=True))
    if not len(a) or not len(b):
        return
    if max(len(a), len(b)) > MATCHED_UP_TO:
        for (sae, mine, w), (other, theirs, v), known in zip(
            ((one, a, rows[0]), (two, b, rows[1])),
            ((two, b, rows[1]), (one, a, rows[0])),
            near or (None, None),
            strict=True,
        ):
            _write_partners(store, NEAREST, sae, mine, other, *_nearest_of(w, mine, v, theirs, known))
        return
    found = match(rows[0][torch.from_numpy(a)], rows[1][torch.from_numpy(b)])
    has = found.matched
    mine, theirs, cosine = a[has], b[found.partner[has]], found.cosine[has]
    _write_partners(store, MATCH, one, mine, two, theirs, cosine)
    _write_partners(store, MATCH, two, theirs, one, mine, cosine)


def _nearest_of(
    rows: Tensor, mine: np.ndarray, other: Tensor, theirs: np.ndarray, known: Near | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows `mine` the nearest among `theirs`, int64 [m], and its cosine. known: the nearest few among all rows of `other`."""
    partner, cosine, missing = np.zeros(len(mine), np.int64), np.zeros(len(mine), np.float32), np.arange(len(mine))
    if known is not None:
        # the first that is among theirs; where none of the few is, the row is compared with all of theirs
        listed, allowed = known.latents[mine], np.append(np.isin(np.arange(len(other)), theirs), False)
        first = allowed[listed].argmax(1)
        partner, cosine = (each[mine, first].copy() for each in (known.latents, known.values))
        missing = np.flatnonzero(~allowed[partner])
    if len(missing):
        near = nearest_rows(rows[torch.from_numpy(mine[missing])], other[torch.from_numpy(theirs)], 1)
        partner[missing], cosine[missing] = theirs[near.latents[:, 0]], near.values[:, 0]
    return partner, cosine


def _usable(rows: Tensor, live: np.ndarray) -> np.ndarray:
    return np.flatnonzero(live & (rows.norm(dim=1) > 0).numpy())


def _write_partners(
    store: sqlite3.Connection,
    kind: str,
    sae: int,
    latents: np.ndarray,
    other: int,
    partners: np.ndarray,
    values: np.ndarray,
) -> None:
    columns = zip(latents.tolist(), partners, values, strict=True)
    packed = (
        (key_of(sae, i), kind, other, edge_blobs.pack(np.array([j]), np.array([value]))) for i, j, value in columns
    )
    store.executemany("INSERT INTO edges VALUES (?, ?, ?, ?)", packed)
