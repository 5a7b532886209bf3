"""A small harvest, timed in its parts: reading the text, cutting it into tokens, the model's pass with writing."""

import time
from dataclasses import dataclass
from pathlib import Path

from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import ActivationCache
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.text import text as texts
from metasae.data.text.windows import cut, pad, tokenise
from metasae.doctor.clock import Clock, grown, in_use, now
from metasae.doctor.estimate import BYTES
from metasae.errors import UserError
from metasae.recipe import recipe
from metasae.recipe.recipe import Recipe

# Text to look at. Documents are needed in some number, since each belongs to one split.
CHARACTERS, DOCUMENTS = 400_000, 40
# Batches to run, and the seconds after which fewer or smaller ones are enough.
BATCHES, SECONDS = 6, 8.0
# Tokens for calibrating and measuring, and bytes on the disk, at most.
HELD_OUT, CACHE_BYTES = 8192, 128 << 20
# Tokens of each split of a planted world.
PLANTED = 65_536


@dataclass(frozen=True)
class HarvestTrial:
    """Seconds: first, until the first document is there; text and tokenise, per token; forward, per token in the model,
    with writing.

    n_tokens: on which forward was timed. memory: bytes that one full batch takes on the device.
    """

    first: float
    text: float
    tokenise: float
    forward: float
    n_tokens: int
    memory: int

    def seconds(self, wanted: Recipe) -> float:
        """Of the whole harvest. The source is read until the split that fills last is full, past documents of full
        splits.
        """
        tokens, text = wanted.split_tokens, wanted.text
        shares = {"calibration": text.calibration_share, "evaluation": text.evaluation_share}
        shares["train"] = 1 - sum(shares.values())
        read = max(count / shares[split] for split, count in tokens.items())
        return self.first + read * self.text + sum(tokens.values()) * (self.tokenise + self.forward)


def try_harvest(host: Host, wanted: Recipe, folder: Path) -> tuple[HarvestTrial, ActivationCache]:
    """Harvests some of the recipe's text into `folder`; (its times, the cache).

    Raises UserError where the run's own harvest would.
    """
    if host.max_context and wanted.text.context > host.max_context:
        raise UserError(
            f"text.context = {wanted.text.context} is more than the model holds; "
            f"set text.context={host.max_context} or less"
        )
    documents, first, reading = _some_text(wanted.text)
    start = time.perf_counter()
    tokens = [ids for _, _, ids in tokenise(host.tokenizer, enumerate(documents))]
    tokenising, n_read = time.perf_counter() - start, max(sum(map(len, tokens)), 1)
    spec, text, counts = _sample(host, wanted, documents, tokens)
    before, clock = in_use(host.device), Clock()
    start = time.perf_counter()
    cache = harvest(host, text, spec, folder, counts, clock, documents)
    end = time.perf_counter()
    (first_tick, n_first), *rest = clock.tasks[0].ticks
    last_tick, n_rest = (rest[-1][0], sum(amount for _, amount in rest)) if rest else (first_tick, 0)
    # the first batch warms up, so it counts only where it is the only one
    forward = (last_tick - first_tick) / n_rest if rest else (first_tick - start) / n_first
    # what comes after the last one is shared by all
    forward += (end - last_tick) / (n_first + n_rest)
    memory = grown(host.device, before) * max(wanted.harvest.batch_tokens // spec.batch_tokens, 1)
    return HarvestTrial(first, reading / n_read, tokenising / n_read, forward, n_first + n_rest, memory), cache


def try_planting(wanted: Recipe) -> tuple[HarvestTrial, PlantedCache]:
    """Draws some tokens of a planted world; (its times, the sample). Raises UserError for an impossible world."""
    tokens = {split: min(count, PLANTED) for split, count in wanted.split_tokens.items()}
    start = time.perf_counter()
    world = PlantedCache(wanted.planted, tokens)
    for split in ("calibration", "evaluation"):
        world.split(split)
    first, start = time.perf_counter() - start, time.perf_counter()
    world.split("train")
    drawing = (time.perf_counter() - start) / tokens["train"]
    return HarvestTrial(first, 0.0, 0.0, drawing, tokens["train"], 0), world


def _some_text(text: recipe.Text) -> tuple[list[str], float, float]:
    """(documents, seconds until the first, seconds for the rest). Raises UserError where there is no text."""
    start = time.perf_counter()
    documents, length, first = [], 0, start
    for document in texts.documents(text):
        first = first if documents else time.perf_counter()
        documents.append(document)
        length += len(document)
        if (length >= CHARACTERS and len(documents) >= DOCUMENTS) or length >= 5 * CHARACTERS:
            break
    if not documents:
        raise UserError(f"text.source '{text.source}' gives no documents; use another text")
    return documents, first - start, time.perf_counter() - first


def _sample(
    host: Host, wanted: Recipe, documents: list[str], tokens: list
) -> tuple[recipe.Harvest, recipe.Text, dict[str, int]]:
    """What takes about SECONDS to harvest: (settings, the text with larger held-out shares, tokens of each split)."""
    text = wanted.text.model_copy(update={"calibration_share": 0.25, "evaluation_share": 0.25})
    there = dict.fromkeys(texts.SPLITS, 0)
    for document, ids in zip(documents, tokens, strict=True):
        there[texts.split_of(document, text)] += len(ids)
    batch, context = wanted.harvest.batch_tokens, wanted.text.context
    room = CACHE_BYTES // (host.d * BYTES[wanted.harvest.dtype])
    total = max(min(BATCHES * batch, int(_rate(host, wanted, tokens) * SECONDS), room), context)
    most = min(HELD_OUT, total // 3)
    evaluation = min(most, wanted.measure.tokens, there["evaluation"])
    calibration = min(most, wanted.measure.calibration_tokens, there["calibration"])
    train = min(there["train"], total - evaluation - calibration)
    counts = {"train": train, "calibration": calibration, "evaluation": evaluation}
    if missing := [split for split, count in counts.items() if not count]:
        raise UserError(
            f"text.source '{wanted.text.source}' gives no {missing[0]} tokens in {len(documents)} documents; "
            "use a longer text"
        )
    return wanted.harvest.model_copy(update={"batch_tokens": min(batch, max(total // 4, context))}), text, counts


def _rate(host: Host, wanted: Recipe, tokens: list) -> float:
    """Tokens per second of the model on a small batch, after a first pass."""
    room = host.frame.room(wanted.text.context)
    windows = [window for number, ids in enumerate(tokens) for window in cut(ids, number, room)]
    some = windows[: max(wanted.harvest.batch_tokens // 8 // wanted.text.context, 1)]
    ids, mask, own = pad(some, host.frame, host.pad_id)
    host.activations(ids[:1], mask[:1])
    start = now(host.device)
    host.activations(ids, mask)
    return int(own.sum()) / max(now(host.device) - start, 1e-6)
