"""The least a training step can take: products over the rate of products, or bytes, each moved once, over the memory's rate; whichever is longer.

One rank of W with n_r = ceil(n / W) of the latents, per primary step; s is the share of meta steps, n_meta_steps / n_primary_steps:

    part                              products        bytes
    encode and select                 2 B n_r d       8 n_r d
    residual and slopes                               4 n_r d + 8 B d
    weight gradients                                  8 n_r d + 8 B d
    clip and Adam                                     64 n_r d
    penalty                           2 n_r m d       20 n_r d + 8 m d
    meta step, times s                2 n_r m d       16 n_r d + 16 m d
    meta clip and Adam, times s                       64 m d

What is multiplied by n_r is divided among the ranks; B d and m d are not. On top come rows that entries gather: 16 k B d n_r / n bytes for the
primary, 4 k_m n_r d for the penalty, 16 k_m n_r d for a meta step. Rows that lie in a cache cost less, so these count for the upper end only.
AuxK for dead latents is left out.
"""

from dataclasses import asdict, dataclass

from metasae.doctor.cards import Card
from metasae.doctor.estimate import has_meta
from metasae.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """A part of a primary step and its share of meta steps, on the rank with most latents. products: FLOPs. moved, gathered: bytes."""

    name: str
    products: float = 0.0
    moved: float = 0.0
    gathered: float = 0.0

    def floor(self, card: Card, width: int) -> float:
        """Seconds at least. width: bytes per number of the products."""
        return max(self.products / card.flops(width), self.moved / card.bandwidth)

    def above(self, card: Card, width: int) -> float:
        """Seconds when every gathered row comes from the memory, at the same rates."""
        return self.floor(card, width) + self.gathered / card.bandwidth

    def as_dict(self) -> dict:
        return asdict(self)


def parts_of(recipe: Recipe, d: int, arm: str, ranks: int = 1) -> list[Part]:
    """The parts of an arm's step. d: width of the hooked tensor."""
    sae, meta, train, B, m = recipe.sae, recipe.meta, recipe.train, recipe.train.batch, recipe.meta.n
    own = -(-sae.n // ranks)
    rows = 4 * d * B * sae.k * own / sae.n
    parts = [
        Part("encode and select", 2 * B * own * d, 8 * own * d),
        Part("residual and slopes", 0, 4 * own * d + 8 * B * d, 2 * rows),
        Part("weight gradients", 0, 8 * own * d + 8 * B * d, 2 * rows),
        Part("clip and Adam", 0, 64 * own * d),
    ]
    if not has_meta(recipe, arm):
        return parts
    share, rows = train.n_meta_steps / train.n_primary_steps, 4 * d * own * meta.k
    if arm == "joint":
        parts.append(Part("penalty", 2 * own * m * d, 20 * own * d + 8 * m * d, rows))
    return [
        *parts,
        Part("meta steps", share * 2 * own * m * d, share * (16 * own * d + 16 * m * d), share * 4 * rows),
        Part("meta clip and Adam", 0, share * 64 * m * d),
    ]


def floor_of(parts: list[Part], card: Card, width: int) -> float:
    """Seconds of a step at least."""
    return sum(part.floor(card, width) for part in parts)


def above_of(parts: list[Part], card: Card, width: int) -> float:
    """Seconds of a step with all gathered rows."""
    return sum(part.above(card, width) for part in parts)
