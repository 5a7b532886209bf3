"""Training activations a window at a time, for more text than the disk holds: harvested, trained on by every arm,
deleted.

FOLDER/ledger.json   every window harvested so far: its tokens, its batches, where in the text the next begins; kept
FOLDER/00003/        window 3: a cache of the training split alone, gone once every arm has trained on it

A window here is a stretch of the training text; the windows of a few tokens that the model reads are
`metasae.data.text.windows.Window`. It is a whole number of pools of text (`metasae.data.text.windows`), so it holds a
few more tokens than asked for; what does not fill a batch at its end is left out. Batches are drawn from one window
until it is used up, so rows are shuffled within a window only. Any window can be harvested again, to the same bytes, as
the ledger says where it begins. Where the text ends it is read again.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from metasae.data.cache.activations import POOL_BATCHES, fingerprint_of, identity
from metasae.data.cache.cache import INDEX, ActivationCache, StoredSplit
from metasae.data.cache.cache_writer import CacheWriter, resume
from metasae.data.cache.passes import run_pools
from metasae.data.model.host import Host
from metasae.data.split import Chosen
from metasae.data.text import text as texts
from metasae.data.text.records import Document
from metasae.data.text.windows import Cursor, Feed, Pool
from metasae.errors import Dropped, UserError
from metasae.files import read_json, write_json
from metasae.locks import harvesting_into
from metasae.progress.progress import SILENT, Progress
from metasae.recipe import recipe

FORMAT = 1
LEDGER = "ledger.json"


@dataclass(frozen=True)
class TrainingWindow:
    """first, stop: its batches, counted over all windows. d: width; mean_square: mean of ||x||^2 over its tokens.

    behind: the cursor where the next window begins; None where that is the text's start.
    """

    number: int
    tokens: int
    d: int
    first: int
    stop: int
    mean_square: float
    behind: dict | None


class RollingHarvest:
    """Windows of one run, in `folder`. batch: tokens of a training batch. longest: as of `ActivationCache`. `windows`:
    those harvested so far, dropped or not.

    Raises UserError when the folder holds windows of another harvest.
    """

    def __init__(
        self,
        host: Host,
        text: recipe.Text,
        spec: recipe.Harvest,
        batch: int,
        folder: str | Path,
        longest: float = math.inf,
        progress: Progress = SILENT,
        documents: Iterable[Document] | None = None,
    ):
        self.host, self.text, self.spec, self.batch = host, text, spec, batch
        self.folder, self.progress, self.documents = Path(folder), progress, documents
        self.longest = longest
        self.identity = identity(host, text, spec, documents)
        self.fingerprint = fingerprint_of(self.identity)
        self.pool_tokens = POOL_BATCHES * spec.batch_tokens
        self._facts = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": {"window_tokens": spec.window_tokens, "batch_tokens": spec.batch_tokens, "batch": batch},
        }
        ledger = self.folder / LEDGER
        if ledger.is_file() and not self._facts.items() <= read_json(ledger).items():
            raise UserError(
                f"{self.folder} holds windows of another harvest; choose another --out or delete the folder"
            )
        self.windows = training_windows(self.folder)
        self._pools: Iterator[tuple[Pool, Cursor]] | None = None
        self._place: Cursor | None = None
        self._thread = ThreadPoolExecutor(1, "metasae-windows")
        self._ahead: Future | None = None
        self._closing = False

    def window(self, number: int) -> tuple[TrainingWindow, StoredSplit | Chosen]:
        """Window `number` and its activations, harvested where it is not on the disk. Those before it have been asked
        for once.

        Raises UserError as `metasae.data.cache.activations.harvest` does, and where the whole text does not fill one
        batch.
        """
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.result()
        self._harvest(number, self.progress)
        return open_window(self.folder, number, self.longest)

    def ahead(self, number: int) -> None:
        """Begins to harvest window `number` in the background; the next `window` waits for it.

        Does nothing on a CPU, where the model and the training would compete for the cores.
        """
        if self.host.device.type != "cpu" and self._ahead is None:
            self._ahead = self._thread.submit(self._harvest, number, SILENT)

    def drop(self, number: int) -> None:
        """Deletes a window's activations."""
        shutil.rmtree(folder_of(self.folder, number), ignore_errors=True)

    def close(self) -> None:
        """Stops the harvest in the background, after the pool of text that it is working on."""
        self._closing = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _harvest(self, number: int, progress: Progress) -> None:
        folder = folder_of(self.folder, number)
        if number < len(self.windows) and (folder / INDEX).is_file():
            return
        behind = self.windows[number - 1].behind if number else None
        start = Cursor({"train": 0}) if behind is None else Cursor(**behind)
        settings = {
            "tokens": {"train": self.spec.window_tokens + self.pool_tokens + self.text.context},
            "batch_tokens": self.spec.batch_tokens,
            "shard_tokens": self.spec.shard_tokens,
            "window": number,
        }
        with harvesting_into(folder, progress):
            writer = CacheWriter(folder, self.identity, self.fingerprint, self.host.d, settings)
            end, over = self._fill(writer, start, number, progress)
            writer.finish(_since(end, start), self.host.name, {})
        self._enter(number, end, over)

    def _fill(self, writer: CacheWriter, start: Cursor, number: int, progress: Progress) -> tuple[Cursor, bool]:
        """Pools into one window, from where it was stopped.

        Returns the cursor after it, and whether the text is at its end.
        """
        done = resume([writer]) or _since(start, start)
        cursor = replace(done, found={"train": start.found["train"] + done.found["train"]})
        with progress.task(f"harvesting window {number}", self.spec.window_tokens, "tokens") as task:
            task.skip(min(done.found["train"], self.spec.window_tokens))
            try:
                while done.found["train"] < self.spec.window_tokens:
                    if self._closing:
                        # as a signal in the main thread does, so that a later process continues from here
                        raise KeyboardInterrupt
                    pool, behind = self._next_pool(cursor)
                    if pool is None:
                        return cursor, True
                    own = [(split, window, row - start.found["train"]) for split, window, row in pool]
                    run_pools([self.host], [writer], [own], self.spec, task)
                    cursor, done = behind, _since(behind, start)
                    writer.note_at_times(done)
            except (KeyboardInterrupt, Dropped):
                writer.note(done)
                raise
        return cursor, False

    def _next_pool(self, cursor: Cursor) -> tuple[Pool | None, Cursor]:
        """The pool after a cursor, None where the text ends.

        Where the last pool ended at the cursor, the reading continues there; otherwise the text is read from its start.
        """
        if self._pools is None or self._place != cursor:
            source = texts.documents(self.text) if self.documents is None else texts.clean(self.documents)
            start = cursor if cursor.document >= 0 else None
            # so many that it never fills, as the end of a window is not the end of the text
            feed = Feed(self.host.tokenizer, self.host.frame, self.text, {"train": 1 << 62}, start)
            self._pools = feed.pools(source, self.pool_tokens)
        pool, self._place = next(self._pools, (None, cursor))
        return pool, self._place

    def _enter(self, number: int, end: Cursor, over: bool) -> None:
        """Writes a window into the ledger, or compares it with what the ledger says of it."""
        split = ActivationCache(folder_of(self.folder, number), longest=self.longest).split("train")
        first = self.windows[number - 1].stop if number else 0
        stop, behind = first + split.n_tokens // self.batch, None if over else asdict(end)
        window = TrainingWindow(number, split.n_tokens, split.d, first, stop, split.mean_square, behind)
        if over and stop == 0:
            raise UserError(
                f"text.source '{self.text.source}' does not fill one batch of {self.batch:,} tokens; use a longer text"
            )
        if number == len(self.windows):
            self.windows.append(window)
            write_json(self.folder / LEDGER, self._facts | {"windows": [asdict(entry) for entry in self.windows]})
        elif replace(window, mean_square=self.windows[number].mean_square) != self.windows[number]:
            raise UserError(
                f"the text or the model has changed since window {number} was harvested; "
                f"delete {self.folder} and the half-trained arms"
            )


def training_windows(folder: Path) -> list[TrainingWindow]:
    """The windows harvested so far, as the ledger says, dropped or not."""
    ledger = folder / LEDGER
    return [TrainingWindow(**entry) for entry in read_json(ledger)["windows"]] if ledger.is_file() else []


def open_window(folder: Path, number: int, longest: float = math.inf) -> tuple[TrainingWindow, StoredSplit | Chosen]:
    """A window that is on the disk; longest: as of `ActivationCache`. Raises UserError where it is not whole."""
    return training_windows(folder)[number], ActivationCache(folder_of(folder, number), longest=longest).split("train")


def folder_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}"


def _since(cursor: Cursor, start: Cursor) -> Cursor:
    """The cursor with tokens counted from a window's start."""
    return replace(cursor, found={"train": cursor.found["train"] - start.found["train"]})
