"""Brings RUN/explore.sqlite up to date with a run folder, section by section.

A section is a text, an SAE, two SAEs compared, or the overview. Each is written in one transaction together with a
fingerprint of what it was made from: a build that was killed goes on with the next section, and a build of a run that
changed writes only the sections that changed. The work is done in a file beside the store, which replaces it at the
end.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from metasae.errors import UserError
from metasae.explore.store.matches import write_match_cosines
from metasae.explore.store.open_store import StringsOf
from metasae.explore.store.schema import BASE, FORMAT, LATENTS_OF_SAE, MERGES_BASE, STORE, create, pair_name
from metasae.explore.store.sections import Contents, Section
from metasae.progress.progress import SILENT, Progress

WORKING = f".{STORE}.part"
_ONE, _OTHER = "(SELECT id FROM saes WHERE name = :one)", "(SELECT id FROM saes WHERE name = :other)"
_KEYS = f"key BETWEEN {{0}} * {LATENTS_OF_SAE} AND {{0}} * {LATENTS_OF_SAE} + {LATENTS_OF_SAE - 1}"
_KEYS_OF_ONE = _KEYS.format(_ONE)
# The kind of a section -> its rows: what is to be deleted from where.
_ROWS = {
    "text": (
        *(
            f"{table} WHERE text IN (SELECT id FROM texts WHERE digest = :one)"
            for table in ("text_chunks", "vocabulary", "top_tokens")
        ),
        "texts WHERE digest = :one",
    ),
    "sae": (
        *(f"{table} WHERE {_KEYS_OF_ONE}" for table in ("latents", "windows", "tokens", "histograms", "edges")),
        *(f"{table} WHERE sae = {_ONE}" for table in ("meta_latents", "top_tokens")),
    ),
    "interp": (
        *(f"{table} WHERE {_KEYS_OF_ONE}" for table in ("explanations", "senses", "replies")),
        f"scores WHERE sae = {_ONE}",
    ),
    "pair": (
        f"edges WHERE {_KEYS_OF_ONE} AND other = {_OTHER}",
        f"edges WHERE {_KEYS.format(_OTHER)} AND other = {_ONE}",
    ),
    "splits": (
        "split_members WHERE split IN (SELECT id FROM splits WHERE pair = :pair)",
        "splits WHERE pair = :pair",
        "pairs WHERE name = :pair",
    ),
    "logits": (f"logits WHERE {_KEYS_OF_ONE}",),
    "overview": (),
}


def build(run_folder: str | Path, progress: Progress = SILENT, *, strings: StringsOf | None = None) -> Path:
    """Writes RUN/explore.sqlite and returns its path; sections that did not change are kept.

    strings: the text of tokens of the evaluation split; None asks the run's tokenizer. Labels lie in a file of their
    own and are not touched. Raises UserError for a folder that is no run, a damaged firing store, a tokenizer that
    cannot be loaded, and when the disk is full or cannot be written.
    """
    run_folder = Path(run_folder)
    contents = Contents(run_folder)
    target, working = run_folder / STORE, run_folder / WORKING
    wanted = contents.sections()
    try:
        if not working.exists() and _done(target) == {section.name: section.fingerprint for section in wanted}:
            return target
        # torch is imported where there is something to write, and not to find that there is nothing
        from metasae.explore.store.writing import Writer

        with closing(_open_working(working, target, progress)) as store:
            _write(store, wanted, Writer(store, contents, strings, progress).write, progress, contents.baseline)
        os.replace(working, target)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(f"another process builds {target}; wait for it, then run again") from None
        raise UserError(
            f"cannot write {working} ({error}); free some space or delete the file, then run again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}); free some space, then run again") from None
    return target


def _write(
    store: sqlite3.Connection,
    wanted: list[Section],
    write: Callable[[Section], None],
    progress: Progress,
    baseline: str,
) -> None:
    done = dict(store.execute("SELECT name, fingerprint FROM parts"))
    obsolete = done.keys() - {section.name for section in wanted}
    missing = [section for section in wanted if done.get(section.name) != section.fingerprint]
    with store:
        # an SAE's number is looked up to remove what belongs to it, so that the SAEs themselves come last
        for name in sorted(obsolete, key=lambda name: (name.startswith("sae:"), name)):
            _remove(store, name)
            store.execute("DELETE FROM saes WHERE 'sae:' || name = ?", (name,))
            store.execute("DELETE FROM parts WHERE name = ?", (name,))
    with progress.task("preparing the explorer", len(missing), "parts") as task:
        for section in missing:
            begin = time.perf_counter()
            with store:
                _remove(store, section.name)
                write(section)
                row = (section.name, section.fingerprint, time.perf_counter() - begin)
                store.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", row)
            task.advance(1)
    # what follows from all sections together: each latent's best split score and the cosine with its match, and the
    # index of explanations.
    # CROSS JOIN keeps this order: from a latent to its few splits
    best = """SELECT MAX(s.score) FROM splits s CROSS JOIN pairs p ON p.name = s.pair
        WHERE s.parent = latents.key AND p.kind NOT IN (?1, ?2)"""
    with store:
        store.execute(f"UPDATE latents SET split_score = ({best})", (BASE, MERGES_BASE))
        write_match_cosines(store, baseline)
        store.execute("INSERT INTO explanation_words (explanation_words) VALUES ('rebuild')")


def _remove(store: sqlite3.Connection, name: str) -> None:
    """Deletes the rows of a section from the store. An SAE keeps its number."""
    kind, _, of = name.partition(":")
    one, _, other = of.partition("|")
    for rows in _ROWS[kind]:
        store.execute(f"DELETE FROM {rows}", {"one": one, "other": other, "pair": pair_name(one, other)})


def _open_working(working: Path, target: Path, progress: Progress) -> sqlite3.Connection:
    """The file to write: that of a build that was killed, a copy of the finished store, or a new one."""
    if working.exists() and _done(working) is None:
        progress.say(f"{working} is damaged or of another version; it is built anew")
        working.unlink()
    if not working.exists() and _done(target) is not None:
        copy = working.with_name(f"{working.name}.copy")
        shutil.copyfile(target, copy)
        os.replace(copy, working)
    store = sqlite3.connect(working, isolation_level="IMMEDIATE", timeout=1) if working.exists() else create(working)
    # a killed process loses nothing; after a power cut the file is built anew from the run folder
    store.execute("PRAGMA synchronous = OFF")
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("PRAGMA cache_size = -65536")
    return store


def _done(path: Path) -> dict[str, str] | None:
    """The finished sections of a store, name -> fingerprint; None where there is no whole store of this version."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=1)) as store:
            ((version,),) = store.execute("PRAGMA user_version")
            if version != FORMAT or store.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                return None
            return dict(store.execute("SELECT name, fingerprint FROM parts"))
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        return None
