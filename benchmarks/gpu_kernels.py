"""Each Triton kernel in bf16 beside its floor, and beside what it stands in for."""

from collections.abc import Callable, Iterator

import torch
from gpu_clock import milliseconds
from gpu_engines import DEAD, trainer_for
from gpu_table import Row
from step import Shape

from metasae.doctor.cards import Card
from metasae.sae.kernels import fast, kernels
from metasae.sae.optimiser import UnitRowAdam

# name, call, milliseconds at least
Part = tuple[str, Callable[[], object], float]


def kernel_rows(shape: Shape, device: torch.device, batches: list[torch.Tensor], card: Card) -> Iterator[Row]:
    """The kernels at one shape, and what they stand in for, each timed when it is asked for."""
    work = _Work(shape, device, batches[0], card)
    yield from work.tiles()
    for name, call, least in [*work.forward(), *work.backward()]:
        yield Row(name, milliseconds(call), least)


class _Work:
    """What the kernels are called with: a trainer's weights, one batch, and what the kernels before them give."""

    def __init__(self, shape: Shape, device: torch.device, x: torch.Tensor, card: Card):
        triton, self.trainer = kernels("triton"), trainer_for(shape, "bf16", "triton", device)
        self.triton, self.shape, self.x, self.card, self.dtype = triton, shape, x, card, torch.bfloat16
        self.weights, self.meta = self.trainer.primary.weights, self.trainer.meta.weights
        self.keep = shape.k * x.shape[0]
        self.kept, self.cut = triton.encode_select(x, self.weights.W_enc_ND, None, self.keep, 0.0, self.dtype)
        self.r, _, self.dots = triton.residual(self.kept, self.weights.W_dec_ND, x)
        self.n_dead = int(DEAD * shape.n)
        self.pre = fast.encode(x, self.weights.W_enc_ND, None, self.dtype)
        # W_enc is read in fp32, written and read again in bf16
        self.encode_floor = self.floor(2 * x.shape[0] * shape.n * shape.d, 8 * shape.n * shape.d)

    def floor(self, flops: float = 0, moved: float = 0) -> float:
        return 1e3 * max(flops / self.card.bf16, moved / self.card.bandwidth)

    def tiles(self) -> Iterator[Row]:
        """The encoder's product by tiles of several sizes."""
        from metasae.sae.kernels.triton import encoding

        cut, own = torch.full((1,), self.cut, device=self.x.device), encoding.TILES[self.dtype]
        others = (
            encoding.Tiles(128, 128, 64, 8, 4),
            encoding.Tiles(128, 128, 64, 4, 3),
            encoding.Tiles(64, 256, 64, 4, 4),
        )
        for tiles in (own, *others):
            encoding.TILES[self.dtype] = tiles
            try:
                ms = milliseconds(
                    lambda: self.triton.encode_propose(self.x, self.weights.W_enc_ND, None, self.keep, cut, self.dtype)
                )
            finally:
                encoding.TILES[self.dtype] = own
            name = f"encode_propose {tiles.rows}x{tiles.columns}x{tiles.depth}, {tiles.warps} warps"
            yield Row(name, ms, self.encode_floor)

    def forward(self) -> list[Part]:
        triton, x, kept, dtype = self.triton, self.x, self.kept, self.dtype
        W_enc, W_dec = self.weights.W_enc_ND, self.weights.W_dec_ND
        nd, Bd = self.shape.n * self.shape.d, x.numel()
        chosen, decoded = self.floor(moved=self.pre.nbytes), self.floor(moved=4 * nd + 4 * Bd)
        return [
            (
                "encode_select, waited for",
                lambda: triton.encode_select(x, W_enc, None, self.keep, self.cut, dtype),
                self.encode_floor,
            ),
            ("  instead of: encode, dense", lambda: fast.encode(x, W_enc, None, dtype), self.encode_floor),
            ("  and: select", lambda: triton.select(self.pre, self.keep, self.cut), chosen),
            ("  or: select in torch", lambda: fast.select(self.pre, self.keep, self.cut), chosen),
            ("residual and dots", lambda: triton.residual(kept, W_dec, x), self.floor(moved=4 * nd + 8 * Bd)),
            ("  instead of: decode", lambda: triton.decode(kept, W_dec), decoded),
            ("  and: entry_dots", lambda: triton.entry_dots(kept, self.r, W_dec), decoded),
        ]

    def backward(self) -> list[Part]:
        triton, x, kept, shape = self.triton, self.x, self.kept, self.shape
        nd, Bd, products = shape.n * shape.d, x.numel(), 2 * shape.n * shape.m * shape.d
        factors = (kept, (kept.values, self.dots), (self.r, x))
        gradients, step = self.trainer.primary_gradients(x)[2], self.trainer.primary.optimiser
        plain_step = UnitRowAdam(self.weights, (0.9, 0.999), 1e-8, 1.0, "after")
        dead = self.pre[:, : self.n_dead].contiguous()
        summed, searched = self.floor(moved=8 * nd + 8 * Bd), self.floor(moved=2 * dead.nbytes)
        # both matrices: read w, m, v and the gradient twice (its norm comes first), write w, m, v
        moved = self.floor(moved=2 * 4 * nd * 8)
        return [
            ("latent_rows", lambda: triton.latent_rows(*factors), summed),
            ("  instead of: in torch", lambda: fast.latent_rows(*factors), summed),
            ("clip and RowAdam", lambda: step.step(gradients, 0.0), moved),
            ("  instead of: in torch", lambda: plain_step.step(gradients, 0.0), moved),
            # W read twice, its bf16 copy written and read, the gradient read and written
            ("add_penalty", self._penalty(), self.floor(products, 4 * nd * 5)),
            (f"keep_rows of {self.n_dead} columns", lambda: triton.keep_rows(dead, shape.d // 2), searched),
            ("  instead of: torch.topk", lambda: torch.topk(dead, min(shape.d // 2, self.n_dead), dim=1), searched),
            ("meta step", self.trainer.meta_step, self.floor(products, 4 * nd * 4)),
        ]

    def _penalty(self) -> Callable[[], object]:
        W_dec, into = self.weights.W_dec_ND, torch.zeros_like(self.weights.W_dec_ND)

        def penalty(cut: float):
            given = (self.meta, self.shape.k_m, cut, True, self.dtype, 1.0, 0.3, None, into)
            return self.triton.add_penalty(W_dec, *given)

        _, cut = penalty(0.0)
        return lambda: penalty(cut)
