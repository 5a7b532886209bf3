"""L0 adjusted to k in training, for architectures whose learned rule would otherwise give another L0.

    miss = log(L0 / k) of a step's batch, between -2 and 2

Three things are computed here or from it: the level at which the first batch has L0 = k, the common level of learned
thresholds, and the weight of a sparsity term. All are sums over the batch, so they are the same on several ranks.
"""

import math

import torch
from torch import Tensor

from metasae.sae.spread import WHOLE, Whole

_LIMIT = 2.0
# Halvings of the range e^-20 to e^20; the result is then exact in fp32.
_HALVINGS = 40
# Integral and proportional part of the price's control. The proportional part damps it: L0 depends on the prices of
# several earlier steps, and with the integral alone the price overshoots until no latent fires.
_INTEGRAL, _ANSWER = 0.05, 1.0
_LOG_LEAST, _LOG_MOST = math.log(1e-6), math.log(1e6)


def miss(l0: Tensor, k: int) -> Tensor:
    """log(L0 / k), 0-dim, clamped to [-2, 2] so that one unusual batch does not disturb the training."""
    return (l0 / k).log().clamp(-_LIMIT, _LIMIT)


def log_level(pre_BN: Tensor, k: int, spread: Whole = WHOLE) -> Tensor:
    """The log of the level above which k entries of a row lie on average, fp32 0-dim; e^-20 where fewer are positive.

    It is found by halving, which needs counts alone, and ranks can add these up.
    """
    low, high = torch.tensor([-20.0, 20.0], device=pre_BN.device)
    wanted = k * spread.rows(pre_BN.shape[0])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        count = spread.over_latents((pre_BN > middle.exp()).sum().reshape(1))[0]
        low, high = torch.where(count > wanted, middle, low), torch.where(count > wanted, high, middle)
    return high


class Price:
    """The weight of a sparsity term, adapted after every step so that L0 comes to k (proportional and integral):

        log weight = s + miss,      s <- s + .05 miss

    start: the first weight, at least 1e-4, as a weight of zero could not grow.
    """

    def __init__(self, start: float, k: int):
        self.k = k
        self.sum, self.miss = torch.tensor(math.log(max(start, 1e-4))), torch.tensor(0.0)

    @property
    def weight(self) -> Tensor:
        """Fp32, 0-dim."""
        return (self.sum + _ANSWER * self.miss).exp()

    def update(self, l0: Tensor) -> None:
        """l0: of the last step, 0-dim, the same on all ranks."""
        self.miss = miss(l0, self.k)
        self.sum = (self.sum + _INTEGRAL * self.miss).clamp(_LOG_LEAST, _LOG_MOST)

    def numbers(self) -> dict[str, float]:
        """The state, for a checkpoint."""
        return {"sum": float(self.sum), "miss": float(self.miss)}

    def load(self, numbers: dict[str, float], device: torch.device) -> None:
        # on the device that computes with them, so that a resumed run rounds alike
        self.sum, self.miss = (torch.tensor(numbers[name], device=device) for name in ("sum", "miss"))
