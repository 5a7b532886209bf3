"""What is done to latents while a model is steered, and what a request to steer may ask. Known without torch; `steering.py` does it."""

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
    """z' = value * z: acts where the latent fires. Scale(1.0) edits nothing, so that error=False gives the plain reconstruction."""

    value: float

    def __call__(self, z: "Tensor") -> "Tensor":
        return z * self.value


@dataclass(frozen=True)
class Ablate:
    """z' = 0: acts where the latent fires."""

    def __call__(self, z: "Tensor") -> "Tensor":
        return z.new_zeros(z.shape)


Edit = Set | Add | Scale | Ablate
_GRAMMAR = re.compile(r"\s*(\d+)\s*([+*]?)=\s*(\S+)\s*")
_KINDS = {"": Set, "+": Add, "*": Scale}


def parse_edits(texts: Iterable[str]) -> dict[int, Edit]:
    """Texts -> {latent: edit}: `17=5` sets, `17+=2` adds, `17*=0.5` scales, `17=off` ablates.

    Raises UserError for anything else, and for a latent named twice.
    """
    edits: dict[int, Edit] = {}
    for text in texts:
        latent, edit = _parse(text)
        if latent in edits:
            raise UserError(f"latent {latent} is edited twice; give it one edit")
        check_finite(latent, edit)
        edits[latent] = edit
    return edits


def check_finite(latent: int, edit: Edit) -> None:
    """Raises UserError for an edit with infinity or NaN."""
    if not math.isfinite(getattr(edit, "value", 0.0)):
        raise UserError(f"the edit of latent {latent} must be a finite number, not {edit.value}")


def check_latent(latent: int, n: int) -> None:
    """Raises UserError for a latent that an SAE of n latents does not have."""
    if not 0 <= latent < n:
        raise UserError(f"no latent {latent}: this SAE has the latents 0 to {n - 1}")


def check_request(folder: str | Path, edits: Sequence[str], prompts: Sequence[str], tokens: int) -> dict[int, Edit]:
    """The edits of a request to steer. Raises UserError for a wrong edit, no prompt, and a folder without an SAE; no weights are read."""
    from metasae.interop.places import latents_at, sae_at

    parsed = parse_edits(edits)
    if not prompts or tokens < 1:
        raise UserError("give at least one prompt and one token to write")
    n = latents_at(*sae_at(folder))
    for latent in parsed:
        if n is not None:
            check_latent(latent, n)
    return parsed


def _parse(text: str) -> tuple[int, Edit]:
    if match := _GRAMMAR.fullmatch(text):
        latent, sign, value = int(match[1]), match[2], match[3]
        if value == "off" and not sign:
            return latent, Ablate()
        try:
            return latent, _KINDS[sign](float(value))
        except ValueError:
            pass
    raise UserError(f"an edit is LATENT=VALUE, LATENT+=VALUE, LATENT*=VALUE or LATENT=off, not '{text}'")
