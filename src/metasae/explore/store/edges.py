"""Relations between latents: neighbours by phi and by cosine, meta-latents, one-to-one matches, and splits."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.explore.store.blobs import pack_edges
from metasae.explore.store.schema import key_of, pair_name
from metasae.measures.rows.seeds import match
from metasae.sae.kernels import fast
from metasae.sae.sae import SAE

NEIGHBOURS = 10
SIBLINGS = 50
TILE = 1024
# A matching of more rows on a side takes minutes and gigabytes. There the nearest row of the other SAE is shown, and
# the pages call it so.
MATCHED_UP_TO = 8192
PHI, COSINE, ENCODER, MATCH, NEAREST, META = "phi", "cosine", "encoder_cosine", "match", "nearest", "meta"
# What is said of all candidates of a pair together; the rest of a `Splits.as_dict()` is the candidates.
SUMMARY = (
    "n_parents", "too_rare", "n_above_0.1", "n_above_0.25", "share_above_0.1", "share_above_0.25", "n_kept",
    "mean_score", "mean_top",
)  # fmt: skip


@dataclass(frozen=True)
class Near:
    """latents int [n, count], -1 for none; values float [n, count], the largest first."""

    latents: np.ndarray
    values: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The value of the nearest, NaN for none: float64 [n]."""
        return np.where(self.latents[:, 0] >= 0, self.values[:, 0], np.nan).astype(np.float64)


@torch.no_grad()
def nearest_rows(rows: Tensor, other: Tensor | None = None, count: int = NEIGHBOURS) -> Near:
    """rows [a, d], other [b, d]: the rows with the largest cosine, of `other` or else of the same matrix.

    Among its own matrix a row is not its own neighbour. A zero row has cosine 0.
    """
    one = nn.functional.normalize(rows.float(), dim=1)
    two = one if other is None else nn.functional.normalize(other.float(), dim=1)
    able = min(count, len(two) - (other is None))
    latents, values = torch.full((len(one), count), -1), torch.full((len(one), count), torch.nan)
    for start in range(0, len(one) if able else 0, TILE):
        cosines = one[start : start + TILE] @ two.t()
        if other is None:
            own = torch.arange(len(cosines))
            cosines[own, start + own] = -torch.inf
        nearest = cosines.topk(able, dim=1)
        values[start : start + TILE, :able] = nearest.values.clamp(-1, 1)
        latents[start : start + TILE, :able] = nearest.indices
    return Near(latents.numpy(), values.numpy())


def encoder_decoder_cosines(sae: SAE) -> np.ndarray:
    """Of each latent's encoder column and decoder row, float64 [n]; NaN where either is zero."""
    columns, rows = sae.W_enc.detach().double().cpu().t(), sae.W_dec.detach().double().cpu()
    lengths = columns.norm(dim=1) * rows.norm(dim=1)
    return torch.where(lengths > 0, (columns * rows).sum(1) / lengths, torch.nan).numpy()


def write_near(store: sqlite3.Connection, sae: int, kind: str, other: int, near: Near) -> None:
    """other: number of the SAE that the neighbours are in."""
    sizes = (near.latents >= 0).sum(1).tolist()
    neighbours = ((i, near.latents[i, :size], near.values[i, :size]) for i, size in enumerate(sizes) if size)
    _write_edges(store, sae, kind, other, neighbours)


def _write_edges(
    store: sqlite3.Connection,
    sae: int,
    kind: str,
    other: int,
    neighbours: Iterable[tuple[int, np.ndarray, np.ndarray]],
) -> None:
    """neighbours: (latent, its neighbours in the other SAE, the value of each)."""
    rows = ((key_of(sae, i), kind, other, pack_edges(latents, values)) for i, latents, values in neighbours)
    store.executemany("INSERT INTO edges VALUES (?, ?, ?, ?)", rows)


@torch.no_grad()
def write_meta(store: sqlite3.Connection, number: int, sae: SAE, meta_sae: SAE) -> np.ndarray:
    """How the meta SAE builds the decoder rows, with BatchTopK over the rows, as the penalty saw it at the end.

    Writes of each latent its meta-latents, and of each meta-latent the latents that it helps to build, the largest
    weight first. Returns the errors ||w - wh||^2 / ||w||^2, float64 [n], NaN for a zero row. number: of the SAE.
    """
    rows = sae.W_dec.detach().to(meta_sae.W_dec)
    normalised, mean, std = meta_sae.normalise(rows)
    kept, _ = fast.select(meta_sae.pre_activations(normalised), meta_sae.config.k * len(rows))
    latents = np.repeat(np.arange(len(rows)), np.diff(kept.offsets.numpy()))
    meta_latents, weights = kept.latents.numpy().astype(np.int64), kept.values.double().numpy()
    _write_edges(store, number, META, number, _strongest(latents, meta_latents, weights))
    packed = ((number, i, pack_edges(*members)) for i, *members in _strongest(meta_latents, latents, weights))
    store.executemany("INSERT INTO meta_latents VALUES (?, ?, ?)", packed)
    rebuilt = fast.decode(kept, meta_sae.W_dec) + meta_sae.b_dec
    rebuilt = rebuilt if mean is None else rebuilt * std + mean
    length = rows.double().square().sum(1)
    return torch.where(length > 0, (rows.double() - rebuilt.double()).square().sum(1) / length, torch.nan).numpy()


def _strongest(
    index: np.ndarray, partner: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(i, its partners, their weights) of every i in `index`: the SIBLINGS largest weights, ties to the lower."""
    order = np.lexsort((partner, -weights, index))
    names, first = np.unique(index[order], return_index=True)
    # not strict: without any entry np.split still gives one empty part
    for i, members in zip(names.tolist(), np.split(order, first[1:]), strict=False):
        yield i, partner[members][:SIBLINGS], weights[members][:SIBLINGS]


def write_matches(
    store: sqlite3.Connection,
    numbers: Sequence[int],
    rows: Sequence[Tensor],
    live: Sequence[np.ndarray],
    near: Sequence[Near] | None = None,
) -> None:
    """Of two SAEs, both ways: the partner in a one-to-one matching of the live latents' decoder rows.

    Above MATCHED_UP_TO rows the nearest row of the other SAE takes the partner's place. numbers, rows, live: of each of
    the two. near: the `nearest_rows` of each among all of the other's, where they are known.
    """
    usable = [np.flatnonzero(on & (w.norm(dim=1) > 0).numpy()) for w, on in zip(rows, live, strict=True)]
    sizes = [len(latents) for latents in usable]
    if min(sizes) == 0:
        return
    if max(sizes) > MATCHED_UP_TO:
        for a, b in ((0, 1), (1, 0)):
            partners, cosines = _nearest_of(rows[a], usable[a], rows[b], usable[b], near[a] if near else None)
            _write_partners(store, NEAREST, numbers[a], usable[a], numbers[b], partners, cosines)
        return
    matching = match(*(w[torch.from_numpy(latents)] for w, latents in zip(rows, usable, strict=True)))
    has = matching.matched
    mine, theirs, cosines = usable[0][has], usable[1][matching.partner[has]], matching.cosine[has]
    _write_partners(store, MATCH, numbers[0], mine, numbers[1], theirs, cosines)
    _write_partners(store, MATCH, numbers[1], theirs, numbers[0], mine, cosines)


def _nearest_of(
    rows: Tensor, mine: np.ndarray, other: Tensor, theirs: np.ndarray, known: Near | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows `mine` the nearest among `theirs`, int64 [m], and its cosine.

    known: the nearest few of all of `other`.
    """
    partner, cosine, missing = np.zeros(len(mine), np.int64), np.zeros(len(mine), np.float32), np.arange(len(mine))
    if known is not None:
        # the first that is among theirs; where none of the few is, the row is compared with all of theirs
        listed, allowed = known.latents[mine], np.append(np.isin(np.arange(len(other)), theirs), False)
        first = allowed[listed].argmax(1)
        partner, cosine = known.latents[mine, first], known.values[mine, first]
        missing = np.flatnonzero(~allowed[partner])
    if len(missing):
        near = nearest_rows(rows[torch.from_numpy(mine[missing])], other[torch.from_numpy(theirs)], 1)
        partner[missing], cosine[missing] = theirs[near.latents[:, 0]], near.values[:, 0]
    return partner, cosine


def _write_partners(
    store: sqlite3.Connection,
    kind: str,
    sae: int,
    latents: np.ndarray,
    other: int,
    partners: np.ndarray,
    values: np.ndarray,
) -> None:
    """One partner of each latent."""
    _write_edges(store, sae, kind, other, zip(latents.tolist(), partners[:, None], values[:, None], strict=True))


def write_splits(
    store: sqlite3.Connection, kind: str, names: tuple[str, str], saes: tuple[int, int], splits: Mapping
) -> None:
    """Every parent that has a split, with its children. names, saes: parent and child.

    splits: as `Splits.as_dict` has them, with every candidate; those of across.json are the best candidates alone.
    """
    pair = pair_name(*names)
    summary = {key: splits.get(key) for key in SUMMARY}
    store.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?)", (pair, kind, *saes, json.dumps(summary)))
    rows, members = [], []
    for split in splits["ranked"]:
        name, parent = f"{names[0]}.{split['parent']}.{names[1]}", key_of(saes[0], split["parent"])
        columns = zip(split["children"], split["phi"], split["shares"], split["already"], strict=True)
        keys = ("latent", "phi", "share", "already")
        children = json.dumps([dict(zip(keys, child, strict=True)) for child in columns])
        scores = (split[key] for key in ("score", "coverage", "overlap", "firings"))
        rows.append((name, pair, parent, *scores, children, json.dumps(split["lives_on"]), split["kept"]))
        members += [(key, name) for key in (parent, *(key_of(saes[1], child) for child in split["children"]))]
    store.executemany("INSERT INTO splits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    store.executemany("INSERT OR IGNORE INTO split_members VALUES (?, ?)", members)
