"""The whole state of a training run in one safetensors file, written whole or not at all.

It holds weights, Adam's moments, firing counters, warm cuts, step counts and pending metrics. The position in the
stream of batches is the number of primary steps, and random numbers depend on seed and step alone. So a training that
is resumed from this file gives the same bits.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from metasae.errors import UserError
from metasae.files import write_tensors
from metasae.recipe.recipe import Recipe
from metasae.train.learner import Learner
from metasae.train.trainer import Done, Trainer

FILE = "checkpoints/latest.safetensors"


def save(trainer: Trainer, pending: list[dict[str, float]], metrics_bytes: int, folder: Path) -> None:
    """`pending`: metrics of steps not yet written as a line; `metrics_bytes`: length of metrics.jsonl at this
    moment.
    """
    header = header_of(trainer, pending, metrics_bytes)
    write_tensors(folder / FILE, tensors_of(trainer), {"state": json.dumps(header)})


def load(trainer: Trainer, folder: Path) -> tuple[list[dict[str, float]], int] | None:
    """Puts the saved state into a fresh trainer; returns (pending metrics, length of metrics.jsonl), or None without a
    checkpoint.

    Raises UserError when the file is damaged, or was made by another recipe, arm or seed.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt", device=str(trainer.device)) as file:
            header = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise damaged(path, error) from None
    check(header, trainer, path)
    return restore(trainer, header, tensors)


def steps(folder: Path) -> int:
    """Primary steps done at the last checkpoint; 0 without one. Raises UserError when it is damaged."""
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])["done"]["primary"]
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it to train this arm again from its start")


def header_of(trainer: Trainer, pending: list[dict[str, float]], metrics_bytes: int) -> dict:
    """All of the state that is not a tensor, JSON-able."""
    return {
        "done": vars(trainer.done),
        "numbers": {
            name: {"cut": learner.cut, "probe_cut": learner.probe_cut, "architecture": learner.architecture.numbers()}
            for name, learner in _learners(trainer).items()
        },
        "sigma": vars(trainer.sigma) if trainer.sigma else None,
        "arm": trainer.arm,
        "seed": trainer.seed,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "pending": pending,
        "metrics_bytes": metrics_bytes,
    }


def tensors_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every tensor of the state, by `primary.` or `meta.` and its name."""
    return {
        f"{name}.{key}": value for name, learner in _learners(trainer).items() for key, value in _state(learner).items()
    }


def check(header: dict, trainer: Trainer, path: Path) -> None:
    """Raises UserError when the header is that of another recipe, arm or seed."""
    if header.get("births"):
        # its recipe reads as one without births, and the training would go on as another arm
        raise UserError(f"{path} is of an earlier version's training with births; delete it to train this arm again")
    ours = json.loads(json.dumps(trainer.recipe.model_dump(mode="json")))
    # a key that an earlier release did not have has its default
    theirs = json.loads(json.dumps(Recipe.stored(header["recipe"]).model_dump(mode="json")))
    for table in ("sae", "meta", "train"):
        if theirs[table] != ours[table]:
            changed = next(key for key in ours[table] if theirs[table][key] != ours[table][key])
            raise UserError(f"{path} was made with another {table}.{changed}; choose another --out or delete it")
    if (header["arm"], header["seed"]) != (trainer.arm, trainer.seed):
        raise UserError(f"{path} belongs to {header['arm']}-s{header['seed']}, not {trainer.arm}-s{trainer.seed}")


def restore(trainer: Trainer, header: dict, tensors: dict[str, torch.Tensor]) -> tuple[list[dict[str, float]], int]:
    """Puts a state into a fresh trainer; returns (pending metrics, length of metrics.jsonl)."""
    for name, learner in _learners(trainer).items():
        _restore(learner, _below(f"{name}.", tensors))
        numbers = header["numbers"][name]
        learner.cut, learner.probe_cut = numbers["cut"], numbers["probe_cut"]
        learner.architecture.load(numbers["architecture"], trainer.device)
    trainer.done = Done(**header["done"])
    if trainer.sigma:
        vars(trainer.sigma).update(header["sigma"])
    return header["pending"], header["metrics_bytes"]


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _learners(trainer: Trainer) -> dict[str, Learner]:
    return {"primary": trainer.primary} | ({"meta": trainer.meta} if trainer.meta else {})


def _state(learner: Learner) -> dict[str, torch.Tensor]:
    adam = {f"adam.{key}": value for key, value in learner.optimiser.state().items()}
    counters = {name: getattr(learner, name) for name in ("silent_N", "rate_N", "total_N")}
    return {**learner.weights.tensors(), **adam, **counters}


def _restore(learner: Learner, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in learner.weights.tensors().items():
        tensor.copy_(state[name])
    learner.silent_N.copy_(state["silent_N"])
    learner.rate_N.copy_(state["rate_N"])
    learner.total_N.copy_(state["total_N"])
    learner.optimiser.load_state(
        {key.removeprefix("adam."): value for key, value in state.items() if key.startswith("adam.")}
    )
