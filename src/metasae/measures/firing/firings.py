"""Which latents fire on which tokens, and how strongly. Every measure of firing starts from this.

`fire` holds the firings in memory; `metasae.measures.firing.store` writes the same to disk, for texts whose firings do
not fit.

Text is resampled over blocks of documents (`document_blocks`), as tokens of one document are not independent.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csr_array

from metasae.data.split import Split, own_part
from metasae.measures.firing.selection import Screen
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.ranks.ranks import ALONE, Ranks
from metasae.sae.sae import SAE

BLOCKS = 8
# Tokens first to last - 1, as (first, last).
Span = tuple[int, int]


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where each stretch of equal values begins, int64. values: [T]."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changes)


def document_blocks(documents: np.ndarray, count: int = BLOCKS) -> np.ndarray:
    """The block of documents of each token: int8 [T], rising. documents: int [T], each document's tokens in one
    stretch.

    Blocks are consecutive documents with about the same number of tokens; a document is never cut. With fewer documents
    than `count`, at most 127, there are fewer blocks, numbered without gaps.
    """
    starts = run_starts(documents)
    sizes = np.diff(np.append(starts, len(documents)))
    # a document belongs to the block in which its middle token falls
    wanted = ((starts + sizes / 2) * count / max(len(documents), 1)).astype(np.int64)
    _, block = np.unique(wanted, return_inverse=True)
    return np.repeat(block, sizes).astype(np.int8)


def block_spans(blocks: np.ndarray) -> list[Span]:
    """The tokens of each block. blocks: int [T], rising, as `document_blocks` gives them."""
    starts = run_starts(blocks).tolist()
    return list(zip(starts, [*starts[1:], len(blocks)], strict=False))


def chunks(indptr: np.ndarray, span: Span, size: int) -> Iterator[Span]:
    """Stretches of the rows in `span` with at most `size` entries each, but at least one row.

    indptr: [rows + 1], of a CSR matrix.
    """
    first, end = span
    while first < end:
        full = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(full, first + 1), end)
        yield first, last
        first = last


# Entries looked at in one go, so that nothing is held in memory twice where the arrays are memory-maps.
_CHUNK = 1 << 22
# Where each token stands.
PLACES = ("documents", "tokens", "positions")


@dataclass(frozen=True)
class Firings:
    """The non-zero latent activations of T tokens, in compressed rows: token t has entries indptr[t] to indptr[t + 1].

    indptr: int64 [T + 1]. indices: int32 [nnz], latents, rising within a token. values: float32 [nnz], above 0.
    documents, tokens, positions: int32 [T], where each token stands and its id in the vocabulary. left_out: int64,
    those of the T tokens that stand in the text but do not count (`metasae.data.cache.loud`); they have no entries. The
    arrays may be read-only memory-maps.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    n_latents: int
    documents: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def counted(self) -> "Firings":
        """The firings on the tokens that count, on which statistics are taken; the object itself where all count."""
        if not len(self.left_out):
            return self
        keep = np.ones(self.n_tokens, bool)
        keep[self.left_out] = False
        places = {name: np.asarray(getattr(self, name))[keep] for name in PLACES}
        # what is left out has no entries
        indptr = np.append(self.indptr[:-1][keep], self.indptr[-1])
        return Firings(indptr, self.indices, self.values, self.n_latents, **places)

    @property
    def n_tokens(self) -> int:
        return len(self.indptr) - 1

    @property
    def l0(self) -> float:
        """Mean number of active latents per token."""
        return len(self.indices) / self.n_tokens if self.n_tokens else 0.0

    def counts(self) -> np.ndarray:
        """How many tokens each latent fires on: int64 [n]."""
        total = np.zeros(self.n_latents, np.int64)
        for start in range(0, len(self.indices), _CHUNK):
            total += np.bincount(self.indices[start : start + _CHUNK], minlength=self.n_latents)
        return total

    @property
    def csr(self) -> csr_array:
        """The activations [T, n]; shares memory with this object."""
        return csr_array((self.values, self.indices, self.indptr), shape=(self.n_tokens, self.n_latents))


def fire(sae: SAE, split: Split, batch: int = 2048, progress: Progress = SILENT, ranks: Ranks = ALONE) -> Firings:
    """Runs the SAE at its calibrated threshold over all tokens of `split`, in order.

    The rule holds for fp32 pre-activations; see `selection.py`. Memory: 8 bytes per firing, and one dense [batch, n]
    block. ranks: share the tokens; each then holds all firings in memory, equal to the bit. Raises ValueError when the
    SAE has no threshold.
    """
    own = _gathered(fired_pieces(sae, own_part(split, batch, ranks), batch, progress), sae.n_latents)
    return own if ranks.size == 1 else _gathered(joined(ranks.objects(own)), sae.n_latents)


@torch.no_grad()
def fired_pieces(sae: SAE, split: Split, batch: int, progress: Progress) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of `Firings`, a piece at a time: each piece is appended to the earlier ones of its name.

    Raises ValueError when the SAE has no threshold.
    """
    if sae.threshold is None:
        raise ValueError("this SAE has no threshold yet: calibrate it first (metasae.measures.firing.calibrate)")
    yield {name: np.asarray(getattr(split, name)) for name in PLACES}
    yield {"indptr": np.zeros(1, np.int64), "indices": np.zeros(0, np.int32), "values": np.zeros(0, np.float32)}
    screen, fired = Screen(sae, sae.threshold), 0
    for block in tracked(progress, split.blocks(batch), "finding which latents fire", split.n_tokens):
        kept = screen.above(sae.normalise(block.to(sae.W_dec.device, torch.float32))[0])
        offsets = kept.offsets.cpu().numpy().astype(np.int64)
        latents, values = kept.latents.cpu().numpy(), kept.values.cpu().numpy()
        yield {"indptr": offsets[1:] + fired, "indices": latents, "values": values}
        fired += len(latents)


def joined(parts: Sequence[Firings]) -> Iterator[dict[str, np.ndarray]]:
    """Joins the firings on consecutive stretches of a text into those of the whole text."""
    yield {"indptr": np.zeros(1, np.int64)}
    before = 0
    for part in parts:
        yield {name: getattr(part, name) for name in ("indices", "values", *PLACES)}
        yield {"indptr": np.asarray(part.indptr[1:]) + before}
        before += len(part.indices)


def _gathered(pieces: Iterable[dict[str, np.ndarray]], n_latents: int) -> Firings:
    arrays: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        for name, values in piece.items():
            arrays.setdefault(name, []).append(values)
    whole = {name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in arrays.items()}
    return Firings(n_latents=n_latents, **whole)
