"""The sweep folder: where everything lies, and locks that end with the process which holds them.

SWEEP/plan.json                      the recipe, the settings, the seeds, what is searched
SWEEP/journal.log                    Optuna's study, unless a storage was named
SWEEP/saes/<arm>-s<seed>-<hash>/     an SAE as in a run's arms/, with sae.json (times) and failed.json (why, where it failed)
SWEEP/cells/<hash>/                  a run folder whose arms/ are links into saes/, with cell.json (setting, state)
SWEEP/workers/                       what each worker took: time, memory
SWEEP/sweep.json  sweep.md  figures/  best.toml
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metasae import files
from metasae.errors import UserError
from metasae.sweep.cells import Setting

try:
    import fcntl
except ImportError:  # Windows, where workers are not kept apart: `launch` allows one
    fcntl = None

OPEN, DONE, FAILED, STOPPED = "open", "done", "failed", "stopped"


@dataclass(frozen=True)
class Cell:
    """What cell.json holds. trials: numbers in the study. why: of a failed or stopped cell. seeds: those its state speaks of."""

    name: str
    setting: Setting
    trials: tuple[int, ...]
    state: str = OPEN
    why: str = ""
    seeds: tuple[int, ...] = ()

    def as_dict(self) -> dict:
        return {
            **self.setting.as_dict(),
            "trials": list(self.trials),
            "state": self.state,
            "why": self.why,
            "seeds": list(self.seeds),
        }


class SweepFolder:
    """Paths in a sweep folder, and its cells."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.log"

    def sae(self, name: str) -> Path:
        return self.path / "saes" / name

    def cell(self, name: str) -> Path:
        return self.path / "cells" / name

    def cells(self) -> list[Cell]:
        """All cells that were taken up, in the order of their trials."""
        found = [self.read_cell(path.parent.name) for path in self.path.glob("cells/*/cell.json")]
        return sorted(found, key=lambda cell: cell.trials)

    def read_cell(self, name: str) -> Cell:
        held = files.read_json(self.cell(name) / "cell.json")
        return Cell(
            name, Setting.from_dict(held), tuple(held["trials"]), held["state"], held["why"], tuple(held["seeds"])
        )

    def write_cell(self, cell: Cell) -> None:
        files.write_json(self.cell(cell.name) / "cell.json", cell.as_dict())

    def measured(self, name: str) -> bool:
        return (self.sae(name) / "measures.json").exists()

    def failure(self, name: str) -> str | None:
        """Why an SAE failed, or None."""
        path = self.sae(name) / "failed.json"
        return files.read_json(path)["why"] if path.exists() else None


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file at `path`, which is made where there is none and stays; gives False where `wait` is False and another holds it.

    The operating system lets go of the lock when a process ends, however it ends, so that no lock is ever stale.
    Raises UserError when the file cannot be written, or the file system keeps no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
    except OSError as error:
        raise UserError(
            f"cannot write {path.parent}: {error.strerror}; free some space or choose another --out"
        ) from None
    with file:
        yield fcntl is None or _acquired(file, path, wait)


def _acquired(file, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{path} cannot be locked ({error.strerror}); put the sweep on a file system that keeps locks"
        ) from None
    return True


def link(target: Path, place: Path) -> None:
    """A relative link, so that a folder that is moved as a whole keeps it. One that points elsewhere is replaced."""
    wanted = os.path.relpath(target, place.parent)
    if place.is_symlink() and os.readlink(place) == wanted:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(wanted, target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"cannot link {place}: {error.strerror}; put the sweep on a file system with symbolic links"
        ) from None
