"""Planted features judged as spike-ins and as a bank of concepts are: by how latents fire alone.

The truth of a planted world is known in full, so these scores tell whether the truth measures for real models
(`metasae.measures.truth.spike_scores`, `metasae.measures.truth.concepts`) are fooled where the answer is known.
"""

import numpy as np

from metasae.data.concepts.labels import Bank, Concept
from metasae.data.planted.planted import World
from metasae.data.spikes.draw import Spike
from metasae.measures.truth.concepts import score_concepts
from metasae.measures.truth.spike_scores import ones, score_spikes
from metasae.measures.truth.truth import unit
from tools.subjects import Subject


def spikes_of(world: World) -> list[Spike]:
    """Every planted feature as a spike-in of its kind; only kind and group are told.

    Of one group are the two senses of a word, a parent with its children, and features that are correlated. Every atom
    is a group by itself, so that a latent of a composite counts as a blend.
    """
    kinds, groups = ["concept"] * world.n_features, np.arange(world.n_features)
    for place in np.flatnonzero(world.parent >= 0):
        kinds[place], kinds[world.parent[place]] = "child", "parent"
        groups[place] = world.parent[place]
    for place in np.flatnonzero(world.word >= 0):
        kinds[place], groups[place] = "sense", world.n_features + world.word[place]
    first_group = 2 * world.n_features
    correlated = world.group >= 0
    groups[correlated] = first_group + world.group[correlated]
    atoms = sorted({atom for members in world.members for atom in members})
    for place in atoms:
        kinds[place], groups[place] = "atom", place
    return [Spike(kind, int(group), (), (), 1.0, 1.0) for kind, group in zip(kinds, groups, strict=True)]


def as_spikes(subject: Subject) -> dict:
    """`score_spikes` of the planted features; see there."""
    split = subject.split
    fires, directions = ones(subject.firings.csr), unit(split.world.directions)
    return score_spikes(
        spikes_of(split.world), split.activations, fires, split.documents, directions, unit(subject.rows)
    )


def as_concepts(subject: Subject) -> dict:
    """`score_concepts` of the planted features, without the ceiling; see there."""
    split = subject.split
    concepts = [Concept(f"feature {number}", "planted") for number in range(split.world.n_features)]
    return score_concepts(Bank(concepts, ones(split.activations)), subject.firings.csr, split.documents)
