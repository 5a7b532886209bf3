"""Spike-ins for any trainer: added to its activations while it trains, and looked for by its SAE afterwards."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from metasae.data.spikes.draw import RATES, draw_directions, draw_spikes
from metasae.data.spikes.spikes import SpikeSet
from metasae.errors import UserError
from metasae.measures.truth.probe import probe_f1
from metasae.measures.truth.spike_scores import by_kind, ones, score_spikes

# Rows of training activations that the probe of the ceiling takes at most.
PROBE_ROWS = 100_000
BATCH = 2048


class Spikes:
    """Known features for activations x [T, d] of text, drawn from a sample of it.

    x: float [S, d], a sample of the activations: amplitudes are shares of its median norm, and its covariance decides
    where directions lie. tokens: int [S] or more, the token ids of training text, whose frequencies decide the rates.
    n: spike-ins, at least; 5 to 10% of an SAE's latents is a good number. amplitudes, rates: least and most.
    Raises UserError for a sample that is no finite matrix, and for text with too few token types.
    """

    def __init__(
        self,
        x: Tensor,
        tokens: np.ndarray | Tensor,
        n: int = 148,
        seed: int = 0,
        amplitudes: tuple[float, float] = (0.15, 0.37),
        rates: tuple[float, float] = RATES,
    ):
        x = _matrix(x).double()
        norm = float(x.norm(dim=1).median())
        spikes = draw_spikes(n, np.bincount(_ints(tokens)), seed, tuple(share * norm for share in amplitudes), rates)
        covariance = torch.cov(x.t()).numpy() if len(x) > 1 else None
        self.set = SpikeSet(spikes, draw_directions(spikes, x.shape[1], seed, covariance), seed)

    def __len__(self) -> int:
        return len(self.set)

    def add(self, x: Tensor, tokens, documents, positions) -> Tensor:
        """x [T, d] with the spike-ins of its tokens, for training and for `score`; the columns are int [T]."""
        self._check(x, tokens, documents, positions)
        return self.set.add(x, *map(_ints, (tokens, documents, positions)))

    def score(
        self,
        encode: Callable[[Tensor], Any],
        x: Tensor,
        tokens,
        documents,
        positions,
        rows: Tensor | None = None,
        train: tuple[Tensor, Any, Any, Any] | None = None,
    ) -> dict:
        """What an SAE that was trained on `add(x, ...)` finds in held-out tokens.

        encode: [B, d] -> activations [B, n], above 0 where a latent fires. x, tokens, documents, positions: held-out
        tokens without spike-ins, of several documents. rows: decoder rows [n, d], for the cosine.
        train: (x, tokens, documents, positions) of training tokens, for the ceiling; None leaves it out.
        """
        self._check(x, tokens, documents, positions)
        columns = tuple(map(_ints, (tokens, documents, positions)))
        strengths = self.set.strengths(*columns)
        spiked = self.set.add(_matrix(x), *columns)
        fires = vstack(list(_fired(encode, spiked)), format="csr")
        unit = None if rows is None else torch.nn.functional.normalize(_matrix(rows), dim=1).numpy()
        scores = score_spikes(self.set.spikes, strengths, fires, columns[1], self.set.directions, unit)
        scores["added_energy"] = self._added_energy(_matrix(x), strengths)
        scores["ceiling_f1"] = None
        if train is not None:
            ceiling = self._ceiling(spiked, strengths, columns[1], train)
            scores["ceiling_f1"] = float(np.nanmean(ceiling)) if np.isfinite(ceiling).any() else None
            ceilings = by_kind(self.set.spikes, ceiling)
        kinds = scores["by_kind"]
        scores["by_kind"] = {
            kind: {"recovery_f1": kinds[kind], "ceiling_f1": None if train is None else ceilings[kind]}
            for kind in kinds
        }
        return scores

    def _ceiling(self, spiked: Tensor, strengths: csr_array, documents: np.ndarray, train: tuple) -> np.ndarray:
        x, *columns = train
        chosen = slice(0, PROBE_ROWS)
        own = [_ints(column)[chosen] for column in columns]
        trained = self.set.add(_matrix(x)[chosen], *own)
        fitted_on = trained.numpy(), ones(self.set.strengths(*own))
        return probe_f1(spiked.numpy(), ones(strengths), documents, fitted_on)

    def _added_energy(self, x: Tensor, strengths: csr_array) -> float:
        """E ||sum_j s_j g_j||^2 over the variance of x."""
        added = torch.from_numpy(strengths @ self.set.directions)
        return float(added.square().sum() / (x - x.mean(0)).square().sum())

    def _check(self, x: Tensor, *columns) -> None:
        lengths = {len(column) for column in columns}
        if lengths != {len(x)} or x.ndim != 2 or x.shape[1] != self.set.directions.shape[1]:
            wanted = self.set.directions.shape[1]
            raise UserError(
                f"spike-ins take x [T, {wanted}] with T tokens, documents and positions, not "
                f"x of shape {list(x.shape)} and {sorted(lengths)} of these"
            )


@torch.no_grad()
def _fired(encode: Callable[[Tensor], Any], x: Tensor) -> Iterator[csr_array]:
    for block in x.split(BATCH):
        codes = encode(block)
        yield csr_array((getattr(codes, "acts", codes) > 0).cpu().numpy())


def _matrix(x: Tensor) -> Tensor:
    x = torch.as_tensor(x).detach().float().cpu()
    if x.ndim != 2 or not len(x) or not torch.isfinite(x.sum()):
        raise UserError(f"activations are a finite matrix [T, d] with at least one row, not of shape {list(x.shape)}")
    return x


def _ints(column) -> np.ndarray:
    return torch.as_tensor(column).cpu().numpy().astype(np.int64)
