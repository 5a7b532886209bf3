"""More tokens in a finished cache: the splits that lack some are harvested beside it, and put in place once they are whole.

FOLDER/larger/   as a cache folder, with the splits harvested anew; its index also names the shards of the others, which stay in FOLDER

A finished cache is never written to, so that whoever reads it, or is killed, or asks for more than the text has, takes nothing away.
The caller holds the folder's lock throughout.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from metasae.data.cache.cache import (
    INDEX,
    LARGER,
    SHARDS,
    STATISTICS,
    ActivationCache,
    lacking,
    open_cache,
    open_split,
    read_index,
)
from metasae.data.cache.cache_writer import Complete
from metasae.data.text.text import SPLITS
from metasae.errors import UserError
from metasae.files import read_tensors
from metasae.progress.progress import Progress


def plan(folders: Sequence[Path], wanted: dict[str, int], progress: Progress) -> tuple[list[Path], dict[str, int]]:
    """Where to harvest for each of these cache folders, and the tokens of each split: those lacking somewhere, never fewer than held.

    Raises UserError for a finished cache that is damaged.
    """
    places, most = [], {}
    for folder in folders:
        if not (folder / INDEX).is_file():
            places.append(folder)
            most |= wanted
            continue
        # opened, since a damaged one is better refused now than when it is completed
        short = lacking(open_cache(folder).index, wanted)
        progress.say(f"the cache {folder} holds too few tokens of {' and '.join(short)}; harvesting more")
        places.append(folder / LARGER)
        most |= {split: wanted[split] for split in short}
    for folder in folders:
        for split, record in read_index(folder)["splits"].items() if (folder / INDEX).is_file() else ():
            if split in most:
                # one more than there is where the text had no more, so that the new index says so too
                most[split] = max(most[split], record["tokens"] + record["exhausted"])
    return places, {split: most[split] for split in SPLITS if split in most}


def completed(folder: Path) -> Complete:
    """Adds the other splits of the cache in `folder` to the index and the statistics of those harvested beside it, where there is one.

    The call raises UserError where a split does not begin with the tokens that the cache holds of it; these are then kept.
    """

    def complete(index: dict, tables: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
        if not (folder / INDEX).is_file():
            return index, tables
        held = open_cache(folder)
        _refuse_another_beginning(held, index, tables)
        kept = {split: record for split, record in held.index["splits"].items() if split not in index["splits"]}
        splits = kept | index["splits"]
        facts = {"splits": {split: splits[split] for split in SPLITS if split in splits}}
        if kept:
            both = f"{held.index['documents_blake2b']} {index['documents_blake2b']}".encode()
            # a document belongs to one split
            facts["documents"] = index["documents"] + sum(
                len(set(held.split(split).documents.tolist())) for split in kept
            )
            facts["documents_blake2b"] = hashlib.blake2b(both, digest_size=16).hexdigest()
        sums = read_tensors(folder / STATISTICS)
        return index | facts, tables | {name: sums[name] for name in sums if name.split(".")[0] in kept}

    return complete


def put_in_place(folder: Path) -> None:
    """Moves what lies whole in FOLDER/larger, where there is something, into FOLDER.

    The old index goes first and the new one comes last. Whoever was killed in between left files in either place, and this goes on.
    """
    larger = folder / LARGER
    if not (larger / INDEX).is_file():
        return
    own = {entry["file"] for split in read_index(larger)["splits"].values() for entry in split["shards"]}
    (folder / INDEX).unlink(missing_ok=True)
    for stale in folder.glob(SHARDS):
        if stale.name not in own:
            stale.unlink()
    for file in [*larger.glob(SHARDS), larger / STATISTICS]:
        if file.is_file():
            os.replace(file, folder / file.name)
    os.replace(larger / INDEX, folder / INDEX)
    shutil.rmtree(larger)


def discard(places: Sequence[Path]) -> None:
    """Deletes what was harvested beside a cache."""
    for place in places:
        if place.name == LARGER and (place.parent / INDEX).is_file():
            shutil.rmtree(place, ignore_errors=True)


def _refuse_another_beginning(held: ActivationCache, index: dict, tables: dict[str, Tensor]) -> None:
    """A run that goes on must find the tokens that it began with."""
    larger = held.folder / LARGER
    for split in held.index["splits"].keys() & index["splits"].keys():
        if not open_split(larger, index, tables, split).begins_as(held.split(split)):
            discard([larger])
            raise UserError(
                f"the text has changed since the cache {held.folder} was harvested; choose another harvest.cache or delete the folder"
            )
