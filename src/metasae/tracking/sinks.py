"""The sinks, TensorBoard and Weights & Biases, which have the same methods.

    last(name) -> int               the last step that was sent before, 0 for none
    curves(name, step, numbers)     sends the numbers of one training step
    measures(name, step, numbers)   sends the measures of the SAE after `step` steps
    close()                         writes everything before it returns

name: of an SAE, `solo-s0`. numbers: dotted name -> value.
"""

import importlib.util
import os
import shutil
import uuid
from pathlib import Path

from metasae import files
from metasae.arms.folder import read_object
from metasae.errors import UserError, install_hint
from metasae.files import toml

# {name of a sink, which is its package: its title}
SINKS = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
# The file with {SAE: its run on the service}, so that a later call continues the same run.
IDS = "wandb.json"


class TensorBoard:
    """TensorBoard's event files in RUN/tensorboard, one folder for each SAE.

    They are written again from the record, which is small, so no step appears twice.
    """

    def __init__(self, folder: Path):
        self._folder, self._writers = folder / "tensorboard", {}

    def last(self, name: str) -> int:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return 0

    def curves(self, name: str, step: int, numbers: dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name))
        for key, value in numbers.items():
            self._writers[name].add_scalar(key, value, step)

    measures = curves

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """Weights & Biases: one run per SAE, in a group named after the run folder.

    WANDB_MODE=offline keeps everything on this machine. project: None takes WANDB_PROJECT or 'metasae'. Raises
    UserError if the service would ask for a key.
    """

    def __init__(self, folder: Path, project: str | None = None):
        import wandb

        self._wandb, self._folder = wandb, folder
        self._project = project or os.environ.get("WANDB_PROJECT") or "metasae"
        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not _has_key(wandb):
            raise UserError(
                "Weights & Biases has no API key: run `wandb login`, set WANDB_API_KEY, "
                "or keep everything on this machine with WANDB_MODE=offline"
            )
        self._ids = read_object(folder / IDS)
        self._name, self._run = None, None

    def last(self, name: str) -> int:
        run = self._run_of(name)
        return max(run.step - 1, 0) if run.resumed else 0

    def curves(self, name: str, step: int, numbers: dict[str, float]) -> None:
        self._run_of(name).log(numbers, step=step)

    def measures(self, name: str, step: int, numbers: dict[str, float]) -> None:
        """Writes them to the run's summary, as they are of the trained SAE, not of a step."""
        self._run_of(name).summary.update(numbers)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._name, self._run = None, None

    def _run_of(self, name: str):
        """The open run of an SAE. SAEs are sent one after another, so one run is open at a time."""
        if name == self._name:
            return self._run
        self.close()
        if name not in self._ids:
            self._ids[name] = uuid.uuid4().hex[:16]
            files.write_json(self._folder / IDS, self._ids)
        group = self._folder.resolve().name
        self._run = self._wandb.init(
            project=self._project,
            group=group,
            name=f"{group}/{name}",
            id=self._ids[name],
            resume="allow",
            config=_config(self._folder, name),
            dir=str(self._folder),
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        self._name = name
        return self._run


def _has_key(wandb) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # a release without that option
        return bool(wandb.api.api_key)


def _config(folder: Path, name: str) -> dict:
    """The recipe with dotted keys, and the SAE's arm and seed."""
    tables = ((table, values) for table, values in _recipe(folder, name).items() if isinstance(values, dict))
    flat = {f"{table}.{key}": value for table, values in tables for key, value in values.items()}
    arm, _, seed = name.partition("-s")
    return {**flat, "arm": arm, "seed": int(seed.partition("-")[0])}


def _recipe(folder: Path, name: str) -> dict:
    """The recipe of an SAE: from the SAE if it is trained, before that from the run or the sweep's plan."""
    for place in ("arms", "saes"):
        config = read_object(folder / place / name / "primary" / "cfg.json")
        if config:
            return config.get("metadata", {}).get("metasae", {}).get("recipe", {})
    if (folder / "recipe.toml").is_file():
        return toml.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    return files.read_json(folder / "plan.json").get("base", {})


Sink = TensorBoard | WandB


def check_sink(to: str) -> None:
    """Raises UserError for an unknown sink, and if its package is not installed."""
    if to not in SINKS:
        raise UserError(f"tracking with '{to}' is not supported; choose {' or '.join(SINKS)}")
    if importlib.util.find_spec(to) is None:
        raise UserError(f"tracking with {SINKS[to]} needs its package: {install_hint('tracking')}")


def open_sink(to: str, folder: str | Path, project: str | None = None) -> Sink:
    """Opens a sink. Raises UserError for an unknown sink, a missing package, and a service without an API key."""
    check_sink(to)
    return TensorBoard(Path(folder)) if to == "tensorboard" else WandB(Path(folder), project)
