"""The least a training step can take: products over the rate of products, or bytes, each moved once, over the memory's rate; whichever is longer.

One rank of W with n_r = ceil(n / W) of the latents, per primary step; s is the share of meta steps, n_meta_steps / n_primary_steps:

    part                              products        bytes
    encode and select                 2 B n_r d       8 n_r d
    residual and slopes                               4 n_r d + 4 B d (1 + P)
    weight gradients                                  8 n_r d + 4 B d (1 + P)
    clip and Adam                                     64 n_r d
    penalty                           2 n_r m d       20 n_r d + 8 m d
    meta step, times s                2 n_r m d       16 n_r d + 16 m d
    meta clip and Adam, times s                       64 m d
    ortsae, times c                   2 n_r h d       4 n d + 8 n_r d
    c2r, times c                      4 n_r d^2       12 n_r d + 8 d^2
    cofiring, times c                                 4 n d + 8 n_r d

P is the number of nested prefixes, 1 but for Matryoshka; c is 1 / penalty_every; h is the most rows of an OrtSAE chunk. Products of further
penalties are in fp32. What is multiplied by n_r is divided among the ranks; B d, n d and m d are not. On top come rows that entries gather:
16 k B d n_r / n bytes for the primary, 4 k_m n_r d for the penalty, 16 k_m n_r d for a meta step, c 8 n_r d for ortsae, and for cofiring c 8 d for
each of at most T k (k - 1) n_r / n pairs. Rows that lie in a cache cost less, so these count for the upper end only. AuxK for dead latents is left
out, and so is what cofiring counts on the processor.
"""

from dataclasses import asdict, dataclass

from metasae.doctor.cards import Card
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.traffic import charged_penalties, n_prefixes


@dataclass(frozen=True)
class Part:
    """A part of a primary step and its share of meta steps, on the rank with most latents. products: FLOPs. moved, gathered: bytes.

    fp32: whether these products are made in fp32 whatever the step's others are made in.
    """

    name: str
    products: float = 0.0
    moved: float = 0.0
    gathered: float = 0.0
    fp32: bool = False

    def floor(self, card: Card, width: int) -> float:
        """Seconds at least. width: bytes per number of the products."""
        return max(self.products / card.flops(4 if self.fp32 else width), self.moved / card.bandwidth)

    def above(self, card: Card, width: int) -> float:
        """Seconds when every gathered row comes from the memory, at the same rates."""
        return self.floor(card, width) + self.gathered / card.bandwidth

    def as_dict(self) -> dict:
        return asdict(self)


def parts_of(recipe: Recipe, d: int, arm: str, ranks: int = 1) -> list[Part]:
    """The parts of an arm's step. d: width of the hooked tensor."""
    sae, meta, train, B, m = recipe.sae, recipe.meta, recipe.train, recipe.train.batch, recipe.meta.n
    own = -(-sae.n // ranks)
    rows, passes = 4 * d * B * sae.k * own / sae.n, 4 * B * d * (1 + n_prefixes(sae))
    parts = [
        Part("encode and select", 2 * B * own * d, 8 * own * d),
        Part("residual and slopes", 0, 4 * own * d + passes, 2 * rows),
        Part("weight gradients", 0, 8 * own * d + passes, 2 * rows),
        Part("clip and Adam", 0, 64 * own * d),
    ]
    if arm == "joint":
        parts += further_parts(recipe, d, own)
    if not recipe.has_meta(arm):
        return parts
    share, rows = train.n_meta_steps / train.n_primary_steps, 4 * d * own * meta.k
    if arm == "joint":
        parts.append(Part("penalty", 2 * own * m * d, 20 * own * d + 8 * m * d, rows))
    return [
        *parts,
        Part("meta steps", share * 2 * own * m * d, share * (16 * own * d + 16 * m * d), share * 4 * rows),
        Part("meta clip and Adam", 0, share * 64 * m * d),
    ]


def further_parts(recipe: Recipe, d: int, own: int) -> list[Part]:
    """The further penalties of metasae, each with its share of steps. own: latents on the rank."""
    from metasae.train.penalties.cofiring import TOKENS
    from metasae.train.penalties.ortsae import CHUNK

    n, k, share = recipe.sae.n, recipe.sae.k, 1 / recipe.train.penalty_every
    pairs = min(TOKENS, recipe.train.batch) * k * (k - 1) * own / n
    known = {
        "ortsae": Part(
            "ortsae",
            share * 2 * own * min(n, CHUNK) * d,
            share * (4 * n * d + 8 * own * d),
            share * 8 * own * d,
            fp32=True,
        ),
        "c2r": Part("c2r", share * 4 * own * d * d, share * (12 * own * d + 8 * d * d), fp32=True),
        "cofiring": Part("cofiring", 0, share * (4 * n * d + 8 * own * d), share * 8 * d * pairs),
    }
    return [part for name, part in known.items() if name in charged_penalties(recipe)]


def floor_of(parts: list[Part], card: Card, width: int) -> float:
    """Seconds of a step at least."""
    return sum(part.floor(card, width) for part in parts)


def above_of(parts: list[Part], card: Card, width: int) -> float:
    """Seconds of a step with all gathered rows."""
    return sum(part.above(card, width) for part in parts)
