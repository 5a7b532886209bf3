"""Adam on the rows of both weight matrices, one program per row: what torch does in eight passes over them, in one.

    g <- min(1, clip / (norm + 1e-6)) g         W_dec only: g <- g - <g, w> w        (norm: of all gradients)
    m <- b1 m + (1 - b1) g                      v <- b2 v + (1 - b2) g^2
    w <- w - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)                  W_dec only: w <- w / ||w||

The radial part is taken off against the row as it stands before the step. All in fp32. Nothing here waits for the
device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.optimiser import UnitRowAdam
from metasae.sae.weights import Weights

_ROWS = ("W_enc_ND", "W_dec_ND")


class RowAdam(UnitRowAdam):
    """UnitRowAdam whose kernel updates the two matrices row by row; torch updates the vectors. The state has the same
    names.
    """

    @torch.no_grad()
    def step(self, gradients: Weights, lr: float) -> None:
        """One step. The vectors' gradients are clipped in place; the matrices' are only read."""
        norm = self.norm(gradients)
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        group = self.adam.param_groups[0]
        betas, eps = group["betas"], group["eps"]
        for name in _ROWS:
            W, state = getattr(self.weights, name), self._state_of(name)
            state["step"] += 1
            # in double precision, since 1 - 0.999 has four digits left in fp32
            count = state["step"].double()
            first, second = (1 - torch.pow(beta, count) for beta in betas)
            numbers = torch.stack([lr / first, second.rsqrt(), scale.double()]).float()
            unit = "none" if name == "W_enc_ND" else self.renormalise
            step_rows_(W, getattr(gradients, name), state["exp_avg"], state["exp_avg_sq"], numbers, betas, eps, unit)
        vectors = {name: tensor for name, tensor in self.weights.tensors().items() if name not in _ROWS}
        for name, tensor in vectors.items():
            tensor.grad = getattr(gradients, name).mul_(scale)
        group["lr"] = lr
        self.adam.step()

    def _state_of(self, name: str) -> dict[str, Tensor]:
        """Moments and step count, where torch's Adam keeps them, so that state() and load_state() work unchanged."""
        W = getattr(self.weights, name)
        state = self.adam.state[W]
        if "step" not in state:
            state |= {
                "step": torch.zeros((), device=W.device),
                "exp_avg": torch.zeros_like(W),
                "exp_avg_sq": torch.zeros_like(W),
            }
        return state


def step_rows_(
    W_ND: Tensor,
    gradient_ND: Tensor,
    mean_ND: Tensor,
    square_ND: Tensor,
    numbers: Tensor,
    betas: tuple[float, float],
    eps: float,
    unit: str,
) -> None:
    """One step of every row, in place; all fp32 and row-major.

    numbers: fp32 [3] on the device: lr / (1 - b1^t), 1 / sqrt(1 - b2^t), what gradients are multiplied by.
    unit: 'none'; 'after' or 'before', when rows are made unit, and tangential gradients.
    """
    n, D = W_ND.shape
    block = triton.next_power_of_2(D)
    _step_row[(n,)](
        W_ND, gradient_ND.contiguous(), mean_ND, square_ND, numbers, 1 - betas[0], betas[1], 1 - betas[1], eps,
        D=D, UNIT=unit, BLOCK=block, num_warps=min(16, max(4, block // 256)),
    )  # fmt: skip


@triton.jit
def _step_row(
    W, gradient, mean, square, numbers, rest1, beta2, rest2, eps,
    D: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    here = tl.program_id(0).to(tl.int64) * D + columns
    w = tl.load(W + here, mask=inside, other=0.0)
    g = tl.load(gradient + here, mask=inside, other=0.0) * tl.load(numbers + 2)
    m = tl.load(mean + here, mask=inside, other=0.0)
    v = tl.load(square + here, mask=inside, other=0.0)
    if UNIT == "before":
        w = _unit(w)
    if UNIT != "none":
        g -= tl.sum(g * w, 0) * w
    m += (g - m) * rest1
    v = v * beta2 + g * g * rest2
    w -= tl.load(numbers) * m / (tl.sqrt(v) * tl.load(numbers + 1) + eps)
    if UNIT == "after":
        w = _unit(w)
    tl.store(W + here, w, mask=inside)
    tl.store(mean + here, m, mask=inside)
    tl.store(square + here, v, mask=inside)


@triton.jit
def _unit(w):
    """The row divided by its length; a row of zeros stays zero."""
    return w / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-12)
