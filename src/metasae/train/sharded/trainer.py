"""The trainer of an arm whose primary SAE is spread over ranks, latent by latent.

A rank holds the encoder columns, decoder rows, Adam's moments, thresholds and counters of its own latents. b_dec and
the meta SAE are the same on every rank. The latents of the primary are the rows of the meta SAE's batch, so a rank
takes the meta step on the rows that it holds, and the paper's penalty needs no row of another rank. Every reported
number is that of the whole SAE.
"""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.ranks.ranks import Ranks, own_latents, spans_of
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARCHITECTURES, named
from metasae.sae.gradients import Arithmetic
from metasae.sae.sae import SAE
from metasae.sae.weights import Weights
from metasae.train.learner import Learner
from metasae.train.sharded.step import LatentKernels, LatentsSpread, RowKernels, RowsSpread
from metasae.train.trainer import Trainer

# The tensors of the primary that every rank has whole.
REPLICATED = ("b_dec_D",)


class ShardedTrainer(Trainer):
    """`Trainer` on one of several ranks. Raises UserError for a meta SAE that several ranks cannot share."""

    def __init__(
        self,
        recipe: Recipe,
        arm: str,
        seed: int,
        b_dec_D: Tensor,
        device: str,
        ranks: Ranks,
        start: Weights | None = None,
    ):
        self.ranks = ranks
        self.spans = spans_of(recipe.sae.n, ranks)
        self.own = own_latents(recipe.sae.n, ranks.size, ranks.rank)
        self.own_share, self.leads = len(self.own) / recipe.sae.n, ranks.first
        super().__init__(recipe, arm, seed, b_dec_D, ranks.device(device), start)
        ranks.same(str(self.how.dtype).removeprefix("torch."), "what they multiply in", "set train.dtype in the recipe")
        self.primary.architecture.spread = self.how.spread
        if self.meta:
            refuse_meta(recipe.meta.architecture)

    def agree(self, asked: bool) -> bool:
        return self.ranks.any(asked)

    def export(self, scale: float, metadata: dict) -> dict[str, SAE]:
        """As `Trainer.export` on the first rank, to which the others send their latents; {} on the others."""
        spread = self.primary
        weights = gathered(spread, self.spans, self.ranks)
        running = {
            name: self.ranks.gather_rows_to_first(getattr(spread, name), self.spans) for name in ("rate_N", "total_N")
        }
        if weights is None:
            return {}
        self.primary = replace(spread, weights=weights, **running)
        try:
            return super().export(scale, metadata)
        finally:
            self.primary = spread

    def _arithmetic(self, module: ModuleType, dtype: torch.dtype) -> tuple[Arithmetic, Arithmetic]:
        ranks, n = self.ranks, self.recipe.sae.n
        primary = Arithmetic(LatentKernels(module, ranks, n), dtype, LatentsSpread(ranks, n))
        return primary, Arithmetic(RowKernels(module, ranks, n), dtype, RowsSpread(ranks, n))

    def _norm(self, gradients: Weights) -> Tensor:
        squares = {
            name: torch.linalg.vector_norm(gradient).double().square() for name, gradient in gradients.tensors().items()
        }
        shared = sum(squares.pop(name) for name in REPLICATED)
        return (self.ranks.sum_(sum(squares.values()).reshape(1))[0] + shared).sqrt().float()


def refuse_meta(name: str) -> None:
    """Raises UserError for the architecture of a meta SAE whose rows cannot be shared by ranks."""
    if not named(ARCHITECTURES, name).rows_over_ranks:
        raise UserError(f"meta.architecture = '{name}' is not supported on several ranks; take batchtopk or topk")


def gathered(learner: Learner, spans: list[range], ranks: Ranks) -> Weights | None:
    """All latents' weights on the first rank, None on the others."""
    whole = {
        name: tensor if name in REPLICATED else ranks.gather_rows_to_first(tensor, spans)
        for name, tensor in learner.weights.tensors().items()
    }
    return Weights(**whole) if ranks.first else None


def trainer_of(
    recipe: Recipe, arm: str, seed: int, b_dec_D: Tensor, device: str, ranks: Ranks, start: Weights | None = None
) -> Trainer:
    """The trainer of an arm on these ranks; with one rank the ordinary one. Arguments as of `Trainer`."""
    if ranks.size == 1:
        return Trainer(recipe, arm, seed, b_dec_D, device, start)
    return ShardedTrainer(recipe, arm, seed, b_dec_D, device, ranks, start)
