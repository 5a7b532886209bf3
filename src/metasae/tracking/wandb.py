"""Weights & Biases: one run per SAE, in a group named after the run folder.

WANDB_MODE=offline keeps all on this machine.
"""

import os
import uuid
from pathlib import Path

from metasae import files
from metasae.arms.folder import read_object
from metasae.errors import UserError
from metasae.files import toml

PROJECT = "metasae"
# SAE -> its run there, so that a later call goes on with the same one
IDS = "wandb.json"


class WandB:
    """project: WANDB_PROJECT or 'metasae' where None. Raises UserError where the service would ask for a key."""

    def __init__(self, folder: Path, project: str | None = None):
        import wandb

        self._wandb, self._folder, self._project = wandb, folder, project or os.environ.get("WANDB_PROJECT") or PROJECT
        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not _has_key(wandb):
            raise UserError(
                "Weights & Biases knows no key: run `wandb login`, set WANDB_API_KEY, "
                "or keep it on this machine with WANDB_MODE=offline"
            )
        self._ids = read_object(folder / IDS)
        self._name, self._run = None, None

    def last(self, name: str) -> int:
        run = self._run_of(name)
        return max(run.step - 1, 0) if run.resumed else 0

    def curves(self, name: str, step: int, numbers: dict[str, float]) -> None:
        self._run_of(name).log(numbers, step=step)

    def measures(self, name: str, step: int, numbers: dict[str, float]) -> None:
        """As the run's summary: they are of the trained SAE, not of a step."""
        self._run_of(name).summary.update(numbers)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._name, self._run = None, None

    def _run_of(self, name: str):
        """SAEs are trained one after another, so one run is open at a time."""
        if name != self._name:
            self.close()
            self._run, self._name = self._start(name), name
        return self._run

    def _start(self, name: str):
        if name not in self._ids:
            self._ids[name] = uuid.uuid4().hex[:16]
            files.write_json(self._folder / IDS, self._ids)
        group = self._folder.resolve().name
        return self._wandb.init(
            project=self._project,
            group=group,
            name=f"{group}/{name}",
            id=self._ids[name],
            resume="allow",
            config=_config(self._folder, name),
            dir=str(self._folder),
            settings=self._wandb.Settings(silent=True, console="off"),
        )


def _has_key(wandb) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # a release before that option
        return bool(wandb.api.api_key)


def _config(folder: Path, name: str) -> dict:
    """The recipe with dotted keys, and which SAE of it this is."""
    tables = {table: values for table, values in _recipe(folder, name).items() if isinstance(values, dict)}
    flat = {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
    arm, _, seed = name.partition("-s")
    return {**flat, "arm": arm, "seed": int(seed.partition("-")[0])}


def _recipe(folder: Path, name: str) -> dict:
    """That of the SAE itself once it is trained, which in a sweep is its own; before that, of the run or the plan."""
    for place in ("arms", "saes"):
        config = read_object(folder / place / name / "primary" / "cfg.json")
        if config:
            return config.get("metadata", {}).get("metasae", {}).get("recipe", {})
    if (folder / "recipe.toml").is_file():
        return toml.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    return files.read_json(folder / "plan.json").get("base", {})
