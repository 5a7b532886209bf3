"""Tokens drawn from a planted world, and such worlds in place of an activation cache (`text.source = "planted"`), so
that a run is compared with the known truth.
"""

from dataclasses import fields
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from scipy.special import ndtri

from metasae.data.cache.activations import fingerprint_of
from metasae.data.planted.planted import World, WorldSpec, plant
from metasae.data.split import Rows
from metasae.data.text.text import SPLITS
from metasae.errors import UserError, nearest

# Documents are drawn in chunks of at least this many tokens, each from a generator of its own, so that a longer sample
# begins with the shorter one.
CHUNK = 4096
# Token ids from the number of words on: tokens that hold no word.
OTHER_TOKENS = 100


class PlantedSplit(Rows):
    """T tokens of a world, in documents of `spec.document_length` tokens (the last one may be cut).

    x: float32 [T, d]. tokens, documents, positions: int32 [T]; a token that holds word w has the id w, others have
    ids from the number of words on. senses: int32 [T], of the word that a token holds, -1 where it holds none.
    events: csr float32 [T, E], strength of each event that happened. topics: int32 [T].
    """

    def __init__(self, world: World, n_tokens: int, seed: int, name: str = "train"):
        """Everything random comes from `seed`; a world's splits need different ones."""
        self.world, self.name = world, name
        documents = -(-CHUNK // world.spec.document_length)
        # at least one, so that a split without tokens has the shapes of any other
        chunks = max(1, -(-n_tokens // (documents * world.spec.document_length)))
        drawn = [_chunk(world, documents, np.random.default_rng([seed, chunk])) for chunk in range(chunks)]
        events, topics, others, noise = zip(*drawn, strict=True)
        self.events = vstack(events, format="csr")[:n_tokens]
        self.topics = np.concatenate(topics)[:n_tokens]
        clean = self.activations @ world.directions
        super().__init__(torch.from_numpy(clean + np.concatenate(noise)[:n_tokens]))
        place = np.arange(n_tokens, dtype=np.int32)
        self.documents, self.positions = place // world.spec.document_length, place % world.spec.document_length
        word, self.senses = self._word_and_sense()
        self.tokens = np.where(word >= 0, word, np.concatenate(others)[:n_tokens]).astype(np.int32)

    @cached_property
    def activations(self):
        """The truth: csr float32 [T, m], strength of every feature that is on, features rising within a token."""
        strengths = (self.events @ csr_array(self.world.mixing())).tocsr()
        strengths.sort_indices()
        return strengths

    def _word_and_sense(self) -> tuple[np.ndarray, np.ndarray]:
        """The word that each token holds and the sense it has there, int32 [T] each; -1 where it holds none."""
        word, sense = (np.full(self.n_tokens, -1, np.int32) for _ in range(2))
        where, event = self.events.nonzero()
        of_word = np.isin(event, np.flatnonzero(self.world.word >= 0))
        where, event = where[of_word], event[of_word]
        word[where], sense[where] = self.world.word[event], self.world.sense[event]
        return word, sense


def _chunk(world: World, documents: int, rng: np.random.Generator):
    """Whole documents: (events csr [B, E], topics int32 [B], ids for tokens without a word int32 [B], noise [B, d])."""
    spec = world.spec
    topics = np.repeat(rng.integers(spec.topics, size=documents), spec.document_length).astype(np.int32)
    on = _happened(world, topics, rng)
    where, event = np.nonzero(on)
    strength = spec.floor + (1 - spec.floor) * np.exp(
        spec.spread * rng.standard_normal(len(event)) - spec.spread**2 / 2
    )
    events = csr_array((strength.astype(np.float32), (where, event)), shape=on.shape)
    others = world.word.max(initial=-1) + 1 + rng.integers(OTHER_TOKENS, size=len(topics))
    noise = spec.noise * rng.standard_normal((len(topics), spec.d), dtype=np.float32)
    return events, topics, others.astype(np.int32), noise.astype(np.float32)


def _happened(world: World, topics: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which events happen on tokens with these topics: bool [B, E]."""
    table = world.topic_rates()
    on = rng.random((len(topics), len(world.rates))) < table[topics]
    grouped = np.flatnonzero(world.group >= 0)
    if len(grouped):
        factors = rng.standard_normal((len(topics), world.group.max() + 1))[:, world.group[grouped]]
        loading = world.loading[grouped]
        z = loading * factors + np.sqrt(1 - loading**2) * rng.standard_normal(factors.shape)
        on[:, grouped] = z < ndtri(table[:, grouped])[topics]
    words = np.flatnonzero(world.word >= 0)
    if len(words):
        # one draw decides which word in which sense, or none
        ends = np.cumsum(table[:, words], axis=1)[topics]
        chosen = (rng.random(len(topics))[:, None] >= ends).sum(axis=1)
        on[:, words] = chosen[:, None] == np.arange(len(words))
    for child in np.flatnonzero(world.parent >= 0):
        on[:, child] &= on[:, world.parent[child]]
    return on


class PlantedCache:
    """The interface of `ActivationCache`; splits are drawn when first asked for.

    world, and each split's `activations`: the truth.
    """

    def __init__(self, values: dict, tokens: dict[str, int]):
        """Plants the world of a recipe. values: the recipe's table `planted`: `seed` and the fields of `WorldSpec`.
        Raises UserError for an unknown field or an impossible value.
        """
        values = dict(values)
        self.seed, self.tokens = values.pop("seed", 0), tokens
        known = [field.name for field in fields(WorldSpec)]
        wrong = next((key for key in values if key not in known), None)
        if wrong is not None:
            raise UserError(f"unknown key 'planted.{wrong}'{nearest(wrong, known)}")
        try:
            fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            self.world = plant(WorldSpec(**{"d": 64} | fixed), self.seed)
        except (TypeError, ValueError) as error:
            raise UserError(f"planted: {error}") from None
        self.d = self.world.spec.d
        # without the number of tokens, as a longer sample begins with the shorter one
        self.fingerprint = fingerprint_of({"planted": values, "seed": self.seed})
        self.text = "none, but a planted world"
        self._splits: dict[str, PlantedSplit] = {}

    def split(self, name: str) -> PlantedSplit:
        if name not in self._splits:
            # each split is drawn from a generator of its own
            self._splits[name] = PlantedSplit(
                self.world, self.tokens[name], 3 * self.seed + SPLITS.index(name) + 1, name
            )
        return self._splits[name]
