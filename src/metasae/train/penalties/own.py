"""Penalties that a user defines in Python: `@metasae.penalty("mine")` over a function of `w_dec`.

    @metasae.penalty("centred")
    def centred(w_dec):
        return w_dec.mean(0).square().sum()

A recipe can then name it, `train.penalties = {centred = 0.1}`, and the loss of `joint` gets coefficient x value, as
with every penalty. The gradient is autograd's. If the function returns (value, gradient [n, d]), that gradient is used;
the first call compares it with autograd's.

The name is registered in this process alone: another process can read such a run's folder, but cannot train by its
recipe.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from metasae.errors import UserError, nearest
from metasae.recipe.registry import PENALTIES
from metasae.train.penalties.scene import Charge, Scene

# What a function gets for an argument of this name.
ASKED: dict[str, Callable[[Scene], object]] = {
    "w_meta": lambda scene: scene.W_meta_MD,
    "rates": lambda scene: scene.rate_N,
    "step": lambda scene: scene.step,
    "seed": lambda scene: scene.seed,
}
# How far a gradient that a function returns may be from autograd's, as a share of the largest entry.
CLOSE = 1e-3


def penalty(name: str) -> Callable[[Callable], Callable]:
    """Registers the function below it as a penalty of that name, for `train.penalties`; the function stays as it is.

    The function takes `w_dec`, the decoder rows [n, d] of unit length, and whatever else of these it names as an
    argument: `w_meta` [m, d], the decoder rows of the meta SAE (their gradient is not taken); `rates` [n], how often
    each latent fires per token, a running mean; `step`, primary steps done; `seed`, the arm's. It returns its value,
    one number of torch, or (value, gradient of the value by w_dec [n, d]). A second definition of the name takes the
    place of the first.

    Raises UserError for the name of a penalty that ships, and for an argument that is none of the above.
    """

    def register(function: Callable) -> Callable:
        if isinstance(PENALTIES.get(name), str):
            raise UserError(f"'{name}' is a penalty that ships with metasae; choose another name")
        PENALTIES[name] = OwnPenalty(name, function)
        return function

    return register


class OwnPenalty:
    """A user's function in the form that the trainer calls: Scene -> Charge."""

    def __init__(self, name: str, function: Callable):
        self.name, self.function = name, function
        self.asks = list(inspect.signature(function).parameters)
        if "w_dec" not in self.asks:
            raise UserError(f"the penalty '{name}' must take w_dec, not only ({', '.join(self.asks)})")
        for argument in self.asks:
            if argument not in ("w_dec", *ASKED):
                raise UserError(
                    f"the penalty '{name}' asks for '{argument}'{nearest(argument, ('w_dec', *ASKED))}; it may ask for "
                    f"w_dec, {', '.join(ASKED)}"
                )
        self._is_checked = False

    def __call__(self, scene: Scene) -> Charge:
        """The value and its gradient. Raises UserError for a value that is no finite number, for a gradient of another
        shape, and where a given gradient is not that of the value.
        """
        asked = {argument: ASKED[argument](scene) for argument in self.asks if argument != "w_dec"}
        if "w_meta" in asked and asked["w_meta"] is None:
            raise UserError(f"the penalty '{self.name}' asks for w_meta; set train.lambda2 above 0 for a meta SAE")
        w_dec = scene.W_dec_ND.detach()
        answer = self.function(w_dec=w_dec, **asked) if self._is_checked else None
        if self._is_checked and isinstance(answer, tuple):
            return self._charge(*answer, w_dec)
        with torch.enable_grad():
            followed = w_dec.clone().requires_grad_()
            answer = self.function(w_dec=followed, **asked)
            value, given = answer if isinstance(answer, tuple) else (answer, None)
            gradient = self._followed(value, followed)
        if given is None:
            return self._charge(value, gradient, w_dec)
        self._refuse_another(given.detach(), gradient)
        self._is_checked = True
        return self._charge(value, given, w_dec)

    def _followed(self, value: Tensor, w_dec: Tensor) -> Tensor:
        """Autograd's gradient."""
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise UserError(f"the penalty '{self.name}' must return one number of torch, not {_in_words(value)}")
        if not value.requires_grad:
            raise UserError(
                f"the value of the penalty '{self.name}' does not depend on w_dec in a way that autograd can follow; "
                "compute it with torch from w_dec"
            )
        return torch.autograd.grad(value.squeeze(), w_dec)[0]

    def _charge(self, value: Tensor, gradient: Tensor, w_dec: Tensor) -> Charge:
        value, gradient = value.detach().squeeze(), gradient.detach()
        if gradient.shape != w_dec.shape:
            raise UserError(
                f"the gradient of the penalty '{self.name}' has the shape {list(gradient.shape)}, w_dec has "
                f"{list(w_dec.shape)}"
            )
        if not torch.isfinite(value + gradient.sum()):
            raise UserError(f"the penalty '{self.name}' is {float(value)}, or its gradient is not finite")
        return Charge(value.float(), gradient.float())

    def _refuse_another(self, given: Tensor, followed: Tensor) -> None:
        """Raises UserError where the function's own gradient is not autograd's."""
        if given.shape != followed.shape:
            return
        most = float((given - followed).abs().max())
        if not most <= CLOSE * max(float(followed.abs().max()), 1e-12):
            raise UserError(
                f"the gradient that the penalty '{self.name}' returns is not that of its value: they differ by up to "
                f"{most:.3g}, where the largest entry of autograd's is {float(followed.abs().max()):.3g}"
            )


def _in_words(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
