"""Spike-ins for any trainer: they are added to its activations while it trains, and then looked for in its SAE.

A run of metasae uses the same class (`metasae.arms.source`): it draws one set for each seed, keeps it in a file, and
looks for it in every SAE of that seed.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy.sparse import csr_array, vstack
from torch import Tensor

from metasae import files
from metasae.data.spikes.draw import RATES, Spike, draw_directions, draw_spikes
from metasae.data.spikes.spiked import SpikedSplit
from metasae.data.spikes.spikes import SpikeSet
from metasae.data.split import Rows, Split
from metasae.errors import UserError
from metasae.measures.truth.probe import directions
from metasae.measures.truth.spike_scores import ones
from metasae.measures.truth.spike_truth import SpikeTruth
from metasae.ranks.lanes import on_one_core
from metasae.sae.sae import SAE

# The most rows of training activations that a draw looks at, and the most numbers in them.
SAMPLE_ROWS, SAMPLE_NUMBERS = 100_000, 1 << 27
# The most of these rows from which the covariance is computed.
COVARIANCE_ROWS = 20_000
BATCH = 2048


class Spikes:
    """Known features (spike-ins) that are added to activations x [T, d] of text, so that one can count how many an SAE
    finds.

    x: float [S, d], a sample of the activations: amplitudes are shares of its median norm, and its covariance decides
    where directions lie. tokens: int [S] or more, the token ids of training text, whose frequencies decide the rates.
    n: the least number of spike-ins; 5 to 10% of an SAE's latents is a good number. amplitudes: the least and the most,
    in median norms. rates: the least and the most share of tokens on which one is on. like: an SAE of these activations
    that replaces `amplitudes`: they then span the strengths of the middle eight tenths of its live latents. Raises
    UserError for a sample that is not a finite matrix, and for text with too few token types.
    """

    def __init__(
        self,
        x: Tensor,
        tokens: np.ndarray | Tensor,
        n: int = 148,
        seed: int = 0,
        amplitudes: tuple[float, float] = (0.15, 0.37),
        rates: tuple[float, float] = RATES,
        like: SAE | None = None,
    ):
        x = _matrix(x)
        norm = float(x.norm(dim=1).median())
        ends = tuple(share * norm for share in amplitudes) if like is None else _strengths(like, x)
        spikes = draw_spikes(n, np.bincount(_ints(tokens)), seed, ends, rates)
        # one core adds up in one order, so the draw is the same however many processes train
        with on_one_core():
            some = x[:: -(-len(x) // COVARIANCE_ROWS)].double()
            covariance = torch.cov(some.t()).numpy() if len(some) > 1 else None
            rows = draw_directions(spikes, x.shape[1], seed, covariance)
        self.set = SpikeSet(spikes, rows, seed)
        # of `fit`: detectors [d, m], and what spike-ins add to the mean of x and of ||x||^2
        self._probes: Tensor | None = None
        self._added: tuple[Tensor, float] | None = None

    @classmethod
    def of_split(cls, split: Split, n: int, seed: int, amplitudes, rates, like: SAE | None = None) -> "Spikes":
        """Spike-ins drawn from a training split, with probes fitted on it."""
        count = min(split.n_tokens, SAMPLE_ROWS, max(1, SAMPLE_NUMBERS // split.d))
        places = np.linspace(0, split.n_tokens - 1, count).astype(np.int64)
        x = split.rows(places).float()
        spikes = cls(x, split.tokens, n, seed, amplitudes, rates, like)
        spikes.fit(x, *(np.asarray(column)[places] for column in (split.tokens, split.documents, split.positions)))
        return spikes

    def __len__(self) -> int:
        return len(self.set)

    def add(self, x: Tensor, tokens, documents, positions) -> Tensor:
        """Returns x [T, d] with the spike-ins of its tokens added, for training; x itself is not changed. tokens,
        documents, positions: int [T].
        """
        self._check(x, tokens, documents, positions)
        return self.set.add(x, *map(_ints, (tokens, documents, positions)))

    def fit(self, x: Tensor, tokens, documents, positions) -> None:
        """Fits linear probes on training tokens, whose F1 is the ceiling of `score`; arguments as of `add`."""
        self._check(x, tokens, documents, positions)
        spiked = SpikedSplit(Rows(_matrix(x), tuple(map(_ints, (tokens, documents, positions)))), self.set)
        strengths = spiked.strengths()
        _, probes = directions(spiked.rows(np.arange(spiked.n_tokens)).numpy(), ones(strengths))
        self._probes = torch.from_numpy(probes).float()
        where = np.flatnonzero(np.diff(strengths.indptr))
        added = (strengths[where] @ self.set.directions).astype(np.float64)
        before = spiked.split.x[where].double().numpy()
        # ||x + a||^2 - ||x||^2 = a (2 x + a)
        square = float((added * (2 * before + added)).sum()) / spiked.n_tokens
        self._added = torch.from_numpy(added.sum(0) / spiked.n_tokens), square

    def spiked(self, split: Split) -> SpikedSplit:
        """A split with these spike-ins in its activations."""
        return SpikedSplit(split, self.set, self._added)

    @property
    def added_square(self) -> float:
        """What the spike-ins add to the mean of ||x||^2, on the tokens that `fit` saw."""
        return self._added[1]

    def truth_on(self, split: Split) -> SpikeTruth:
        """The spike-ins in held-out tokens, which an SAE may find."""
        return SpikeTruth.of(self.spiked(split), self._probes)

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
        """Counts which spike-ins an SAE that was trained on `add(x, ...)` finds in held-out tokens; returns the scores
        (docs/spikes.md).

        encode: [B, d] -> activations [B, n], above 0 where a latent fires. x, tokens, documents, positions: held-out
        tokens without spike-ins, of several documents. rows: decoder rows [n, d], for the cosine.
        train: (x, tokens, documents, positions) of training tokens, for the ceiling; None leaves it out, unless `fit`
        was called.
        """
        self._check(x, tokens, documents, positions)
        if train is not None:
            self.fit(*train)
        truth = self.truth_on(Rows(_matrix(x), tuple(map(_ints, (tokens, documents, positions)))))
        fires = vstack(list(_fired(encode, truth.split)), format="csr")
        return truth.scores(fires, None if rows is None else _matrix(rows).numpy())

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file: directions, probes, and the spike-ins as JSON in its header."""
        tensors = {"directions": torch.from_numpy(self.set.directions)}
        if self._probes is not None:
            tensors |= {"probes": self._probes, "added_mean": self._added[0]}
            tensors["added_square"] = torch.tensor(self._added[1], dtype=torch.float64)
        listed = {"seed": self.set.seed, "spikes": [asdict(spike) for spike in self.set.spikes]}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_tensors(Path(path), tensors, {"draw": json.dumps(listed)})

    @classmethod
    def load(cls, path: str | Path) -> "Spikes":
        """Reads what `save` wrote. Raises UserError for a file that is missing or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            draw = json.loads(header["draw"])
            listed = [Spike(**_as_drawn(entry)) for entry in draw["spikes"]]
            spikes = cls.__new__(cls)
            spikes.set = SpikeSet(listed, tensors["directions"].numpy(), draw["seed"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds no spike-ins ({error}); restore it, or train the run's arms anew") from None
        spikes._probes = tensors.get("probes")
        spikes._added = (tensors["added_mean"], float(tensors["added_square"])) if "added_mean" in tensors else None
        return spikes

    def _check(self, x: Tensor, *columns) -> None:
        lengths = {len(column) for column in columns}
        if lengths != {len(x)} or x.ndim != 2 or x.shape[1] != self.set.directions.shape[1]:
            wanted = self.set.directions.shape[1]
            raise UserError(
                f"spike-ins take x [T, {wanted}] with T tokens, documents and positions, not "
                f"x of shape {list(x.shape)} and {sorted(lengths)} of these"
            )


def _as_drawn(entry: dict) -> dict:
    """Turns lists back into tuples, which JSON does not have."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@torch.no_grad()
def _strengths(sae: SAE, x: Tensor) -> tuple[float, float]:
    """The strengths between which the middle eight tenths of the live latents lie, in the units of x. A latent's
    strength is its mean activation where it fires.
    """
    acts_SN = torch.cat([sae.encode(block) for block in x.split(BATCH)])
    fires = (acts_SN > 0).sum(0)
    live = fires > 0
    if sae.config.normalize != "none" or not live.any():
        raise UserError(
            "spike-ins can take their strength only from an SAE that fires on these activations and does not normalise"
        )
    strengths = acts_SN.sum(0)[live] / fires[live] * sae.W_dec.norm(dim=1)[live]
    return tuple(strengths.quantile(torch.tensor([0.1, 0.9])).tolist())


@torch.no_grad()
def _fired(encode: Callable[[Tensor], Any], split: Split) -> Iterator[csr_array]:
    for block in split.blocks(BATCH):
        codes = encode(block)
        yield csr_array((getattr(codes, "acts", codes) > 0).cpu().numpy())


def _matrix(x: Tensor) -> Tensor:
    x = torch.as_tensor(x).detach().float().cpu()
    if x.ndim != 2 or not len(x) or not torch.isfinite(x.sum()):
        raise UserError(f"activations are a finite matrix [T, d] with at least one row, not of shape {list(x.shape)}")
    return x


def _ints(column) -> np.ndarray:
    return torch.as_tensor(column).cpu().numpy().astype(np.int64)
