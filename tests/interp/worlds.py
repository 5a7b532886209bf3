"""Small texts with firings, and planted worlds in which some latents are blends, for the tests of auto-interp."""

from dataclasses import replace

import numpy as np

from metasae.data.planted.planted import WorldSpec, plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.interp.excerpts import Text
from metasae.measures.firing.by_latent import by_latent
from metasae.measures.firing.firings import Firings
from metasae.measures.truth.truth import as_firings
from sparse_firings import firings_from
from tools.subjects import dictionary


def random_firings(seed=0, lengths=(40, 3, 57, 25, 64, 33, 80, 41), n=9, vocabulary=11, gap=True) -> Firings:
    """Documents of uneven length, few token ids, tied strengths; latent 0 is dead, 1 always on, 2 fires once.

    gap: positions jump in a document.
    """
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(lengths)) * 3, lengths).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    if gap:
        positions[-20:] += 5
    t = len(documents)
    on = rng.random((t, n)) < rng.uniform(0.02, 0.3, n)
    on[:, 0], on[:, 1], on[:, 2] = False, True, False
    on[t // 2, 2] = True
    tokens = rng.integers(vocabulary, size=t).astype(np.int32)
    return firings_from(on, rng.integers(1, 5, (t, n)) / 2, documents, tokens, positions)


def text_of(firings: Firings, seed=0) -> Text:
    return Text(
        firings.documents,
        firings.tokens,
        firings.positions,
        lambda places: [f" {int(firings.tokens[place])}" for place in places],
        seed,
    )


def count_of(store) -> int:
    """How many replies a store holds."""
    return store._connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0]


def view_of(firings: Firings):
    return by_latent(firings)


PLAN = WorldSpec(
    d=48,
    independent=12,
    words=8,
    sense_shares=(0.34, 0.33, 0.33),
    sense_cosine=0.5,
    top_rate=0.06,
    zipf=0.1,
    max_cosine=0.7,
    noise=0.02,
)


def planted(n_tokens=24_000, seed=0):
    """(split, firings, atoms, blends): one latent per feature, but senses 0 and 1 of every second word share one.

    A blend fires on its word in two of three senses, so the word describes it best and is wrong about the third.
    atoms, blends: latents; the atoms listed are senses, so that they meet their word in other senses.
    """
    split = PlantedSplit(plant(PLAN, seed), n_tokens, seed)
    separate = dictionary(split).firings
    dense, world = separate.csr.toarray(), split.world
    keep = np.ones(dense.shape[1], bool)
    blends = []
    for word in range(0, PLAN.words, 2):
        first, second = (int(np.flatnonzero((world.word == word) & (world.sense == sense))[0]) for sense in (0, 1))
        dense[:, first] += dense[:, second]
        keep[second] = False
        blends.append(first)
    place = np.cumsum(keep) - 1
    atoms = [int(place[f]) for f in np.flatnonzero(world.word >= 0) if world.word[f] % 2 == 1]
    from scipy.sparse import csr_array

    firings = as_firings(csr_array(dense[:, keep]), split)
    return split, replace(firings, documents=split.documents), atoms, [int(place[f]) for f in blends]
