"""Harvest: documents through the language model, once, into the activation cache of every hook point asked for.

Several ranks may harvest together. The first reads the text, cuts it into pools of windows and sends them to all;
`metasae.data.cache.passes` describes how the ranks share the model's passes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from metasae.data.cache.cache import INDEX, ActivationCache, beside, large_enough, read_index
from metasae.data.cache.cache_writer import CacheWriter, resume
from metasae.data.cache.passes import run_pools
from metasae.data.cache.stream import Prefetch
from metasae.data.model.host import Host
from metasae.data.text import text as texts
from metasae.data.text.records import Document
from metasae.data.text.windows import Cursor, Feed, Pool
from metasae.errors import Dropped, UserError, install_hint
from metasae.locks import harvesting_into
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, Ranks
from metasae.recipe import recipe

# Batches of a pool. Windows are sorted by length within a pool, so that there is little padding.
POOL_BATCHES = 16
# The least batches per rank between two points where the ranks wait for each other. Where a pool has fewer, several
# pools are worked through between them.
RANK_BATCHES = 4


def harvest(
    host: Host,
    text: recipe.Text,
    harvest: recipe.Harvest,
    folder: str | Path,
    tokens: dict[str, int],
    progress: Progress = SILENT,
    documents: Iterable[Document] | None = None,
) -> ActivationCache:
    """Fills `folder` with at least `tokens[split]` tokens of each split and opens it; a cache that fits is reused as
    it is.

    A finished cache that holds too few tokens stays as it is: the harvest goes into a folder beside it, named after the
    tokens asked for, where it is not there already. The cache that is returned shows `tokens[split]` tokens of each
    split, even where it holds more. Every split takes its documents in the order of the source, so a smaller harvest is
    the beginning of a larger one (the tokens exactly, the activations up to rounding, as windows meet others in a
    batch). `documents` replaces the recipe's source, and text.source is then only its name. A harvest that was stopped
    continues there and ends with the same bytes as one that was not stopped. While another process harvests into the
    folder, this one waits.

    Raises UserError when the folder holds another harvest, the text is too short for calibration or evaluation, the
    context is longer than the model's, the text changed since the harvest was stopped, or an activation is NaN or
    inf.
    """
    caches = harvest_points(host, [host.point], text, harvest, lambda _: Path(folder), tokens, progress, documents)
    return caches[host.point]


def harvest_points(
    host: Host,
    points: Sequence[str],
    text: recipe.Text,
    harvest: recipe.Harvest,
    folder_of: Callable[[str], Path],
    tokens: dict[str, int],
    progress: Progress = SILENT,
    documents: Iterable[Document] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, ActivationCache]:
    """As `harvest`, at several points of the host's model in one pass: {point: its cache}, equal to one harvest for
    each.

    folder_of: the fingerprint of a point's harvest -> its folder. Points whose cache is there are not harvested again.
    ranks: those that share the work, on a disk that all of them see; all call this, with the same model.
    Raises UserError as `harvest` does, for an unknown point, and where two points would share a folder.
    """
    wanted = {split: count for split, count in tokens.items() if count > 0}
    fields = identity(host, text, harvest, documents)
    if host.max_context and text.context > host.max_context:
        raise UserError(
            f"text.context = {text.context} is more than the model holds; set text.context={host.max_context} or less"
        )
    targets = _targets(host, points, fields, folder_of)
    fingerprints = " ".join(target.fingerprint for target in targets)
    ranks.same(fingerprints, "what they harvest", "give all of them the same model and text")
    places = _places(targets, wanted, ranks)
    if None in places:
        with ExitStack() as locks:
            missing = [target.folder for target, place in zip(targets, places, strict=True) if place is None]
            # in one order everywhere, so that no two processes wait for each other
            for folder in sorted(missing) if ranks.first else ():
                locks.enter_context(harvesting_into(folder, progress))
            # the process that held the lock may have harvested the same
            places = _places(targets, wanted, ranks)
            left = [target for target, place in zip(targets, places, strict=True) if place is None]
            if left:
                _fill(left, text, harvest, wanted, documents, progress, ranks)
        places = _places(targets, wanted, ranks)
    caches = {
        target.host.point: ActivationCache(place, wanted, harvest.norm_limit)
        for target, place in zip(targets, places, strict=True)
    }
    asked = wanted.get("train", 0)
    # of all tokens of the text, also those that are left out of it later
    trained_on = caches[targets[0].host.point].index["splits"]["train"]["tokens"] if asked else 0
    if trained_on < asked:
        progress.say(
            f"the text has {trained_on:,} training tokens of the {asked:,} asked for; "
            "training reads them again, in a fresh order"
        )
    return caches


def identity(
    host: Host, text: recipe.Text, harvest: recipe.Harvest, documents: Iterable[Document] | None = None
) -> dict:
    """Everything that decides the cached numbers, field by field."""
    fields = texts.identity(text) if documents is None else text.model_dump()
    template = None if text.source in texts.BUILT_IN else getattr(host.tokenizer, "chat_template", None)
    chats = {"chat_template": fingerprint_of({"template": template})} if template else {}
    return {"host": host.fingerprint, "point": host.point, "dtype": harvest.dtype, "text": fields, **chats}


def fingerprint_of(fields: dict) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Target:
    """One hook point's harvest, and its folder, or the one beside it where that holds too few tokens."""

    host: Host
    identity: dict
    fingerprint: str
    folder: Path

    def place(self, wanted: dict[str, int]) -> Path | None:
        """The folder of its cache, where that holds enough tokens or all of the text; None where it is not harvested.

        Raises UserError where something else was harvested into the folder.
        """
        self._refuse_another(self.folder)
        return large_enough(self.folder, self.fingerprint, wanted)

    def place_to_fill(self, wanted: dict[str, int], progress: Progress) -> Path:
        if not (self.folder / INDEX).is_file():
            return self.folder
        larger = beside(self.folder, wanted)
        self._refuse_another(larger)
        progress.say(f"the cache {self.folder} holds too few tokens; harvesting into {larger}")
        return larger

    def _refuse_another(self, folder: Path) -> None:
        """Raises UserError naming the fields that differ where the folder holds another harvest."""
        if not (folder / INDEX).is_file():
            return
        index = read_index(folder)
        if index["fingerprint"] == self.fingerprint:
            return
        same_name = index["model"] == self.host.name
        names = f"model: {index['model']} there, {self.host.name} here"
        unseen = "the model's weights, tokenizer or dtype" if same_name else names
        differences = list(_differences(index["identity"], self.identity)) or [unseen]
        raise UserError(
            f"the cache {folder} was harvested with other settings ({'; '.join(differences)}); "
            "choose another harvest.cache or delete the folder"
        )


def _differences(there: dict, here: dict, prefix: str = "") -> Iterator[str]:
    """The fields with other values, in words. The host's hash says nothing to a reader and is left out."""
    for key in sorted({*there, *here} - {"host"}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old} there, {new} here"


def _targets(host: Host, points: Sequence[str], fields: dict, folder_of: Callable[[str], Path]) -> list[_Target]:
    targets: list[_Target] = []
    for point in dict.fromkeys(points):
        own_host = host if point == host.point else host.at(point)
        own = {**fields, "host": own_host.fingerprint, "point": point}
        key = fingerprint_of(own)
        folder = Path(folder_of(key))
        if any(folder == other.folder for other in targets):
            raise UserError(
                f"the folder {folder} can hold one hook point, and {len(set(points))} are asked for; "
                "leave harvest.cache empty"
            )
        targets.append(_Target(own_host, own, key, folder))
    return targets


def _places(targets: list[_Target], wanted: dict[str, int], ranks: Ranks) -> list[Path | None]:
    """Where the cache of each target lies, as the first rank sees it; None where it is not there."""
    return ranks.from_first([target.place(wanted) for target in targets] if ranks.first else None)


def _fill(
    targets: list[_Target],
    text: recipe.Text,
    spec: recipe.Harvest,
    wanted: dict[str, int],
    documents: Iterable[Document] | None,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """One pass over the text for all targets, from where the least advanced of them stopped."""
    places = ranks.from_first([target.place_to_fill(wanted, progress) for target in targets] if ranks.first else None)
    hosts = [target.host for target in targets]
    # besides the identity, these decide which windows share a batch and where each row is written
    settings = {
        "tokens": {split: wanted[split] for split in texts.SPLITS if split in wanted},
        "batch_tokens": spec.batch_tokens,
        "shard_tokens": spec.shard_tokens,
        "pool_tokens": POOL_BATCHES * spec.batch_tokens,
    }
    writers = [
        CacheWriter(place, target.identity, target.fingerprint, target.host.d, settings, ranks)
        for place, target in zip(places, targets, strict=True)
    ]
    feed = Feed(hosts[0].tokenizer, hosts[0].frame, text, settings["tokens"], resume(writers, ranks))
    _run(hosts, writers, feed, documents, spec, progress, ranks)
    if ranks.first:
        try:
            _refuse_if_short(feed, text)
        except UserError:
            for place, target in zip(places, targets, strict=True):
                if place != target.folder:
                    # only a harvest of these very token counts would use it again
                    shutil.rmtree(place, ignore_errors=True)
            raise
    end, kinds = ranks.from_first((feed.cursor, dict(feed.kinds)))
    for writer in writers:
        writer.note(end)
    # an index means that everything is on the disk
    ranks.wait()
    for writer in writers:
        writer.finish(end, hosts[0].name, kinds)
    ranks.wait()


def _run(
    hosts: list[Host],
    writers: list[CacheWriter],
    feed: Feed,
    documents: Iterable[Document] | None,
    spec: recipe.Harvest,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Runs the feed's windows through the model, writes the activations, and notes its position when interrupted."""
    cursor, done, total = feed.start, sum(feed.start.found.values()), sum(feed.wanted.values())
    with ExitStack() as stack:
        task = stack.enter_context(progress.task("harvesting activations", total, "tokens"))
        if done:
            progress.say(f"the harvest continues after {done:,} of {total:,} tokens")
            task.skip(done)
        pools: Iterator[tuple[Pool, Cursor]] = iter(())
        if ranks.first:
            source = texts.documents(feed.text) if documents is None else texts.clean(documents)
            pools = feed.pools(source, POOL_BATCHES * spec.batch_tokens)
            if hosts[0].device.type != "cpu":
                # On a processor the thread would only fight the model for the interpreter's lock: each small operation
                # waits milliseconds for it.
                pools = stack.enter_context(Prefetch(pools))
        count = -(-RANK_BATCHES * ranks.size // POOL_BATCHES)
        try:
            while turn := ranks.from_first(list(islice(pools, count))):
                run_pools(hosts, writers, [pool for pool, _ in turn], spec, task, ranks)
                cursor = turn[-1][1]
                for writer in writers:
                    writer.note_at_times(cursor)
            if said := feed.plain.said:
                progress.say(f"note: {said}")
        except (KeyboardInterrupt, Dropped):
            for writer in writers:
                writer.note(cursor)
            raise


def _refuse_if_short(feed: Feed, text: recipe.Text) -> None:
    for split, count in feed.wanted.items():
        if split != "train" and feed.found[split] < count:
            demo = f"{install_hint('demo')} brings more documentation, or use text.source=machine or a file"
            raise UserError(
                f"text.source '{text.source}' gives {feed.found[split]:,} {split} tokens of the {count:,} asked for; "
                f"{demo if text.source == 'docs' else 'use a longer text'}, raise text.{split}_share, or ask for fewer"
            )
    if not feed.found.get("train", 1):
        raise UserError(f"text.source '{text.source}' gives no training tokens; use a longer text")
