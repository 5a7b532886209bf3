"""Adam on SAE weights with decoder rows of unit length."""

from collections.abc import Callable

import torch
from torch import Tensor

from metasae.sae.weights import Weights


def total_norm(gradients: Weights) -> Tensor:
    """The joint norm of all gradients, 0-dim."""
    return torch.nn.utils.get_total_norm(list(gradients.tensors().values()))


class UnitRowAdam:
    """torch's fused Adam; the decoder rows' radial gradient is removed before the step, and their length is set to 1.

    renormalise: "after": rows have unit length after every step. "before": as in the paper's code, before every step,
    so that rows drift by up to 7e-4 between steps. clip: largest joint norm of the gradients; norm: computes that norm.
    """

    def __init__(
        self,
        weights: Weights,
        betas: tuple[float, float],
        eps: float,
        clip: float,
        renormalise: str,
        norm: Callable[[Weights], Tensor] = total_norm,
    ):
        self.weights, self.norm = weights, norm
        self.clip, self.renormalise = clip, renormalise
        self.adam = torch.optim.Adam(list(weights.tensors().values()), lr=0.0, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, gradients: Weights, lr: float) -> None:
        """One step. The gradients are clipped and projected in place."""
        for name, tensor in self.weights.tensors().items():
            tensor.grad = getattr(gradients, name)
        _clip_(list(gradients.tensors().values()), self.norm(gradients), self.clip)
        W, g = self.weights.W_dec_ND, gradients.W_dec_ND
        if self.renormalise == "before":
            unit_rows_(W)
        g.addcmul_(W, torch.linalg.vecdot(g, W)[:, None], value=-1)
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        if self.renormalise == "after":
            unit_rows_(W)

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, by weight name; empty before the first step."""
        out = {}
        for name, tensor in self.weights.tensors().items():
            for key, value in self.adam.state.get(tensor, {}).items():
                out[f"{name}.{key}"] = value
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            name, _, moment = key.rpartition(".")
            self.adam.state[getattr(self.weights, name)][moment] = value.clone()


def _clip_(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scales all gradients so that their joint norm is at most `limit`."""
    # on a CPU the norm can be read at once, which saves a pass over all gradients; elsewhere reading it would wait for
    # the device
    if norm.device.type != "cpu" or norm > limit:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


def unit_rows_(W_ND: Tensor) -> None:
    """Divides each row by its length, in place. A row of zeros stays zero."""
    W_ND.div_(torch.linalg.vector_norm(W_ND, dim=1, keepdim=True).clamp_(min=1e-12))


def learning_rate(step: int, total: int, lr: float, warmup: int, decay: float) -> float:
    """Linear warm-up over `warmup` steps, then constant, then linear to zero over the last `decay` share of all
    steps.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    tail = decay * total
    fall = min(1.0, (total - step) / tail) if tail > 0 else 1.0
    return lr * rise * fall
