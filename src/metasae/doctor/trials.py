"""Timed trials of the harvest and of training an arm, on a small piece of each. `measure_trial.py` has the trial of
measuring.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from metasae.arms.train import cores_for
from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import ActivationCache
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.text import text as texts
from metasae.data.text.records import Document
from metasae.data.text.windows import tokenise
from metasae.doctor.estimate import BYTES
from metasae.doctor.machine import resident
from metasae.errors import UserError
from metasae.recipe.recipe import Harvest, Recipe, Text
from metasae.train.loop import LOG_EVERY
from metasae.train.trainer import Trainer

# The least text to read. Several documents are needed, as each belongs to one split.
CHARACTERS, DOCUMENTS = 400_000, 40
# Batches to harvest, and the seconds after which fewer or smaller batches are enough.
BATCHES, SECONDS = 6, 8.0
# The most tokens for calibrating and measuring, and the most bytes on the disk.
HELD_OUT, CACHE_BYTES = 8192, 128 << 20
# The most tokens of each split of a planted world.
PLANTED = 65_536
# Primary steps that are timed, untimed steps before them, and steps in a block, which is followed by meta steps.
STEPS, WARM_UP, BLOCK = 20, 3, 5
# Steps are timed for at least and at most this many seconds; one block is always finished.
LEAST_SECONDS, MOST_SECONDS = 1.0, 8.0


def now(device: torch.device) -> float:
    """The time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_use(device: torch.device) -> int:
    """Bytes in use on the device, for a later call of `grown`."""
    if device.type != "cuda":
        return resident()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def grown(device: torch.device, before: int) -> int:
    """The bytes by which the device's peak has grown since. On a CPU those by which the process has, as it keeps what
    it freed (`metasae.device.keep_freed_memory`).
    """
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()
    return max(peak - before, 0)


def try_harvest(host: Host, wanted: Recipe, folder: Path) -> tuple[dict, ActivationCache]:
    """Harvests some of the recipe's text into `folder`; returns (its times, the cache).

    Times in seconds: first, until the first document; text, per token that is read; forward, per token that is
    harvested (tokenised, read by the model and written). n_tokens: tokens on which forward was timed. memory: bytes
    that one full batch takes on the device. Raises UserError if the run's own harvest would.
    """
    if host.max_context and wanted.text.context > host.max_context:
        raise UserError(
            f"text.context = {wanted.text.context} is more than the model reads; "
            f"set text.context={host.max_context} or less"
        )
    documents, first, reading = _some_text(wanted.text)
    tokens = [ids for _, _, ids in tokenise(host.tokenizer, enumerate(documents), host.frame)]
    spec, text, counts = _sample(host, wanted, documents, tokens)
    before, start = in_use(host.device), now(host.device)
    cache = harvest(host, text, spec, folder, counts, documents=documents)
    n_tokens = sum(counts.values())
    trial = {
        "first": first,
        "text": reading / max(sum(map(len, tokens)), 1),
        "forward": (now(host.device) - start) / n_tokens,
        "n_tokens": n_tokens,
        "memory": grown(host.device, before) * max(wanted.harvest.batch_tokens // spec.batch_tokens, 1),
    }
    return trial, cache


def try_planting(wanted: Recipe) -> tuple[dict, PlantedCache]:
    """Draws some tokens of a planted world; returns (times as of `try_harvest`, the sample). Raises UserError for an
    impossible world.
    """
    tokens = {split: min(count, PLANTED) for split, count in wanted.split_tokens.items()}
    start = time.perf_counter()
    world = PlantedCache(wanted.planted, tokens)
    first, start, n_tokens = time.perf_counter() - start, time.perf_counter(), sum(tokens.values())
    for split in tokens:
        world.split(split)
    drawing = (time.perf_counter() - start) / n_tokens
    return {"first": first, "text": 0.0, "forward": drawing, "n_tokens": n_tokens, "memory": 0}, world


def harvest_seconds(trial: dict, wanted: Recipe) -> float:
    """Estimated seconds of the whole harvest. The source is read until the last split is full; documents of splits that
    are full already are read and skipped.
    """
    tokens, text = wanted.split_tokens, wanted.text
    shares = {"calibration": text.calibration_share, "evaluation": text.evaluation_share}
    shares["train"] = 1 - sum(shares.values())
    read = max(count / shares[split] for split, count in tokens.items())
    return trial["first"] + read * trial["text"] + sum(tokens.values()) * trial["forward"]


def _some_text(text: Text) -> tuple[list[Document], float, float]:
    """(documents, seconds until the first, seconds for the rest). Raises UserError if there is no text."""
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
    host: Host, wanted: Recipe, documents: list[Document], tokens: list
) -> tuple[Harvest, Text, dict[str, int]]:
    """A sample that takes about SECONDS to harvest: (settings, the text with larger held-out shares, tokens of each
    split).
    """
    text = wanted.text.model_copy(update={"calibration_share": 0.25, "evaluation_share": 0.25})
    there = dict.fromkeys(texts.SPLITS, 0)
    for document, ids in zip(documents, tokens, strict=True):
        there[texts.split_of(document, text)] += len(ids)
    batch, context = wanted.harvest.batch_tokens, wanted.text.context
    room = CACHE_BYTES // (host.d * BYTES[wanted.harvest.dtype])
    total = max(min(BATCHES * batch, int(_rate(host, wanted) * SECONDS), room), context)
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


def _rate(host: Host, wanted: Recipe) -> float:
    """Tokens per second of the model after a first pass, on windows that repeat one token."""
    rows = max(wanted.harvest.batch_tokens // 8 // wanted.text.context, 1)
    ids = torch.zeros(rows, wanted.text.context, dtype=torch.long)
    host.activations(ids[:1], torch.ones_like(ids[:1]))
    start = now(host.device)
    host.activations(ids, torch.ones_like(ids))
    return ids.numel() / max(now(host.device) - start, 1e-6)


def try_arm(
    wanted: Recipe, arm: str, next_batch: Callable[[], Tensor], b_dec_D: Tensor, device: str = "cpu"
) -> tuple[dict, Trainer]:
    """Times steps from the middle of an arm's training, after k has fallen and with its penalties, without the first
    steps; returns (the trial, the trainer after it).

    In seconds: start, to make the trainer; step, the mean of a primary step with its batch and its share of penalties;
    meta, the median of a meta step, None without a meta SAE; seconds, estimated for all steps of a run. n_primary,
    n_meta: steps of a whole run. n_steps: primary steps that were timed. memory: bytes that training took on the
    device.
    """
    with cores_for(wanted, device):
        on, train = torch.device(device), wanted.train
        before, start = in_use(on), now(on)
        trainer = Trainer(wanted, arm, 0, b_dec_D, device)
        starting = now(on) - start
        settling = max(train.penalty_start, wanted.sae.k_anneal if wanted.sae.k_start else 0.0)
        trainer.done.primary = settled = round(settling * (trainer.total_primary - 1))
        for _ in range(WARM_UP):
            trainer.primary_step(next_batch())
        _meta_phase(trainer, 1)
        seconds, count, meta = 0.0, 0, []
        begin = now(on)
        while count < BLOCK or (now(on) - begin < (LEAST_SECONDS if count >= STEPS else MOST_SECONDS)):
            start = now(on)
            for _ in range(BLOCK):
                if trainer.done.primary >= trainer.total_primary:
                    trainer.done.primary = settled
                trainer.primary_step(next_batch(), with_penalty=count % LOG_EVERY == 0)
                count += 1
            seconds += now(on) - start
            meta.append(_meta_phase(trainer, min(train.n_meta_steps, BLOCK)))
    trial = {
        "start": starting,
        "step": seconds / count,
        "meta": median(meta) if trainer.meta else None,
        "n_primary": trainer.total_primary,
        "n_meta": trainer.total_meta,
        "n_steps": count,
        "memory": grown(on, before),
    }
    steps = trial["n_primary"] * trial["step"] + trial["n_meta"] * (trial["meta"] or 0.0)
    return trial | {"seconds": starting + steps}, trainer


def _meta_phase(trainer: Trainer, steps: int) -> float:
    """Seconds per meta step; the first step also prepares the decoder rows for the others. 0 without a meta SAE."""
    start = now(trainer.device)
    for _ in range(steps if trainer.meta else 0):
        trainer.meta_step()
    return (now(trainer.device) - start) / steps
