"""Harvest: documents through the language model, once, into the activation cache of every hook point asked for.

Several ranks harvest one cache together. The first reads the text, cuts it into pools of windows and tells all; the batches of a pool,
the very ones that one process would make, are dealt out in turn, and each rank writes what its model makes of its own to the place in
the shards where it belongs. So the cache is that of one process to the byte, as far as the model gives the same bits on every rank.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metasae.data.cache import growth
from metasae.data.cache.cache import DTYPES, INDEX, ActivationCache, lacking, open_cache, read_index
from metasae.data.cache.cache_writer import CacheWriter
from metasae.data.cache.feed import Cursor, Feed, Pool
from metasae.data.cache.lock import locked
from metasae.data.cache.prefetch import Prefetch
from metasae.data.model.host import Host, activations_at
from metasae.data.text import text as texts
from metasae.data.text.windows import Window, pad
from metasae.errors import UserError, install_hint
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, Ranks
from metasae.recipe import recipe

# Windows are sorted by length within a pool of so many batches, so that little is padding.
POOL_BATCHES = 16
# Batches of a pool for each rank at least; where a pool has fewer, more pools are gone through between two meetings of the ranks.
RANK_BATCHES = 4


def harvest(
    host: Host,
    text: recipe.Text,
    harvest: recipe.Harvest,
    folder: str | Path,
    tokens: dict[str, int],
    progress: Progress = SILENT,
    documents: Iterable[str] | None = None,
) -> ActivationCache:
    """Fills `folder` with at least `tokens[split]` tokens of each split and opens it; a cache that fits is reused as it is.

    Of a cache that holds too few, the splits that lack tokens are harvested again, and what it holds stays until that is whole.
    What is opened shows `tokens[split]` tokens of each split, however many there are.
    Every split takes its documents in the order of the source, so a smaller harvest is the beginning of a larger one
    (the tokens exactly, the activations up to rounding, as windows meet others in a batch).
    `documents` stands in for the recipe's source; then text.source is only its name, unless it is a list, whose words count.
    A harvest that was stopped goes on where it stopped and ends with the same bytes as one that was not. While another process
    harvests into the folder, this one waits.

    Raises UserError when the folder holds another harvest, the text is too short for calibration or evaluation, the context is
    longer than the model's, the text changed since the harvest was stopped, or an activation is NaN or inf.
    """
    return harvest_points(host, [host.point], text, harvest, lambda _: Path(folder), tokens, progress, documents)[
        host.point
    ]


def harvest_points(
    host: Host,
    points: Sequence[str],
    text: recipe.Text,
    harvest: recipe.Harvest,
    folder_of: Callable[[str], Path],
    tokens: dict[str, int],
    progress: Progress = SILENT,
    documents: Iterable[str] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, ActivationCache]:
    """As `harvest`, at several points of the host's model in one pass: {point: its cache}, equal to one harvest for each.

    folder_of: the fingerprint of a point's harvest -> its folder. Points whose cache is there are not harvested again.
    ranks: those that share the work, on a disk that all of them see; all call this, with the same model.
    Raises UserError as `harvest` does, for an unknown point, and where two points would share a folder.
    """
    wanted = {split: count for split, count in tokens.items() if count > 0}
    if unknown := set(wanted) - set(texts.SPLITS):
        raise ValueError(f"unknown splits: {sorted(unknown)}")
    fields = identity(host, text, harvest, documents)
    if host.max_context and text.context > host.max_context:
        raise UserError(
            f"text.context = {text.context} is more than the model holds; set text.context={host.max_context} or less"
        )
    targets = _targets(host, points, fields, folder_of)
    ranks.same(
        " ".join(target.fingerprint for target in targets),
        "what they harvest",
        "give all of them the same model and text",
    )
    if missing := _missing(targets, wanted, ranks):
        with ExitStack() as locks:
            # in one order everywhere, so that no two processes wait for each other
            for folder in sorted(target.folder for target in missing) if ranks.first else ():
                locks.enter_context(locked(folder, progress))
            for target in missing if ranks.first else ():
                # what a process that was killed meanwhile had finished
                growth.put_in_place(target.folder)
            # whoever held a lock may have harvested just this
            missing = _missing(missing, wanted, ranks)
            if missing:
                _fill(missing, text, harvest, wanted, documents, progress, ranks)
    caches = {target.host.point: open_cache(target.folder, tokens=wanted) for target in targets}
    _warn_if_short(next(iter(caches.values())), wanted, progress)
    return caches


def identity(host: Host, text: recipe.Text, harvest: recipe.Harvest, documents: Iterable[str] | None = None) -> dict:
    """Everything that decides the cached numbers, field by field."""
    fields = texts.identity(text) if documents is None else text.model_dump()
    if isinstance(documents, (list, tuple)):
        fields["documents"] = _hash(documents)
    return {"host": host.fingerprint, "point": host.point, "dtype": harvest.dtype, "text": fields}


def fingerprint_of(fields: dict) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Target:
    """One point's harvest and the folder it belongs into."""

    host: Host
    identity: dict
    fingerprint: str
    folder: Path


def _targets(host: Host, points: Sequence[str], fields: dict, folder_of: Callable[[str], Path]) -> list[_Target]:
    targets: list[_Target] = []
    for point in dict.fromkeys(points):
        there = host if point == host.point else host.at(point)
        own = {**fields, "host": there.fingerprint, "point": point}
        key = fingerprint_of(own)
        folder = Path(folder_of(key))
        if any(folder == other.folder for other in targets):
            raise UserError(
                f"the folder {folder} can hold one hook point, and {len(set(points))} are asked for; leave harvest.cache empty"
            )
        targets.append(_Target(there, own, key, folder))
    return targets


def _is_there(target: _Target, wanted: dict[str, int]) -> bool:
    """Whether the target's folder holds its cache, with tokens enough or of a text that has no more.

    Raises UserError naming the fields that differ when what is there was harvested otherwise.
    """
    if not (target.folder / INDEX).is_file():
        return False
    index = read_index(target.folder)
    if index["fingerprint"] != target.fingerprint:
        differ = list(_differences(index["identity"], target.identity))
        if not differ:
            same = index["model"] == target.host.name
            differ = [
                "the model's weights, tokenizer or dtype"
                if same
                else f"model: {index['model']} there, {target.host.name} here"
            ]
        raise UserError(
            f"the cache {target.folder} was harvested otherwise ({'; '.join(differ)}); choose another harvest.cache or delete the folder"
        )
    return not lacking(index, wanted)


def _missing(targets: list[_Target], wanted: dict[str, int], ranks: Ranks) -> list[_Target]:
    """The targets that are not there, as the first rank sees it."""
    there = ranks.from_first([_is_there(target, wanted) for target in targets] if ranks.first else None)
    return [target for target, is_there in zip(targets, there, strict=True) if not is_there]


def _fill(
    targets: list[_Target],
    text: recipe.Text,
    spec: recipe.Harvest,
    wanted: dict[str, int],
    documents: Iterable[str] | None,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """One pass over the text for all targets, from where the least advanced of them stopped."""
    host, pool_tokens = targets[0].host, POOL_BATCHES * spec.batch_tokens
    folders = [target.folder for target in targets]
    places, wanted = ranks.from_first(growth.plan(folders, wanted, progress) if ranks.first else None)
    # what decides, apart from the identity, which windows meet in a batch and which row lies where
    settings = {
        "tokens": wanted,
        "batch_tokens": spec.batch_tokens,
        "shard_tokens": spec.shard_tokens,
        "pool_tokens": pool_tokens,
    }
    writers = [
        CacheWriter(place, target.identity, target.fingerprint, target.host.d, settings, ranks)
        for place, target in zip(places, targets, strict=True)
    ]
    cursor = _resume(writers, ranks)
    feed = Feed(host.tokenizer, host.frame, text, wanted, cursor)
    done = sum(feed.start.found.values())
    with ExitStack() as stack:
        task = stack.enter_context(progress.task("harvesting activations", sum(wanted.values()), "tokens"))
        if done:
            progress.say(f"the harvest goes on behind {done:,} of {sum(wanted.values()):,} tokens")
            task.skip(done)
        pools = (
            feed.pools(texts.documents(text) if documents is None else texts.clean(documents), pool_tokens)
            if ranks.first
            else iter(())
        )
        if host.device.type != "cpu" and ranks.first:
            # On a processor the thread would only fight the model for the interpreter's lock: each small operation waits milliseconds for it.
            pools = stack.enter_context(Prefetch(pools, depth=1))
        cursor = feed.start
        try:
            for turn in _turns(pools, ranks):
                _run_turn([target.host for target in targets], writers, turn, cursor, spec, task, ranks)
                cursor = turn[-1][1]
                for writer in writers:
                    writer.close(cursor)
        except KeyboardInterrupt:
            for writer in writers:
                writer.note(cursor)
            raise
    if ranks.first:
        try:
            _refuse_if_short(feed, text)
        except UserError:
            growth.discard(places)
            raise
    end, n_documents = ranks.from_first((feed.cursor, feed.n_documents))
    for writer in writers:
        writer.note(end)
    # an index says that all lies on the disk
    ranks.wait()
    for writer, folder in zip(writers, folders, strict=True):
        writer.finish(end, host.name, n_documents, growth.completed(folder))
    for folder in folders if ranks.first else ():
        growth.put_in_place(folder)
    ranks.wait()


def _turns(pools: Iterator[tuple[Pool, Cursor]], ranks: Ranks) -> Iterator[list[tuple[Pool, Cursor]]]:
    """Pools as the first rank reads them, with the cursors behind them, so many at a time that every rank has enough to do."""
    count = -(-RANK_BATCHES * ranks.size // POOL_BATCHES)
    while turn := ranks.from_first(list(islice(pools, count))):
        yield turn


def _resume(writers: list[CacheWriter], ranks: Ranks) -> Cursor | None:
    """The cursor that all of them can go on from, None where they begin."""
    cursors, first = [writer.held() for writer in writers], None
    if all(cursor is not None for cursor in cursors):
        # what the others hold behind it is written again, with the same bytes
        first = min(cursors, key=lambda cursor: sum(cursor.found.values()))
        first = first if all(writer.can_resume(first) for writer in writers) else None
    ranks.same(str(first), "where the harvest was stopped", "let them see the same disk, or delete the cache folder")
    for writer in writers:
        if first is None:
            writer.begin()
        else:
            writer.resume(first)
    return first


def run_pool(
    hosts: list[Host], writers: list[CacheWriter], pool: Pool, before: Cursor, spec: recipe.Harvest, task
) -> None:
    """Writes what the model makes of a pool. Windows run sorted by length, and each is written to its own place."""
    _run_turn(hosts, writers, [(pool, before)], before, spec, task, ALONE)


def _run_turn(
    hosts: list[Host],
    writers: list[CacheWriter],
    turn: list[tuple[Pool, Cursor]],
    before: Cursor,
    spec: recipe.Harvest,
    task,
    ranks: Ranks,
) -> None:
    """Writes what the model makes of a few pools, whose batches are dealt out to the ranks; comes back when all is written."""
    batches = []
    for pool, behind in turn:
        starts = _starts(pool, before)
        if ranks.first:
            # which also lays the shards out
            _write_columns(writers, pool, starts)
        lengths = np.array([len(window) for _, window in pool])
        batches += [[(pool[i], starts[i]) for i in numbers] for numbers in _batches(lengths, spec.batch_tokens)]
        before = behind
    ranks.wait()
    tokens = [sum(len(window) for (_, window), _ in batch) for batch in batches]
    for number in range(ranks.rank, len(batches), ranks.size):
        _run_batch(hosts, writers, batches[number], spec)
        # the others are about as far
        task.advance(sum(tokens[number : number + ranks.size]))
    ranks.wait()


def _write_columns(writers: list[CacheWriter], pool: Pool, starts: list[int]) -> None:
    for split in writers[0].splits:
        own = [number for number, (name, _) in enumerate(pool) if name == split]
        if own:
            columns = _columns([pool[number][1] for number in own])
            for writer in writers:
                writer.splits[split].write_columns(starts[own[0]], columns)


def _run_batch(
    hosts: list[Host], writers: list[CacheWriter], batch: list[tuple[tuple[str, Window], int]], spec: recipe.Harvest
) -> None:
    """batch: ((split, window), the row of its first token) of windows that the model reads at once."""
    windows = [window for (_, window), _ in batch]
    ids, mask, own = pad(windows, hosts[0].frame, hosts[0].pad_id)
    for host, writer, x_BTD in zip(hosts, writers, activations_at(hosts, ids, mask), strict=True):
        x_TD = x_BTD[own.to(x_BTD.device)].to("cpu", DTYPES[spec.dtype])
        if not torch.isfinite(x_TD.sum(dtype=torch.float32)):
            _refuse_not_finite(host, spec, x_TD)
        for ((split, _), start), rows in zip(batch, x_TD.split([len(window) for window in windows]), strict=True):
            writer.splits[split].write(start, rows)


def _starts(pool: Pool, before: Cursor) -> list[int]:
    """The row of each window's first token in its split."""
    found, starts = dict(before.found), []
    for split, window in pool:
        starts.append(found[split])
        found[split] += len(window)
    return starts


def _columns(windows: list[Window]) -> dict[str, np.ndarray]:
    """tokens, documents, positions int32 [T] of consecutive windows."""
    return {
        "tokens": np.concatenate([window.tokens for window in windows]),
        "documents": np.repeat(
            np.array([window.document for window in windows], dtype=np.int32), [len(window) for window in windows]
        ),
        "positions": np.concatenate(
            [np.arange(window.start, window.start + len(window), dtype=np.int32) for window in windows]
        ),
    }


def _batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Window numbers, longest first, in batches of at most batch_tokens tokens with padding (and at least one window)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(batch_tokens // int(lengths[order[start]]), 1)
        yield order[start : start + count]
        start += count


def _refuse_not_finite(host: Host, spec: recipe.Harvest, x_TD: Tensor) -> None:
    if not torch.isfinite(x_TD).all():
        hint = "set harvest.dtype=bf16" if spec.dtype == "fp16" else "set model.dtype=fp32"
        raise UserError(
            f"the model gives NaN or inf activations at '{host.point}'; {hint} or choose another hook.point"
        )


def _differences(held: dict, asked: dict, prefix: str = "") -> Iterator[str]:
    """The fields with other values, in words. The host's hash says nothing to a reader and is left out."""
    for key in sorted({*held, *asked} - {"host"}):
        old, new = held.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old} there, {new} here"


def _refuse_if_short(feed: Feed, text: recipe.Text) -> None:
    for split, count in feed.wanted.items():
        if split != "train" and feed.found[split] < count:
            cure = (
                f"{install_hint('demo')} brings more documentation, or use a file"
                if text.source == "docs"
                else "use a longer text"
            )
            what = f"text.source '{text.source}' gives {feed.found[split]:,} {split} tokens of the {count:,} asked for"
            raise UserError(f"{what}; {cure}, raise text.{split}_share, or ask for fewer")
    if not feed.found.get("train", 1):
        raise UserError(f"text.source '{text.source}' gives no training tokens; use a longer text")


def _warn_if_short(cache: ActivationCache, wanted: dict[str, int], progress: Progress) -> None:
    held = cache.split("train").n_tokens if "train" in wanted else 0
    if held < wanted.get("train", 0):
        progress.say(
            f"the text has {held:,} training tokens of the {wanted['train']:,} asked for; training reads them again, in a fresh order"
        )


def _hash(documents: Iterable[str]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for document in documents:
        state.update(document.encode("utf-8", errors="surrogatepass") + b"\0")
    return state.hexdigest()
