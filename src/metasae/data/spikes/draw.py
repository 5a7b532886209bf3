"""Draws spike-ins from a seed: their kinds, token types, topics, rates, amplitudes and directions.

A spike-in is a known feature that is added to real activations, so that the truth is known while the background is the
model's own (the idea comes from the ERCC controls of RNA sequencing). Kinds:

    concept         some token types, in the documents of its topics
    sense           one of two readings of a frequent token type; the document's topic decides which. cos(g1, g2) = .6
    parent, child   a child is on only where its parent is, on some of the parent's token types
    atom            one of two that share a third of their token types, where they come together
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from metasae.errors import UserError

KINDS = ("concept", "sense", "parent", "child", "atom")
# The number of topics. A hash of a document's number decides its topic.
TOPICS = 16
# Rates are drawn log-uniformly between these shares of all tokens.
RATES = (1e-4, 2e-2)
# Directions are Sigma^a xi with xi isotropic, for these exponents a: from any direction (0) to those in which the
# activations vary most.
TOWARDS_COVARIANCE = (0.0, 0.25, 0.5)
SENSE_COSINE = 0.6
# Which groups are drawn, in turn; a sense pair, a family of three and two atoms are one group each.
TURNS = ("concept", "senses", "concept", "family", "concept", "atoms")


@dataclass(frozen=True)
class Spike:
    """One spike-in. kind: of KINDS. group: those of one number belong together (a sense pair, a family, two atoms).

    types: token ids. topics: of the documents it is in. keep: the share of such tokens on which it is on. A group draws
    once for all its members, so a child is on only where its parent is on. amplitude: mean strength, in the units of x.
    """

    kind: str
    group: int
    types: tuple[int, ...]
    topics: tuple[int, ...]
    keep: float
    amplitude: float


def draw_spikes(
    n: int, type_counts: np.ndarray, seed: int, amplitudes: tuple[float, float], rates: tuple[float, float] = RATES
) -> list[Spike]:
    """Draws at least n spike-ins, so that the last group is whole. amplitudes: the least and the most. type_counts: int
    [V], how often each token id is in the training text. A token type belongs to one group alone. Raises UserError
    where the text has too few token types.
    """
    rng = np.random.default_rng([seed, 1])
    types = _FreeTypes(type_counts, rng)
    spikes: list[Spike] = []
    group = 0
    while len(spikes) < n:
        members = _GROUPS[TURNS[group % len(TURNS)]](types, rates, rng)
        spikes += [
            Spike(kind, group, own, topics, keep, _between(rng, amplitudes)) for kind, own, topics, keep in members
        ]
        group += 1
    return spikes


def draw_directions(spikes: list[Spike], d: int, seed: int, covariance: np.ndarray | None = None) -> np.ndarray:
    """Unit directions float32 [m, d]. covariance: float64 [d, d] of the activations; None draws all isotropic."""
    rng = np.random.default_rng([seed, 2])
    rows = rng.standard_normal((len(spikes), d))
    if covariance is not None:
        values, vectors = np.linalg.eigh(covariance)
        exponents = np.array(TOWARDS_COVARIANCE)[np.arange(len(spikes)) % len(TOWARDS_COVARIANCE)]
        scales = np.maximum(values, 1e-12 * values.max())[None] ** exponents[:, None]
        rows = (rows @ vectors * scales) @ vectors.T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for one, other in sense_pairs(spikes):
        apart = rows[other] - (rows[other] @ rows[one]) * rows[one]
        rows[other] = SENSE_COSINE * rows[one] + (1 - SENSE_COSINE**2) ** 0.5 * apart / np.linalg.norm(apart)
    return rows.astype(np.float32)


def sense_pairs(spikes: list[Spike]) -> list[tuple[int, int]]:
    """The places of both senses of each word."""
    places = [place for place, spike in enumerate(spikes) if spike.kind == "sense"]
    return list(zip(places[::2], places[1::2], strict=True))


# (kind, token types, topics, keep) of each member of a group
Member = tuple[str, tuple[int, ...], tuple[int, ...], float]


class _FreeTypes:
    """Hands out token types of a wanted frequency, each once."""

    def __init__(self, type_counts: np.ndarray, rng: np.random.Generator):
        self.shares = type_counts / max(1, type_counts.sum())
        self.free, self.rng = type_counts > 0, rng

    def take(self, count: int, share: float) -> tuple[tuple[int, ...], float]:
        """(`count` free token types, each near `share` of all tokens by ratio; the share that they have together)."""
        places = np.flatnonzero(self.free)
        if len(places) < count:
            raise UserError("the text has too few token types for so many spike-ins; ask for fewer or use more text")
        distances = np.abs(np.log(self.shares[places] / share))
        near = places[np.argsort(distances, kind="stable")[: 4 * count]]
        chosen = self.rng.choice(near, count, replace=False)
        self.free[chosen] = False
        return tuple(int(place) for place in chosen), float(self.shares[chosen].sum())


def _concept(types: _FreeTypes, rates: tuple[float, float], rng: np.random.Generator) -> Iterator[Member]:
    count, topics = int(rng.integers(1, 5)), _topics(rng, rng.choice([0.25, 0.5]))
    yield _rated("concept", types, count, topics, _between(rng, rates))


def _senses(types: _FreeTypes, rates: tuple[float, float], rng: np.random.Generator) -> Iterator[Member]:
    """Both rates lie in the upper half of the range, as a word must be frequent for both to be found."""
    every_topic = tuple(range(TOPICS))
    _, own, _, keep = _rated("sense", types, 1, every_topic, 2 * _between(rng, _upper(rates)))
    order = tuple(int(topic) for topic in rng.permutation(TOPICS))
    first = int(rng.integers(TOPICS // 3, TOPICS - TOPICS // 3 + 1))
    yield "sense", own, order[:first], keep
    yield "sense", own, order[first:], keep


def _family(types: _FreeTypes, rates: tuple[float, float], rng: np.random.Generator) -> Iterator[Member]:
    kind, own, topics, keep = _rated("parent", types, 6, _topics(rng, 0.5), _between(rng, _upper(rates)))
    yield kind, own, topics, keep
    yield "child", own[:2], topics, keep
    yield "child", own[2:3], topics, keep


def _atoms(types: _FreeTypes, rates: tuple[float, float], rng: np.random.Generator) -> Iterator[Member]:
    _, own, topics, keep = _rated("atom", types, 3, _topics(rng, 0.5), 1.5 * _between(rng, rates))
    yield "atom", (own[0], own[2]), topics, keep
    yield "atom", (own[1], own[2]), topics, keep


_GROUPS = {"concept": _concept, "senses": _senses, "family": _family, "atoms": _atoms}


def _rated(kind: str, types: _FreeTypes, count: int, topics: tuple[int, ...], rate: float) -> Member:
    """Token types whose rate in these topics is near the one wanted, thinned to it where they are too frequent."""
    topic_share = len(topics) / TOPICS
    own, share = types.take(count, rate / topic_share / count)
    return kind, own, topics, min(1.0, rate / (share * topic_share))


def _topics(rng: np.random.Generator, share: float) -> tuple[int, ...]:
    return tuple(int(topic) for topic in rng.permutation(TOPICS)[: round(share * TOPICS)])


def _upper(rates: tuple[float, float]) -> tuple[float, float]:
    return (rates[0] * rates[1]) ** 0.5, rates[1]


def _between(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """Drawn log-uniformly."""
    return float(np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]))))
