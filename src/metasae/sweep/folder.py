"""The sweep folder: its layout, and locks that end with the process that holds them.

SWEEP/plan.json                      the recipe, the settings, the seeds, what is searched
SWEEP/harvest.json                   where the activations are
SWEEP/saes/<arm>-s<seed>-<hash>/     an SAE as in a run's arms/, with sae.json (times) and failed.json (why it failed)
SWEEP/cells/<hash>/                  a run folder whose arms/ are links into saes/, with cell.json (setting, state)
SWEEP/workers/                       time and memory of each worker
SWEEP/sweep.json  sweep.md  figures/  best.toml
SWEEP/sweep.lock                     held while the plan changes, or a cell is drawn or ended
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from metasae import files, locks
from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.errors import UserError
from metasae.sweep.cells import Member, Setting

OPEN, DONE, FAILED, STOPPED = "open", "done", "failed", "stopped"


@dataclass(frozen=True)
class Cell:
    """The content of cell.json. trials: the cell's numbers in the order in which cells were asked for; several if a
    search drew it again.

    why: the reason that it failed or was stopped. seeds: that its state is about. objectives: their values, None if it
    has none.
    """

    name: str
    setting: Setting
    trials: list[int]
    state: str = OPEN
    why: str = ""
    seeds: Sequence[int] = ()
    objectives: list[float] | None = None


class SweepFolder:
    """A sweep folder: its paths, cells and SAEs."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def harvest(self) -> Path:
        """Where the sweep's activations are, and the seconds that their harvest took."""
        return self.path / "harvest.json"

    def is_harvested(self, tokens: dict[str, int]) -> bool:
        """Whether the activations that harvest.json names still exist and are at least so many of each split."""
        from metasae.data.cache.cache import is_held

        note = read_object(self.harvest)
        return bool(note) and is_held(note["cache"], note["fingerprint"], tokens)

    def locked(self) -> AbstractContextManager[bool]:
        """Holds the folder's lock."""
        return locked(self.path / "sweep.lock")

    def sae(self, member: Member) -> Arm:
        """A member's SAE, as an `Arm` under the name that it is trained as."""
        return Arm(member.trained_as, member.seed, self.path / "saes" / member.name)

    def run(self, cell: str) -> RunFolder:
        """A cell's run folder."""
        return RunFolder(self.path / "cells" / cell)

    def cells(self) -> list[Cell]:
        """All cells that were asked for, in the order of their trials."""
        cells = []
        for path in self.path.glob("cells/*/cell.json"):
            values = files.read_json(path)
            setting = Setting(values.pop("values"), values.pop("kind"))
            cells.append(Cell(path.parent.name, setting, **values))
        return sorted(cells, key=lambda cell: cell.trials)

    def write_cell(self, cell: Cell) -> None:
        values = asdict(cell)
        name, setting = values.pop("name"), values.pop("setting")
        files.write_json(self.run(name).folder / "cell.json", setting | values)

    def failure(self, member: Member) -> str | None:
        """Why an SAE failed; None if it did not. It is not tried again until a later call deletes failed.json."""
        return read_object(self.sae(member).folder / "failed.json").get("why")


def times(sae: Path) -> dict:
    """The content of sae.json: the workers that worked on the SAE, in order, and the seconds of training (train), of
    its steps alone (steps) and of measuring (measure).
    """
    return {"workers": [], "train": 0.0, "steps": 0.0, "measure": 0.0} | read_object(sae / "sae.json")


def locked(path: Path, wait: bool = True) -> AbstractContextManager[bool]:
    """Holds the lock file at `path` during the block and creates it if needed; yields False if `wait` is False and
    another process holds it.

    Raises UserError if the file cannot be written, or the file system has no locks, which workers on one folder need.
    """

    def refuse(why: str) -> NoReturn:
        raise UserError(f"cannot lock {path}: {why}; choose another --out on a file system with locks")

    return locks.locked(path, "free some space or choose another --out", unlockable=refuse, wait=wait)


def link(target: Path, place: Path) -> None:
    """Makes a relative link, which stays valid when the whole folder is moved. An existing link is replaced. Raises
    UserError if the file system has no symbolic links.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent), target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"cannot link {place}: {error.strerror}; put the sweep on a file system with symbolic links"
        ) from None
