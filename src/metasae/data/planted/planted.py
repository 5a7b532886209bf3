"""Planted worlds: activations made of known features, so that a dictionary can be compared with the truth.

x = sum_j a_j g_j + noise,   with unit directions g_j [d] and a_j = 0 where feature j is off.

Events are drawn; a feature is on when its own event happens, or the event of a composite that contains it. m features,
c composites, E = m + c events. Source of the kinds: arXiv 2602.14687 (SynthSAEBench). `planted_cache.py` draws tokens
from a world.
"""

from dataclasses import dataclass

import numpy as np

TRIES = 2000


@dataclass(frozen=True)
class WorldSpec:
    """How many features of each kind, and how they fire.

    A unit is an independent, grouped or parent feature, an atom, a word or a composite.

    independent: features that fire on their own.

    groups: sets of `group_size` features whose events correlate. A Gaussian copula with one factor per group: feature i
    is on where z_i = l_i u + sqrt(1 - l_i^2) e_i lies below the normal quantile of its rate, so rates are exact, and
    z_i, z_j correlate with `rho`. A negative rho needs groups of 2.

    parents: each has `children`; a child is on only where its parent is, there with probability `child_share`.

    words: a token holds at most one word, in one sense; the features are the senses, drawn with `sense_shares`. Senses
    of a word share a direction: the cosine of any two is `sense_cosine`.

    atoms, composites: a composite holds 2 or more of the atoms (sizes in turn from `composite_sizes`), which it turns
    on together and with the same strength. Atoms fire on their own too.

    Rates of units are top_rate / rank^zipf, ranks in random order. max_cosine: limit of |cos| between directions,
    senses of one word aside. Strengths are floor + (1 - floor) exp(spread N - spread^2 / 2), so 1 on average; noise is
    the standard deviation per dimension.

    topics: their number; every document has one topic, all equally likely. Every unit has one home topic, where its
    rate is `boost` times the overall rate; in the other topics its rate is lower, so that the overall rate stays. With
    one topic tokens are independent of each other.
    """

    d: int
    independent: int = 0
    groups: int = 0
    group_size: int = 2
    rho: float = 0.5
    parents: int = 0
    children: int = 2
    child_share: float = 0.3
    words: int = 0
    sense_shares: tuple[float, ...] = (0.5, 0.5)
    sense_cosine: float = 0.3
    atoms: int = 0
    composites: int = 0
    composite_sizes: tuple[int, ...] = (2, 3, 4)
    top_rate: float = 0.15
    zipf: float = 0.5
    max_cosine: float = 1.0
    floor: float = 0.2
    spread: float = 0.4
    noise: float = 0.02
    topics: int = 1
    boost: float = 1.0
    document_length: int = 64


@dataclass(frozen=True)
class World:
    """m features with their truth; E = m + c events, composites last.

    directions: float32 [m, d], unit rows. rates: float64 [E], of each event; a child's is given that its parent is
    on, a sense's is that of word and sense together. home: int32 [E], topic. parent, group, word, sense: int32 [m],
    -1 for none; a parent has a lower number than its children. loading: float64 [m], of the group's factor. members:
    the features of each composite.
    """

    spec: WorldSpec
    directions: np.ndarray
    rates: np.ndarray
    home: np.ndarray
    parent: np.ndarray
    group: np.ndarray
    loading: np.ndarray
    word: np.ndarray
    sense: np.ndarray
    members: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        rates = self.topic_rates()
        all_words = rates[:, : self.n_features][:, self.word >= 0].sum(1)
        if rates.min() < 0 or max(rates.max(), all_words.max(initial=0)) > 1:
            raise ValueError(
                "a rate, or the rates of all words together, lie outside [0, 1] in some topic: lower top_rate or boost"
            )

    @property
    def n_features(self) -> int:
        return len(self.directions)

    def topic_rates(self) -> np.ndarray:
        """Rate of each event in each topic: float64 [topics, E]; the mean over topics is `rates`.

        A child's stays the same.
        """
        topics, boost = self.spec.topics, self.spec.boost
        if topics == 1:
            return self.rates[None, :].copy()
        elsewhere = (topics - boost) / (topics - 1)
        factor = np.where(np.arange(topics)[:, None] == self.home[None, :], boost, elsewhere)
        factor[:, : self.n_features][:, self.parent >= 0] = 1
        return factor * self.rates

    def mixing(self) -> np.ndarray:
        """float32 [E, m]: 1 where an event turns a feature on.

        True activations are event strengths times this matrix.
        """
        out = np.zeros((len(self.rates), self.n_features), np.float32)
        out[: self.n_features] = np.eye(self.n_features)
        for number, members in enumerate(self.members):
            out[self.n_features + number, list(members)] = 1
        return out


def plant(spec: WorldSpec, seed: int) -> World:
    """The world of a specification: directions, ranks, homes and members are drawn from `seed`.

    Raises ValueError for a specification that cannot be met.
    """
    _check(spec)
    rng = np.random.default_rng(seed)
    senses = len(spec.sense_shares)
    counts = [
        spec.independent,
        spec.groups * spec.group_size,
        spec.parents,
        spec.parents * spec.children,
        spec.words * senses,
        spec.atoms,
    ]
    kind = np.repeat(np.arange(6), counts)
    m = len(kind)
    parent, group, word, sense = (np.full(m, -1, np.int32) for _ in range(4))
    loading = np.zeros(m)
    grouped, parents, children, words, atoms = (np.flatnonzero(kind == number) for number in range(1, 6))
    group[grouped] = np.arange(len(grouped)) // spec.group_size
    loading[grouped] = np.sqrt(abs(spec.rho)) * np.where((np.arange(len(grouped)) % 2 == 1) & (spec.rho < 0), -1, 1)
    parent[children] = np.repeat(parents, spec.children)
    word[words], sense[words] = np.arange(len(words)) // senses, np.arange(len(words)) % senses
    sizes = np.resize(spec.composite_sizes, spec.composites)
    members = tuple(tuple(sorted(rng.choice(atoms, size, replace=False).tolist())) for size in sizes)
    rates, home = _rates_and_homes(spec, parent, word, sense, rng)
    directions = _directions(spec, word, rng)
    return World(spec, directions, rates, home, parent, group, loading, word, sense, members)


def _rates_and_homes(
    spec: WorldSpec, parent: np.ndarray, word: np.ndarray, sense: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(rates float64 [E], homes int32 [E]) of every event. Each unit has one rank and one home: the senses of a word
    share them, and children have neither.
    """
    m, c = len(word), spec.composites
    unit = np.append(np.where(word >= 0, m + c + word, np.arange(m)), m + np.arange(c))
    drawn = np.append(parent < 0, np.ones(c, bool))
    units, number = np.unique(unit[drawn], return_inverse=True)
    rates, home = np.full(m + c, spec.child_share), np.zeros(m + c, np.int32)
    rates[drawn] = (spec.top_rate / (1 + rng.permutation(len(units))) ** spec.zipf)[number]
    home[drawn] = rng.integers(spec.topics, size=len(units))[number]
    senses = np.flatnonzero(word >= 0)
    rates[senses] *= np.asarray(spec.sense_shares)[sense[senses]]
    return rates, home


def _directions(spec: WorldSpec, word: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit rows float32 [m, d], each drawn again until its |cos| with the earlier ones is small enough. The senses of a
    word are drawn together.
    """
    out = np.zeros((len(word), spec.d))
    start = 0
    while start < len(word):
        for _ in range(TRIES):
            rows = _random_unit(rng, spec.d) if word[start] < 0 else _senses(rng, spec)
            if np.abs(out[:start] @ rows.T).max(initial=0) <= spec.max_cosine:
                break
        else:
            raise ValueError(
                f"no room for {len(word)} directions with |cos| <= {spec.max_cosine} in {spec.d} dimensions"
            )
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out.astype(np.float32)


def _random_unit(rng: np.random.Generator, d: int) -> np.ndarray:
    row = rng.standard_normal((1, d))
    return row / np.linalg.norm(row)


def _senses(rng: np.random.Generator, spec: WorldSpec) -> np.ndarray:
    """g_s = sqrt(c) e + sqrt(1 - c) u_s with e and all u_s orthonormal, so cos(g_s, g_t) = c. [senses, d]."""
    frame = np.linalg.qr(rng.standard_normal((spec.d, len(spec.sense_shares) + 1)))[0].T
    return np.sqrt(spec.sense_cosine) * frame[:1] + np.sqrt(1 - spec.sense_cosine) * frame[1:]


def _check(spec: WorldSpec) -> None:
    one_feature = any((spec.independent, spec.groups, spec.parents, spec.words, spec.atoms))
    pairs_where_negative = spec.rho >= 0 or spec.group_size == 2
    shares = spec.sense_shares
    conditions = {
        "a planted world needs at least one feature": one_feature,
        "rho must lie in (-1, 1), and groups have 2 features where it is negative": -1 < spec.rho < 1
        and pairs_where_negative,
        "sense_shares must be positive and sum to 1": min(shares) > 0 and abs(sum(shares) - 1) <= 1e-9,
        "d must exceed the number of senses": spec.words == 0 or spec.d > len(shares),
        "sense_cosine must lie in [0, 1]": 0 <= spec.sense_cosine <= 1,
        "there must be at least as many atoms as the largest composite has parts": spec.composites == 0
        or max(spec.composite_sizes) <= spec.atoms,
        "boost must lie in [1, topics]": 1 <= spec.boost <= spec.topics,
        "floor must lie in [0, 1)": 0 <= spec.floor < 1,
    }
    for message, holds in conditions.items():
        if not holds:
            raise ValueError(message)
