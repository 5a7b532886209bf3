"""Sends what is new in a run folder to a sink: continuously during a run, or once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metasae import files
from metasae.arms.folder import read_metrics
from metasae.compare.catalogue import CATALOGUE, value_of
from metasae.errors import UserError
from metasae.tracking.sinks import Sink, open_sink

# Seconds between two readings of the run folder during a run.
EVERY = 5.0
# The keys of a line of metrics.jsonl that give its step; the others are numbers to send.
PLACE = ("step", "meta_step")


class Follower:
    """Sends what is new of each SAE of a run or sweep, and remembers what was sent."""

    def __init__(self, folder: str | Path, sink: Sink):
        self.folder, self.sink = Path(folder), sink
        # by SAE: the last step sent, and the modification time of the measures that were sent
        self._steps: dict[str, int] = {}
        self._measured: dict[str, float] = {}

    def look(self) -> int:
        """Sends what is new; returns the number of lines of curves and sets of measures sent."""
        return sum(self._curves(folder) + self._measures(folder) for folder in sae_folders(self.folder))

    def _curves(self, folder: Path) -> int:
        name, sent = folder.name, 0
        done = self._steps[name] if name in self._steps else self.sink.last(name)
        for row in read_metrics(folder / "metrics.jsonl"):
            # a run that was killed writes the lines after its checkpoint again, and they are equal
            if row["step"] > done:
                numbers = {f"train/{key}": value for key, value in row.items() if key not in PLACE}
                self.sink.curves(name, row["step"], _known(numbers))
                done, sent = row["step"], sent + 1
        self._steps[name] = done
        return sent

    def _measures(self, folder: Path) -> int:
        path = folder / "measures.json"
        written = path.stat().st_mtime if path.is_file() else None
        if written is None or self._measured.get(folder.name) == written:
            return 0
        measures = files.read_json(path)
        numbers = {f"measures/{q.key}": value_of(measures, q) for q in CATALOGUE}
        self.sink.measures(folder.name, self._steps[folder.name], _known(numbers))
        self._measured[folder.name] = written
        return 1


def _known(numbers: dict[str, float | None]) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if number is not None}


def sae_folders(folder: Path) -> list[Path]:
    """The folders of the SAEs of a run (arms/) or sweep (saes/) whose training has begun."""
    return sorted(path.parent for place in ("arms", "saes") for path in (folder / place).glob("*/metrics.jsonl"))


def track(folder: str | Path, to: str, project: str | None = None, follow: bool = False, every: float = EVERY) -> int:
    """Sends the curves and measures of a run or sweep so far; returns the number of new lines of curves and sets of
    measures.

    follow: keeps sending until it is interrupted. Raises UserError for a folder without SAEs, and as `open_sink`.
    """
    if not Path(folder).is_dir() or not (follow or sae_folders(Path(folder))):
        raise UserError(
            f"{folder} has no SAE whose training has begun; give the --out folder of `metasae run` or `metasae sweep`"
        )
    sink = open_sink(to, folder, project)
    follower, sent = Follower(folder, sink), 0
    try:
        sent += follower.look()
        while follow:
            time.sleep(every)
            sent += follower.look()
    except KeyboardInterrupt:
        if not follow:
            raise
    finally:
        sink.close()
    return sent


@contextmanager
def following(
    folder: str | Path, to: str | None, say: Callable[[str], None], project: str | None = None, every: float = EVERY
) -> Iterator[None]:
    """Sends what a run writes during the block, from a thread. Does nothing if `to` is None.

    Raises UserError before the block if the sink cannot be opened. If it fails later, one line is printed by `say` and
    sending stops.
    """
    if to is None:
        yield
        return
    sink, over = open_sink(to, folder, project), threading.Event()

    def go() -> None:
        try:
            follower = Follower(folder, sink)
            while not over.wait(every):
                follower.look()
            follower.look()
            sink.close()
        except Exception as error:  # any error here must not stop the run
            reason = " ".join(str(error).split())[:200]
            command = f"metasae track {folder} --to {to}"
            say(f"tracking stopped ({reason}); the run continues. `{command}` sends what is missing")

    thread = threading.Thread(target=go, name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
