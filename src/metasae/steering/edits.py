"""The edits of latents while a model is steered, and the checks of a request to steer. Needs no torch; `steering.py`
applies the edits.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metasae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Set:
    """z' = value. No encoder gives a negative activation; a negative value pushes against the decoder row."""

    value: float

    def __call__(self, z: "Tensor") -> "Tensor":
        return z.new_full(z.shape, self.value)


@dataclass(frozen=True)
class Add:
    """z' = z + value, also where the latent is silent and where the sum is negative."""

    value: float

    def __call__(self, z: "Tensor") -> "Tensor":
        return z + self.value


@dataclass(frozen=True)
class Scale:
    """z' = value * z: acts where the latent fires.

    Scale(1.0) edits nothing, so that error=False gives the plain reconstruction.
    """

    value: float

    def __call__(self, z: "Tensor") -> "Tensor":
        return z * self.value


@dataclass(frozen=True)
class Ablate:
    """z' = 0: acts where the latent fires."""

    def __call__(self, z: "Tensor") -> "Tensor":
        return z.new_zeros(z.shape)


Edit = Set | Add | Scale | Ablate
_GRAMMAR = re.compile(r"\s*(?P<latent>\d+)\s*(?:(?P<off>=\s*off)|(?P<sign>[+*]?)=\s*(?P<value>\S+))\s*")
_KINDS = {"": Set, "+": Add, "*": Scale}


def parse_edits(texts: Iterable[str]) -> dict[int, Edit]:
    """Texts -> {latent: edit}: `17=5` sets, `17+=2` adds, `17*=0.5` scales, `17=off` ablates.

    Raises UserError for anything else, and for a latent named twice.
    """
    edits: dict[int, Edit] = {}
    for text in texts:
        match = _GRAMMAR.fullmatch(text)
        try:
            edit = Ablate() if match["off"] else _KINDS[match["sign"]](float(match["value"]))
        except (TypeError, ValueError):  # no match, or a value that is no number
            raise UserError(
                f"an edit is LATENT=VALUE, LATENT+=VALUE, LATENT*=VALUE or LATENT=off, not '{text}'"
            ) from None
        latent = int(match["latent"])
        if latent in edits:
            raise UserError(f"latent {latent} is edited twice; give it one edit")
        check_edit(latent, edit, None)
        edits[latent] = edit
    return edits


def check_edit(latent: int, edit: Edit, n: int | None) -> None:
    """Raises UserError for infinity or NaN, and for a latent that an SAE of n latents does not have.

    n: None where it is not known.
    """
    if not math.isfinite(getattr(edit, "value", 0.0)):
        raise UserError(f"the edit of latent {latent} must be a finite number, not {edit.value}")
    if n is not None and not 0 <= latent < n:
        raise UserError(f"no latent {latent}: this SAE has the latents 0 to {n - 1}")


def check_request(folder: str | Path, texts: Sequence[str], prompts: Sequence[str], tokens: int) -> dict[int, Edit]:
    """The edits of a request to steer; no weights are read.

    Raises UserError for a wrong edit, no prompt, and a folder without an SAE.
    """
    from metasae.interop.detection import latents_at, sae_at

    edits = parse_edits(texts)
    if not prompts or tokens < 1:
        raise UserError("give at least one prompt and one token to write")
    n = latents_at(*sae_at(folder))
    for latent, edit in edits.items():
        check_edit(latent, edit, n)
    return edits
