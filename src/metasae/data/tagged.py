"""Sentences with one tagged stretch of words, in JSONL files, and the model's activations on their tokens.

A line holds the keys before, target and after, and those of the tag. The sentence is before, target and after, joined
by spaces. The target is found by its place in the sentence, never by a search for its letters.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metasae.data.model.host import Host
from metasae.data.text.plain import MARK, Plain
from metasae.data.text.text import files_within
from metasae.data.text.windows import Window, pad
from metasae.encodings import UNPACKING, lines_of, readable
from metasae.errors import UserError
from metasae.progress.progress import Task

PLACE = ("before", "target", "after")
SUFFIXES = (".jsonl", ".jsonl.gz")
BATCH = 64


def tagged_files(path: str | Path, what: str) -> list[Path]:
    """The file itself, or the files of a folder that end with .jsonl or .jsonl.gz, by name.

    what: the tags, for the error. Raises UserError when there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    return files_within(path, "*", SUFFIXES, what, f"'{path}' is no file or folder of {what}")


def read_tagged(file: str | Path, tags: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The lines of one file, plain or gzipped, as dictionaries with the keys `tags`, before, target and after.

    optional: keys that a line may have too. Empty lines are passed over.

    Raises UserError naming the file and line where a line is no JSON object, lacks a key, holds something else than
    text, or an empty tag or target, and where the file cannot be read.
    """
    file, keys = Path(file), (*tags, *PLACE)
    number = 0
    try:
        for number, line in enumerate(lines_of(file), 1):
            if line.strip():
                record = json.loads(line)
                _check(record, keys, optional, f"{file}, line {number}")
                # JSON may escape letters one by one, even half of an emoji
                yield {key: readable(value) if isinstance(value, str) else value for key, value in record.items()}
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}, line {number} is no JSON ({error.msg}); write one object a line with the keys {', '.join(keys)}"
        ) from None
    except UNPACKING as error:
        raise UserError(f"{file} is damaged after line {number} ({error}); repair it or leave it out") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; check the file and its permissions") from None


def _check(record, keys: Sequence[str], optional: Sequence[str], where: str) -> None:
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, not an object; it needs the keys {', '.join(keys)}")
    for key in keys:
        if key not in record:
            raise UserError(f"{where} has no key '{key}'; it needs {', '.join(keys)}")
    for key in (*keys, *(key for key in optional if key in record)):
        if not isinstance(record[key], str):
            raise UserError(f"{where}: '{key}' must be text, not {type(record[key]).__name__}")
        if key not in ("before", "after") and not record[key].strip():
            raise UserError(f"{where}: '{key}' is empty; fill it or leave the line out")


def sentence_of(record: dict[str, str]) -> tuple[str, int, int]:
    """(sentence, start, stop): characters start to stop of the sentence are the target."""
    before = f"{record['before']} " if record["before"] else ""
    after = f" {record['after']}" if record["after"] else ""
    return before + record["target"] + after, len(before), len(before) + len(record["target"])


def room_of(host: Host, context: int) -> int:
    """A sentence's own tokens that fit into a window of `context` tokens, or as many as the model holds."""
    return host.frame.room(min(context, host.max_context or context))


def tokenised(host: Host, sentences: Iterable[str], what: str) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """For each sentence the ids of its tokens, without special tokens, and the characters (start, stop) of each token.

    what: the tags, for the error. Raises UserError for a tokenizer that does not give the places of its tokens.
    """
    if not host.tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of '{host.name}' does not give the places of its tokens in the text; "
            f"{what} need a fast tokenizer"
        )
    # letters are replaced one by one, as stretches are counted in letters
    return iter(Plain(host.tokenizer).placed([sentence.replace(MARK, "\ufffd") for sentence in sentences]))


def tokens_within(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Places of the tokens that hold any of the characters start to stop."""
    return [place for place, (first, last) in enumerate(offsets) if max(first, start) < min(last, stop)]


@torch.no_grad()
def activations_in(host: Host, windows: Sequence[Window], places: Sequence[np.ndarray], task: Task) -> Tensor:
    """Activations at some places of each window, in the order of the windows: float32 [sum of the places, d], on the
    CPU.

    places: of each window, int, among its own tokens. Windows run sorted by length, so that little is padding; the task
    moves on by one a window. Raises UserError for activations that are no numbers.
    """
    ends = np.cumsum([len(own) for own in places])
    rows = torch.empty(int(ends[-1]) if len(ends) else 0, host.d)
    order = np.argsort([-len(window) for window in windows], kind="stable")
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        ids, mask, _ = pad([windows[i] for i in batch], host.frame, host.pad_id)
        wanted = np.concatenate([places[i] for i in batch]) + len(host.frame.prefix)
        lines = np.repeat(np.arange(len(batch)), [len(places[i]) for i in batch])
        x_BTD = host.activations(ids, mask)
        to_device = (torch.from_numpy(index).to(host.device) for index in (lines, wanted))
        x_SD = x_BTD[tuple(to_device)].to("cpu", torch.float32)
        if not torch.isfinite(x_SD).all():
            raise UserError(
                f"the model gives NaN or inf activations at '{host.point}'; "
                "set model.dtype=fp32 or choose another hook.point"
            )
        targets = np.concatenate([np.arange(ends[i] - len(places[i]), ends[i]) for i in batch])
        rows[torch.from_numpy(targets)] = x_SD
        task.advance(len(batch))
    return rows
