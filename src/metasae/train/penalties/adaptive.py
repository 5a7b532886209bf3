"""An adaptive sigma^2: the running mean of e, at constant kappa = (lambda2 / sigma^2) exp(-e / sigma^2).

The gradient by a row is proportional to kappa, so a constant kappa keeps the penalty's strength, while sigma^2 stays at
e, where the gradient is largest. With sigma^2 = e the coefficient for this kappa is lambda2 = kappa * e * exp(1).
"""

import math

from torch import Tensor

MEMORY = 0.99


class AdaptiveSigma:
    """mean_e: running mean of e, None before the first update. The whole state is `mean_e` and `kappa`."""

    def __init__(self, lambda2: float, sigma_sq: float):
        self.lambda2, self.sigma_sq = lambda2, sigma_sq
        self.mean_e: float | None = None
        self.kappa: float | None = None

    def update(self, e_N: Tensor) -> tuple[float, float]:
        """Takes this step's e [n]; returns (lambda2, sigma^2) to use."""
        e = float(e_N.mean())
        self.mean_e = e if self.mean_e is None else MEMORY * self.mean_e + (1 - MEMORY) * e
        if self.kappa is None:
            self.kappa = self.lambda2 / self.sigma_sq * math.exp(-self.mean_e / self.sigma_sq)
        sigma_sq = max(self.mean_e, 1e-3)
        return self.kappa * sigma_sq * math.e, sigma_sq
