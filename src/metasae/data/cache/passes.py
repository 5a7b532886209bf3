"""The model's forward passes over pools of windows, and where each row of activations is written.

Several ranks harvest one cache together. All know the pools. The batches of a pool are those that one process would
make; they are dealt out in turn, and each rank writes the activations of its batches to their place in the shards. So
the cache equals that of one process byte for byte, provided that the model gives the same bits on every rank.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from metasae.data.cache.cache import DTYPES
from metasae.data.cache.cache_writer import CacheWriter
from metasae.data.model.host import Host, activations_at
from metasae.data.text.windows import Pool, Window, pad
from metasae.errors import UserError
from metasae.progress.progress import Task
from metasae.ranks.ranks import ALONE, Ranks
from metasae.recipe import recipe


def run_pools(
    hosts: Sequence[Host],
    writers: Sequence[CacheWriter],
    pools: list[Pool],
    spec: recipe.Harvest,
    task: Task,
    ranks: Ranks = ALONE,
) -> None:
    """Writes the activations of a few pools, whose batches are dealt out to the ranks; returns when all is written.

    hosts, writers: one of each for every hook point. Windows run sorted by length, and each is written to its own
    place.
    """
    batches = []
    for pool in pools:
        if ranks.first:
            # this also lays out the shard files, before any rank writes activations into them
            _write_columns(writers, pool)
        lengths = np.array([len(window) for _, window, _ in pool])
        batches += [[pool[i] for i in numbers] for numbers in _batches(lengths, spec.batch_tokens)]
    ranks.wait()
    tokens = [sum(len(window) for _, window, _ in batch) for batch in batches]
    for number in range(ranks.rank, len(batches), ranks.size):
        _run_batch(hosts, writers, batches[number], spec)
        # the other ranks are about as far
        task.advance(sum(tokens[number : number + ranks.size]))
    ranks.wait()


def _write_columns(writers: Sequence[CacheWriter], pool: Pool) -> None:
    """Writes tokens, documents, positions int32 [T] of each split's windows, which are consecutive."""
    for split in writers[0].splits:
        own = [(window, row) for name, window, row in pool if name == split]
        if not own:
            continue
        windows = [window for window, _ in own]
        documents = np.array([window.document for window in windows], dtype=np.int32)
        positions = [np.arange(window.start, window.start + len(window), dtype=np.int32) for window in windows]
        columns = {
            "tokens": np.concatenate([window.tokens for window in windows]),
            "documents": np.repeat(documents, [len(window) for window in windows]),
            "positions": np.concatenate(positions),
        }
        for writer in writers:
            writer.splits[split].write_columns(own[0][1], columns)


def _batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Window numbers, longest first, in batches of at most batch_tokens tokens with padding, or of one window."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(batch_tokens // int(lengths[order[start]]), 1)
        yield order[start : start + count]
        start += count


def _run_batch(
    hosts: Sequence[Host],
    writers: Sequence[CacheWriter],
    batch: list[tuple[str, Window, int]],
    spec: recipe.Harvest,
) -> None:
    """Runs the model on one batch and writes its activations. batch: (split, window, the row of its first token) of
    each window.
    """
    windows = [window for _, window, _ in batch]
    ids, mask, own = pad(windows, hosts[0].frame, hosts[0].pad_id)
    for host, writer, x_BTD in zip(hosts, writers, activations_at(hosts, ids, mask), strict=True):
        x_TD = x_BTD[own.to(x_BTD.device)].to("cpu", DTYPES[spec.dtype])
        # a sum is quick to form, and finite only where all numbers are
        if not torch.isfinite(x_TD.sum(dtype=torch.float32)) and not torch.isfinite(x_TD).all():
            hint = "set harvest.dtype=bf16" if spec.dtype == "fp16" else "set model.dtype=fp32"
            raise UserError(
                f"the model gives NaN or inf activations at '{host.point}'; {hint} or choose another hook.point"
            )
        rows = x_TD.split([len(window) for window in windows])
        for (split, window, start), rows_of_window in zip(batch, rows, strict=True):
            special_T = torch.from_numpy(np.isin(window.tokens, host.special_ids))
            writer.splits[split].write(start, rows_of_window, special_T)
