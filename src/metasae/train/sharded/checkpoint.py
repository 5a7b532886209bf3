"""A checkpoint that every rank writes its part of, and that any number of ranks goes on from.

torch.distributed.checkpoint plans what is read from where; the files are safetensors, one per rank, and state.json, no
pickles:

    checkpoints/sharded-000000500-000000250/*.safetensors, state.json      after 500 primary and 250 meta steps

A folder is written under another name and renamed when all of it is there; then older ones are deleted. With one rank
the ordinary single file is written, and either kind is read by any number of ranks.
"""

import hashlib
import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasae.errors import UserError
from metasae.files import read_json, write_json
from metasae.ranks.ranks import ALONE, Ranks, by_another_rank
from metasae.train import checkpoint
from metasae.train.sharded.trainer import REPLICATED
from metasae.train.trainer import Trainer

STATE = "state.json"


def save(trainer: Trainer, pending: list[dict[str, float]], metrics_bytes: int, folder: Path) -> None:
    """See `metasae.train.checkpoint.save`. Called by all ranks; returns when the whole is on disk."""
    ranks = _ranks(trainer)
    if ranks.size == 1:
        checkpoint.save(trainer, pending, metrics_bytes, folder)
        _clear(folder, keep=folder / checkpoint.FILE)
        return
    done = trainer.done
    place = folder / "checkpoints" / f"sharded-{done.primary:09d}-{done.meta:09d}"
    part = place.with_name(f".{place.name}.part")
    tensors, steps = _apart(checkpoint.tensors_of(trainer))
    whole = _digest([tensor for name, tensor in tensors.items() if not _spread(name)])
    ranks.same(whole, "what all of them hold", "they must run on processors of one kind, with the same torch")
    parts = {name: _placed(name, tensor, trainer) for name, tensor in tensors.items()}
    dcp = _dcp()
    with _disk(part):
        if ranks.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        ranks.wait()
        dcp.save(parts, storage_writer=dcp.HuggingFaceStorageWriter(str(part), save_distributed=True))
    if ranks.first:
        write_json(
            part / STATE, checkpoint.header_of(trainer, pending, metrics_bytes) | {"steps": steps, "ranks": ranks.size}
        )
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
        _clear(folder, keep=place)
    ranks.wait()


def load(trainer: Trainer, folder: Path) -> tuple[list[dict[str, float]], int] | None:
    """See `metasae.train.checkpoint.load`. Called by all ranks, however many wrote what is read."""
    ranks = _ranks(trainer)
    # the first rank decides, so that all read the same
    place = ranks.from_first(_latest(folder) if ranks.first else None)
    if place is None:
        return None
    if place.is_dir():
        header = read_json(place / STATE)
        checkpoint.check(header, trainer, place)
        return checkpoint.restore(trainer, header, _read(place, header, trainer))
    if ranks.size == 1:
        return checkpoint.load(trainer, folder)
    return _share_of_one_file(trainer, place)


def steps(folder: Path) -> int:
    """See `metasae.train.checkpoint.steps`; of a checkpoint by any number of ranks."""
    place = _latest(folder)
    return (
        read_json(place / STATE)["done"]["primary"]
        if place is not None and place.is_dir()
        else checkpoint.steps(folder)
    )


def _latest(folder: Path) -> Path | None:
    """The folder that goes furthest, or the single file."""
    whole = sorted(path.parent for path in (folder / "checkpoints").glob(f"sharded-*/{STATE}"))
    file = folder / checkpoint.FILE
    return whole[-1] if whole else file if file.exists() else None


def _clear(folder: Path, keep: Path) -> None:
    """Deletes what an earlier save left, of either kind."""
    for path in (folder / "checkpoints").glob("*sharded-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
    if keep != folder / checkpoint.FILE:
        (folder / checkpoint.FILE).unlink(missing_ok=True)


def _read(place: Path, header: dict, trainer: Trainer) -> dict[str, Tensor]:
    """This rank's part of every tensor."""
    from torch.distributed.checkpoint.api import CheckpointException

    dcp, ranks = _dcp(), _ranks(trainer)
    local = {}
    for name, tensor in checkpoint.tensors_of(trainer).items():
        local[name] = torch.empty_like(tensor)
        learner, _, weight = name.partition(".")
        adam = f"{learner}.adam.{weight}"
        # Adam has moments of what is trained from its first step on
        if f"{adam}.step" in header["steps"]:
            local |= {f"{adam}.{moment}": torch.empty_like(tensor) for moment in ("exp_avg", "exp_avg_sq")}
    wanted = {name: _placed(name, tensor, trainer) for name, tensor in local.items()}
    _check_files(place, header["ranks"])
    try:
        with _quietly():
            dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(place)), no_dist=ranks.size == 1)
    except (Exception, CheckpointException) as error:
        if by_another_rank(error):
            raise
        raise checkpoint.damaged(place, str(error).strip().splitlines()[-1]) from None
    return local | {name: torch.tensor(step, device=trainer.device) for name, step in header["steps"].items()}


def _check_files(place: Path, ranks: int) -> None:
    """Raises UserError unless the file of every rank is there and not cut short."""
    files = list(place.glob("*.safetensors"))
    if len(files) != ranks:
        raise checkpoint.damaged(place, f"{len(files)} of {ranks} files are there")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise checkpoint.damaged(place, f"{file.name}: {error}") from None


def _share_of_one_file(trainer: Trainer, path: Path) -> tuple[list[dict[str, float]], int]:
    """This rank's part of what one rank saved."""
    try:
        with safe_open(path, "pt", device=str(trainer.device)) as file:
            header = json.loads(file.metadata()["state"])
            own = slice(trainer.own.start, trainer.own.stop)
            names = list(file.keys())
            tensors = {name: file.get_slice(name)[own] if _spread(name) else file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise checkpoint.damaged(path, error) from None
    checkpoint.check(header, trainer, path)
    return checkpoint.restore(trainer, header, tensors)


def _apart(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(the tensors without Adam's step counts, the step counts)."""
    steps = {name: float(tensor) for name, tensor in tensors.items() if name.endswith(".step")}
    return {name: tensor for name, tensor in tensors.items() if name not in steps}, steps


def _dcp():
    import torch.distributed.checkpoint as dcp

    if not hasattr(dcp, "HuggingFaceStorageReader"):
        raise UserError(
            "checkpoints of several ranks need a torch that shares out safetensors, "
            f"newer than {torch.__version__}; update torch"
        )
    return dcp


def _placed(name: str, tensor: Tensor, trainer: Trainer) -> Tensor:
    """The tensor as a part of the whole, where it is one."""
    ranks = _ranks(trainer)
    if ranks.size == 1 or not _spread(name):
        return tensor
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(trainer.device.type, (ranks.size,))
    shape = torch.Size([trainer.recipe.sae.n, *tensor.shape[1:]])
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=shape, stride=tensor.stride())


def _spread(name: str) -> bool:
    """Whether a tensor has a row or a number per latent of the primary."""
    whole = any(part in REPLICATED for part in name.split("."))
    return name.startswith("primary.") and not whole and not name.endswith(".step")


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _ranks(trainer: Trainer) -> Ranks:
    return getattr(trainer, "ranks", ALONE)


@contextmanager
def _quietly():
    """Without torch's warnings on single tensors, which are no news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _disk(path: Path):
    try:
        with _quietly():
            yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; free some space or choose another --out, then run again"
        ) from None
