"""Whether latents of two SAEs live on in each other. A latent's counterpart is the latent of the other SAE with the
largest phi.

A latent lives on in the other SAE where a latent there fires on the same tokens: phi above SAME. Two SAEs that were
trained from one seed share their initial weights and batches, so most of their latents live on.

The counterpart of a parent is looked for outside its children, and that of a child outside its parent. Their phi with
each other is the split itself: a half of a latent has phi .71 with the whole, a third .58. It counts only above SAME,
where the child is the parent. phi below 0 counts as 0.
"""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np

from metasae.measures.cofiring.partners import Partners, mutual_partners
from metasae.measures.firing.firings import Firings, Span
from metasae.progress.progress import SILENT, Progress

# Above this phi two latents are taken for the same one; the nearest float32, as phi is float32.
SAME = float(np.float32(0.8))


class Counterpart(NamedTuple):
    """latent: of the other SAE, None where none has phi > 0. phi: at least 0."""

    latent: int | None
    phi: float

    @property
    def same(self) -> bool:
        """Whether the two are taken for one latent."""
        return self.phi > SAME

    def as_dict(self) -> dict:
        return {**self._asdict(), "same": self.same}


class Counterparts:
    """The counterparts of the latents of two SAEs in each other, on some of their tokens.

    of_parents: the closest latents of the children's SAE, one more than a parent can have children. of_children: the
    closest two of the parents' SAE.
    """

    def __init__(self, of_parents: Partners, of_children: Partners):
        self.of_parents, self.of_children = of_parents, of_children
        self._child_phi = at_least_0(of_children.phi)

    @classmethod
    def count(
        cls, parents: Firings, children: Firings, count: int, spans: Sequence[Span], progress: Progress = SILENT
    ) -> "Counterparts":
        """Finds the counterparts. count: closest latents of each parent. spans: the tokens. Raises ValueError when the
        SAEs' tokens differ.
        """
        return cls(*mutual_partners(parents, children, count, 2, spans=spans, progress=progress))

    def of_parent(self, parent: int, children: Container[int]) -> Counterpart:
        return _first_outside(self.of_parents, parent, children)

    def of_child(self, child: int, parent: int) -> Counterpart:
        return _first_outside(self.of_children, child, (parent,))

    def phi_of_children(self, parents: np.ndarray, children: np.ndarray) -> np.ndarray:
        """phi of each child's counterpart outside its parent, float64 [p, c]; any number where there is no child.

        parents: int [p]. children: int [p, c], -1 for none.
        """
        first, second = np.moveaxis(self._child_phi[children], -1, 0)
        is_own = (self.of_children.latents[children, 0] == parents[:, None]) & (first <= SAME)
        return np.where(is_own, second, first)


def _first_outside(partners: Partners, latent: int, family: Container[int]) -> Counterpart:
    """The closest partner that is not of the family, or that has phi above SAME."""
    for other, phi in zip(partners.latents[latent].tolist(), partners.phi[latent].tolist(), strict=True):
        if phi > 0 and (phi > SAME or other not in family):
            return Counterpart(other, phi)
    return Counterpart(None, 0.0)


def at_least_0(phi: np.ndarray) -> np.ndarray:
    """float64, with 0 for NaN and for what is below."""
    return np.fmax(phi.astype(np.float64), 0.0)
