"""Atomicity of latents judged on equally many firings: rarefaction, as ecologists compare samples of unequal size.

A latent's atomicity A is biased where it fires rarely: on one token it is 1, and where one sense is common a few
firings miss the others. So of each latent the expectation A(m) of A over m of its firings is taken, drawn without
replacement, with one m for all latents of a word. A_0(m) is the same over m of all the word's tokens, which is what
random firing gives; and

    matched atomicity = (A(m) - A_0(m)) / (1 - A_0(m))

In expectation a latent that fires at random has 0, however few its firings are; one that fires on one sense only has 1;
and one that fires on a random part of another's tokens has the other's value, as some of some of the firings are some
of them. m is the smallest at which A_0(m) <= 5%: below it, a few firings of a rare sense decide. Latents with fewer
firings are not judged.
Source of rarefaction: Sanders (1968), Hurlbert (1971). Expectations are means over draws.
"""

from dataclasses import dataclass

import numpy as np

from metasae.measures.words.sense_scores import atomicity, blended

AT_CHANCE = 0.05
DRAWS_AT_RANDOM = 4000
DRAWS = 200
STEP = 1.1


@dataclass(frozen=True)
class Draw:
    """How the latents of one word are judged.

    size: m. atomicity: A_0(m). blend: the chance that m of all tokens look blended.
    """

    size: int
    atomicity: float
    blend: float


def draw_for(sizes: np.ndarray, rng: np.random.Generator) -> Draw:
    """sizes: tokens of each sense, int [S], none 0.

    m grows in steps of 10%, and all T tokens end the search: A_0(T) = 0.
    """
    size, total = 2, int(sizes.sum())
    while True:
        size = min(size, total)
        at_chance, blend = _expected(draws(sizes[None], size, DRAWS_AT_RANDOM, rng), sizes)[0].tolist()
        if at_chance <= AT_CHANCE or size == total:
            return Draw(size, at_chance, blend)
        size = int(np.ceil(size * STEP))


def matched(
    counts: np.ndarray, sizes: np.ndarray, draw: Draw, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(matched atomicity, chance that a draw looks blended), float64 [l] each, from c int [l, S] and n [S]; NaN below
    draw.size firings."""
    enough = counts.sum(1) >= draw.size
    expected = np.full((len(counts), 2), np.nan)
    expected[enough] = _expected(draws(counts[enough], draw.size, DRAWS, rng), sizes)
    return (expected[:, 0] - draw.atomicity) / (1 - draw.atomicity), expected[:, 1]


def draws(counts: np.ndarray, size: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` times `size` of each latent's firings without replacement: firings per sense, int64 [l, number, S], from
    c [l, S].

    Sense after sense: how many of the drawn are of this sense is hypergeometric, given how many are left.
    """
    drawn = np.zeros((len(counts), number, counts.shape[1]), np.int64)
    wanted = np.full((len(counts), number), size, np.int64)
    others = counts.sum(1)
    for sense in range(counts.shape[1]):
        others = others - counts[:, sense]
        drawn[..., sense] = rng.hypergeometric(counts[:, sense, None], others[:, None], wanted)
        wanted -= drawn[..., sense]
    return drawn


def _expected(drawn: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean atomicity and blend flag over the draws: int [l, number, S] -> float64 [l, 2]."""
    flat = drawn.reshape(-1, drawn.shape[2])
    return np.stack([judge(flat, sizes).reshape(drawn.shape[:2]).mean(1) for judge in (atomicity, blended)], axis=1)
