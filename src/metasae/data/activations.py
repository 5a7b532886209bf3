"""Harvest: documents through the language model, once, into the activation cache."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metasae import recipe
from metasae.data import text as texts
from metasae.data.cache import DTYPES, FORMAT, INDEX, STATISTICS, ActivationCache, open_cache, read_index
from metasae.data.host import Host
from metasae.data.prefetch import Prefetch
from metasae.data.shards import ShardWriter
from metasae.data.windows import Window, cut, pad, tokenise
from metasae.errors import UserError
from metasae.files import write_json, write_tensors
from metasae.progress import SILENT, Progress

POOL_BYTES = 128 << 20
POOL_BATCHES = 16


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

    Every split takes its documents in the order of the source, so a smaller harvest is the beginning of a larger one
    (the tokens exactly, the activations up to rounding, as windows meet others in a batch).
    `documents` stands in for the recipe's source; then text.source is only its name, unless it is a list, whose words count.

    Raises UserError when the folder holds another harvest, the text is too short for calibration or evaluation, the context is
    longer than the model's, or an activation is NaN or inf.
    """
    folder = Path(folder)
    wanted = {split: count for split, count in tokens.items() if count > 0}
    if unknown := set(wanted) - set(texts.SPLITS):
        raise ValueError(f"unknown splits: {sorted(unknown)}")
    if host.max_context and text.context > host.max_context:
        raise UserError(f"text.context = {text.context} is more than the model holds; set text.context={host.max_context} or less")
    fields = identity(host, text, harvest, documents)
    if (folder / INDEX).is_file():
        cache = _reuse(host, folder, fields, wanted)
        if cache is not None:
            _warn_if_short(cache, wanted, progress)
            return cache
        progress.say(f"the cache {folder} holds too few tokens; harvesting again")
        (folder / INDEX).unlink()
    source = texts.documents(text) if documents is None else texts.clean(documents)
    _fill(host, text, harvest, folder, wanted, fields, source, progress)
    cache = open_cache(folder, tokens=wanted)
    _warn_if_short(cache, wanted, progress)
    return cache


def identity(host: Host, text: recipe.Text, harvest: recipe.Harvest, documents: Iterable[str] | None = None) -> dict:
    """Everything that decides the cached numbers, field by field."""
    fields = texts.identity(text) if documents is None else text.model_dump()
    if isinstance(documents, (list, tuple)):
        fields["documents"] = _hash(documents)
    return {"host": host.fingerprint, "point": host.point, "dtype": harvest.dtype, "text": fields}


def fingerprint_of(fields: dict) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class _Feed:
    """Documents -> (split, window), skipping documents of splits that are full. `found`: tokens so far; `digest`: of the documents used."""

    host: Host
    text: recipe.Text
    wanted: dict[str, int]

    def __post_init__(self):
        self.found = dict.fromkeys(self.wanted, 0)
        self.n_documents = 0
        self._state = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._state.hexdigest()

    def windows(self, source: Iterable[str]) -> Iterator[tuple[str, Window]]:
        room = self.host.frame.room(self.text.context)
        for number, document, ids in tokenise(self.host.tokenizer, self._needed(source)):
            split = texts.split_of(document, self.text)
            missing = self.wanted[split] - self.found[split]
            if missing <= 0:
                continue
            self._state.update(document.encode("utf-8", errors="surrogatepass"))
            self._state.update(b"\0")
            self.n_documents += 1
            for window in cut(ids[:missing], number, room):
                self.found[split] += len(window)
                yield split, window

    def _needed(self, source: Iterable[str]) -> Iterator[tuple[int, str]]:
        for number, document in enumerate(source):
            if all(self.found[split] >= count for split, count in self.wanted.items()):
                return
            split = texts.split_of(document, self.text)
            if split in self.wanted and self.found[split] < self.wanted[split]:
                yield number, document


def _fill(host: Host, text, spec: recipe.Harvest, folder: Path, wanted: dict, fields: dict, source: Iterable[str], progress: Progress) -> None:
    for stale in folder.glob("*-?????.safetensors"):
        stale.unlink()
    feed = _Feed(host, text, wanted)
    writers = {split: ShardWriter(folder, split, host.d, DTYPES[spec.dtype], spec.shard_tokens, count) for split, count in wanted.items()}
    with ExitStack() as stack:
        task = stack.enter_context(progress.task("harvest", sum(wanted.values()), "tokens"))
        pools = _pools(feed.windows(source), host, spec)
        if host.device.type != "cpu":
            # On a processor the thread would only fight the model for the interpreter's lock: each small operation waits milliseconds for it.
            pools = stack.enter_context(Prefetch(pools, depth=1))
        for pool in pools:
            rows = _run_pool(host, [window for _, window in pool], spec, task)
            start = 0
            for split, window in pool:
                writers[split].append(rows[start : start + len(window)], window)
                start += len(window)
    _refuse_if_short(feed, text)
    for writer in writers.values():
        writer.finish()
    write_tensors(folder / STATISTICS, {name: tensor for split, writer in writers.items() for name, tensor in writer.statistics().items()})
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint_of(fields),
        "identity": fields,
        "model": host.name,
        "d": host.d,
        "documents": feed.n_documents,
        "documents_blake2b": feed.digest,
        "splits": {split: writer.record() for split, writer in writers.items()},
    }
    write_json(folder / INDEX, index)


def _pools(windows: Iterable[tuple[str, Window]], host: Host, spec: recipe.Harvest) -> Iterator[list[tuple[str, Window]]]:
    """Windows in pools of some batches, small enough that a pool's activations fit into POOL_BYTES."""
    per_token = host.d * DTYPES[spec.dtype].itemsize
    size = max(min(POOL_BATCHES * spec.batch_tokens, POOL_BYTES // per_token), spec.batch_tokens)
    pool, held = [], 0
    for entry in windows:
        pool.append(entry)
        held += len(entry[1])
        if held >= size:
            yield pool
            pool, held = [], 0
    if pool:
        yield pool


def _run_pool(host: Host, windows: list[Window], spec: recipe.Harvest, task) -> Tensor:
    """Windows -> their activations [sum of lengths, d] in their order. They run sorted by length, so that little is padding."""
    lengths = np.array([len(window) for window in windows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = torch.empty(int(starts[-1]), host.d, dtype=DTYPES[spec.dtype])
    for batch in _batches(lengths, spec.batch_tokens):
        ids, mask, own = pad([windows[i] for i in batch], host.frame, host.pad_id)
        x_TD = host.activations(ids, mask)[own.to(host.device)].to("cpu", rows.dtype)
        if not torch.isfinite(x_TD.sum(dtype=torch.float32)):
            _refuse_not_finite(host, spec, x_TD)
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
        rows.index_copy_(0, torch.from_numpy(places), x_TD)
        task.advance(len(places))
    return rows


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
        raise UserError(f"the model gives NaN or inf activations at '{host.point}'; {hint} or choose another hook.point")


def _reuse(host: Host, folder: Path, fields: dict, wanted: dict[str, int]) -> ActivationCache | None:
    """The cache in `folder` where it fits, None where it holds too few tokens of a text that has more.

    Raises UserError naming the fields that differ when it was harvested otherwise.
    """
    index = read_index(folder)
    if index["fingerprint"] != fingerprint_of(fields):
        differ = list(_differences(index["identity"], fields))
        if not differ:
            same = index["model"] == host.name
            differ = ["the model's weights, tokenizer or dtype" if same else f"model: {index['model']} there, {host.name} here"]
        raise UserError(f"the cache {folder} was harvested otherwise ({'; '.join(differ)}); choose another harvest.cache or delete the folder")
    splits = index["splits"]
    if all(split in splits and (splits[split]["tokens"] >= count or splits[split]["exhausted"]) for split, count in wanted.items()):
        return open_cache(folder, tokens=wanted)
    return None


def _differences(held: dict, asked: dict, prefix: str = "") -> Iterator[str]:
    """The fields with other values, in words. The host's hash says nothing to a reader and is left out."""
    for key in sorted({*held, *asked} - {"host"}):
        old, new = held.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old} there, {new} here"


def _refuse_if_short(feed: _Feed, text: recipe.Text) -> None:
    for split, count in feed.wanted.items():
        if split != "train" and feed.found[split] < count:
            cure = "pip install 'metasae[demo]' brings more documentation, or use a file" if text.source == "docs" else "use a longer text"
            what = f"text.source '{text.source}' gives {feed.found[split]:,} {split} tokens of the {count:,} asked for"
            raise UserError(f"{what}; {cure}, raise text.{split}_share, or ask for fewer")
    if not feed.found.get("train", 1):
        raise UserError(f"text.source '{text.source}' gives no training tokens; use a longer text")


def _warn_if_short(cache: ActivationCache, wanted: dict[str, int], progress: Progress) -> None:
    held = cache.split("train").n_tokens if "train" in wanted else 0
    if held < wanted.get("train", 0):
        times = wanted["train"] / held
        progress.say(f"the text has {held:,} training tokens of the {wanted['train']:,} asked for; training will go over it {times:.1f} times")


def _hash(documents: Iterable[str]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for document in documents:
        state.update(document.encode("utf-8", errors="surrogatepass") + b"\0")
    return state.hexdigest()
