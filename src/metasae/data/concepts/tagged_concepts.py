"""Concepts from a user's own tagged sentences, and the model's activations on all tokens of these sentences.

A line of a file holds the keys concept, before, target and after, and may hold family (`metasae.data.tagged`). A
concept is on at the tokens of its targets, and off at all other tokens of all sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from metasae.data.concepts.labels import Bank, Concept
from metasae.data.model.host import Host
from metasae.data.tagged import (
    activations_in,
    read_tagged,
    room_of,
    sentence_of,
    tagged_files,
    tokenised,
    tokens_within,
)
from metasae.data.text.windows import cut
from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress

FAMILY = "yours"
# Sentence -> (characters start to stop, concept) of each of its targets.
Tags = dict[str, list[tuple[int, int, Concept]]]


@dataclass(frozen=True)
class TaggedConcepts:
    """T tokens of tagged sentences.

    bank: the concepts, in the order of the files, with labels [T, C]. x: float32 [T, d], activations at the hook point.
    sentence: int64 [T], equal for the tokens of one sentence.
    """

    bank: Bank
    x: Tensor
    sentence: np.ndarray


def tagged_concepts(host: Host, path: str | Path, context: int = 128, progress: Progress = SILENT) -> TaggedConcepts:
    """Reads the concepts of a file, or of the files of a folder, with the model's activations on all their tokens.

    Every sentence runs alone, with the special tokens that the model's windows have; one that is longer than `context`
    tokens runs in several windows. Lines with the same sentence are one sentence with several targets. Memory: 4 d
    bytes per token. Raises UserError for files that cannot be read (see `metasae.data.tagged.read_tagged`), that hold
    no line or no target with a token, and for a tokenizer that does not give the places of its tokens.
    """
    files = tagged_files(path, "labelled sentences")
    tags = read_tags(files)
    if not tags:
        raise UserError(f"{', '.join(map(str, files))} holds no labelled sentence; give one JSON object a line")
    sentences, room = list(tags), room_of(host, context)
    windows, on_tokens, numbers = [], [], []
    concepts = {concept: number for number, concept in enumerate(_concepts_of(tags))}
    first = 0
    for number, (ids, offsets) in enumerate(tokenised(host, sentences, "labelled sentences")):
        for start, stop, concept in tags[sentences[number]]:
            on_tokens += [(first + place, concepts[concept]) for place in tokens_within(offsets, start, stop)]
        windows += cut(np.asarray(ids, np.int32), number, room)
        numbers.append(np.full(len(ids), number, np.int64))
        first += len(ids)
    if not on_tokens:
        raise UserError(f"no target in {', '.join(map(str, files))} has a token; check the key target")
    everywhere = [np.arange(len(window)) for window in windows]
    with progress.task("reading labelled sentences", len(windows), "windows") as task:
        x = activations_in(host, windows, everywhere, task)
    return TaggedConcepts(Bank(list(concepts), _labels(on_tokens, first, len(concepts))), x, np.concatenate(numbers))


def read_tags(files: Sequence[Path]) -> Tags:
    """The targets of all sentences. Raises UserError as `metasae.data.tagged.read_tagged`."""
    tags: Tags = {}
    for record in chain.from_iterable(read_tagged(file, ("concept",), ("family",)) for file in files):
        sentence, start, stop = sentence_of(record)
        concept = Concept(record["concept"], record.get("family", FAMILY))
        tags.setdefault(sentence, []).append((start, stop, concept))
    return tags


def _concepts_of(tags: Tags) -> list[Concept]:
    return list(dict.fromkeys(concept for targets in tags.values() for _, _, concept in targets))


def _labels(on_tokens: list[tuple[int, int]], n_tokens: int, n_concepts: int) -> csr_array:
    """(token, concept), of which some may be there twice -> zeros and ones [T, C]."""
    tokens, concepts = np.unique(np.array(on_tokens), axis=0).T
    return csr_array((np.ones(len(tokens), np.float32), (tokens, concepts)), shape=(n_tokens, n_concepts))
