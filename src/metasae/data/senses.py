"""Words in sentences, each tagged with its sense: the tagged occurrences in files, and the model's activations on them.

A file holds one JSON object a line with the keys word, sense, before, target and after (`metasae.data.tagged`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

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
from metasae.data.text.windows import Window
from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress, Task

MINIMUM = 20
NO_TOKEN, TOO_LONG, REPEATED = (
    "the target has no token",
    "the target is longer than the window",
    "the same sentence again",
)


@dataclass(frozen=True)
class Occurrence:
    """One tagged word: characters `start` to `stop` of `sentence` are the target."""

    word: str
    sense: str
    sentence: str
    start: int
    stop: int


@dataclass(frozen=True)
class SenseActivations:
    """Activations on T occurrences of one word, in the order of the file.

    senses: the names of its S senses, at least two, sorted. x: float32 [T, d], at the target's last token. sense:
    int64 [T], numbers into `senses`. sentence: int64 [T], equal where two occurrences stand in the same sentence.
    skipped: reason -> occurrences left out. rare: sense -> occurrences, those with too few examples. point: the hook
    point.
    """

    word: str
    senses: tuple[str, ...]
    x: Tensor
    sense: np.ndarray
    sentence: np.ndarray
    skipped: dict[str, int]
    rare: dict[str, int]
    point: str

    @property
    def n_tokens(self) -> int:
        return len(self.sense)

    @property
    def sizes(self) -> np.ndarray:
        """Occurrences of each sense: int64 [S]."""
        return np.bincount(self.sense, minlength=len(self.senses))


def sense_files(path: str | Path) -> list[Path]:
    """The files at a path (`metasae.data.tagged.tagged_files`)."""
    return tagged_files(path, "word senses")


def read_senses(file: str | Path) -> Iterator[Occurrence]:
    """The occurrences of one file. Raises UserError as `metasae.data.tagged.read_tagged`."""
    for record in read_tagged(file, ("word", "sense")):
        yield Occurrence(record["word"], record["sense"], *sentence_of(record))


def sense_activations(
    host: Host, files: Iterable[str | Path], context: int = 128, minimum: int = MINIMUM, progress: Progress = SILENT
) -> list[SenseActivations]:
    """The activations at the hook point on every tagged word of `files`, one entry per word, by name.

    Every sentence runs alone, with the special tokens that the model's windows have. Of a target of several tokens the
    last one counts, as only there has a causal model read the whole word, and an SAE is trained on single tokens and
    not on means. A sentence longer than `context` tokens (or than the model holds) is cut round the target. These are
    left out and counted: a sentence that occurred before, a target without a token or longer than the window, and
    senses with fewer than `minimum` examples, as each half of the examples must have some. A word is left out where
    fewer than two senses remain, and `progress` says so. Memory: 4 d bytes per occurrence. Raises UserError for files
    that cannot be read (see `read_senses`), a tokenizer that does not give the places of its tokens, and when no word
    remains.
    """
    files = list(files)
    occurrences: dict[str, list[Occurrence]] = defaultdict(list)
    for occurrence in chain.from_iterable(map(read_senses, files)):
        occurrences[occurrence.word].append(occurrence)
    words = []
    with progress.task("reading sentences with known senses", sum(map(len, occurrences.values())), "sentences") as task:
        for word in sorted(occurrences):
            activations = _of_word(host, word, occurrences[word], context, minimum, task)
            if activations is None:
                progress.say(f"'{word}' has fewer than two senses with {minimum} examples and is left out")
            else:
                words.append(activations)
    if not words:
        raise UserError(
            f"no word in {', '.join(map(str, files)) or 'no files'} has two senses with {minimum} examples each; "
            "tag more sentences"
        )
    return words


def _of_word(
    host: Host, word: str, occurrences: list[Occurrence], context: int, minimum: int, task: Task
) -> SenseActivations | None:
    unique = list(dict.fromkeys(occurrences))
    skipped = Counter({REPEATED: len(occurrences) - len(unique)})
    placed = []
    for occurrence, place in zip(unique, target_windows(host, unique, context), strict=True):
        if isinstance(place, str):
            skipped[place] += 1
        else:
            placed.append((occurrence, *place))
    sizes = Counter(occurrence.sense for occurrence, _, _ in placed)
    senses = tuple(sorted(sense for sense, count in sizes.items() if count >= minimum))
    if len(senses) < 2:
        task.advance(len(occurrences))
        return None
    kept = [(occurrence, window, position) for occurrence, window, position in placed if occurrence.sense in senses]
    task.advance(len(occurrences) - len(kept))
    numbers = {sentence: number for number, sentence in enumerate(dict.fromkeys(entry[0].sentence for entry in kept))}
    return SenseActivations(
        word=word,
        senses=senses,
        x=activations_in(host, [window for _, window, _ in kept], [np.array([place]) for _, _, place in kept], task),
        sense=np.array([senses.index(occurrence.sense) for occurrence, _, _ in kept], dtype=np.int64),
        sentence=np.array([numbers[occurrence.sentence] for occurrence, _, _ in kept], dtype=np.int64),
        skipped={reason: count for reason, count in skipped.items() if count},
        rare={sense: count for sense, count in sorted(sizes.items()) if count < minimum},
        point=host.point,
    )


def target_windows(host: Host, occurrences: Sequence[Occurrence], context: int) -> Iterator[tuple[Window, int] | str]:
    """For each occurrence (window, position of the target's last token within the window's tokens), or the reason why
    there is none.

    A token belongs to the target when it holds one of its characters.
    """
    room, sentences = room_of(host, context), [occurrence.sentence for occurrence in occurrences]
    tokens_of = tokenised(host, sentences, "word senses")
    for number, (occurrence, (ids, offsets)) in enumerate(zip(occurrences, tokens_of, strict=True)):
        own = tokens_within(offsets, occurrence.start, occurrence.stop)
        if not own:
            yield NO_TOKEN
        elif own[-1] + 1 - own[0] > room:
            yield TOO_LONG
        else:
            first = _cut(own[0], own[-1] + 1, len(ids), room, host.causal)
            tokens = np.asarray(ids[first : first + room], dtype=np.int32)
            yield Window(tokens, number, first), own[-1] - first


def _cut(start: int, stop: int, length: int, room: int, causal: bool) -> int:
    """The first token of a window of `room` tokens with the target in its middle.

    In a causal model, which reads nothing after the target, the target stands at the window's end.
    """
    spare = room - (stop - start)
    before = spare if causal else spare // 2
    return max(min(start - before, length - room), 0)
