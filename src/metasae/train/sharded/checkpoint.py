"""A checkpoint of which every rank writes its part; any number of ranks can resume from it.

The files are safetensors, one per rank, and state.json, no pickles:

    checkpoints/sharded-000000500-000000250/rank-*.safetensors, state.json     after 500 primary and 250 meta steps

A rank's file holds its own latents' part of every tensor that has a row or a number per latent of the primary, and all
other tensors whole. The folder is written under another name and renamed when it is complete; then older ones are
deleted. One rank writes the ordinary single file. Any number of ranks reads either kind.
"""

import hashlib
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasae.files import read_json, write_json, write_tensors
from metasae.ranks.ranks import ALONE, Ranks, span_of
from metasae.train import checkpoint
from metasae.train.sharded.trainer import REPLICATED
from metasae.train.trainer import Trainer

STATE = "state.json"


def save(trainer: Trainer, pending: list[dict[str, float]], metrics_bytes: int, folder: Path) -> None:
    """See `metasae.train.checkpoint.save`. Called by all ranks; returns when the whole is on disk."""
    ranks = getattr(trainer, "ranks", ALONE)
    if ranks.size == 1:
        checkpoint.save(trainer, pending, metrics_bytes, folder)
        _clear(folder, keep=folder / checkpoint.FILE)
        return
    done = trainer.done
    place = folder / "checkpoints" / f"sharded-{done.primary:09d}-{done.meta:09d}"
    part = place.with_name(f".{place.name}.part")
    tensors = checkpoint.tensors_of(trainer)
    whole = b"".join(tensor.detach().cpu().numpy().tobytes() for name, tensor in tensors.items() if not _spread(name))
    digest = hashlib.blake2b(whole, digest_size=8).hexdigest()
    ranks.same(digest, "what all of them hold", "they must run on processors of one kind, with the same torch")
    if ranks.first:
        shutil.rmtree(part, ignore_errors=True)
    ranks.wait()
    write_tensors(part / f"rank-{ranks.rank:05d}.safetensors", tensors)
    ranks.wait()
    if ranks.first:
        write_json(part / STATE, checkpoint.header_of(trainer, pending, metrics_bytes) | {"ranks": ranks.size})
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
        _clear(folder, keep=place)
    ranks.wait()


def load(trainer: Trainer, folder: Path) -> tuple[list[dict[str, float]], int] | None:
    """See `metasae.train.checkpoint.load`. Called by all ranks; another number of ranks may have written the files."""
    ranks = getattr(trainer, "ranks", ALONE)
    # the first rank decides, so that all read the same
    place = ranks.from_first(_latest(folder) if ranks.first else None)
    if place is None:
        return None
    header, files = None, [place]
    if place.is_dir():
        header, files = read_json(place / STATE), sorted(place.glob("rank-*.safetensors"))
        if len(files) != header["ranks"]:
            raise checkpoint.damaged(place, f"{len(files)} of {header['ranks']} files are there")
    try:
        metadata, tensors = _read(files, trainer, ranks)
        header = header or json.loads(metadata["state"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise checkpoint.damaged(place, error) from None
    checkpoint.check(header, trainer, place)
    return checkpoint.restore(trainer, header, tensors)


def steps(folder: Path) -> int:
    """See `metasae.train.checkpoint.steps`; the checkpoint may be of any number of ranks."""
    place = _latest(folder)
    if place is None or not place.is_dir():
        return checkpoint.steps(folder)
    return read_json(place / STATE)["done"]["primary"]


def _latest(folder: Path) -> Path | None:
    """The folder with the most steps, or else the single file; None without a checkpoint."""
    whole = sorted(path.parent for path in (folder / "checkpoints").glob(f"sharded-*/{STATE}"))
    file = folder / checkpoint.FILE
    return whole[-1] if whole else file if file.exists() else None


def _clear(folder: Path, keep: Path) -> None:
    """Deletes earlier checkpoints of either kind."""
    for path in (folder / "checkpoints").glob("*sharded-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
    if keep != folder / checkpoint.FILE:
        (folder / checkpoint.FILE).unlink(missing_ok=True)


def _read(files: list[Path], trainer: Trainer, ranks: Ranks) -> tuple[dict | None, dict[str, Tensor]]:
    """(the first file's metadata, this rank's part of every tensor). files: of all ranks that wrote, in their order."""
    n, tensors = trainer.recipe.sae.n, {}
    own = span_of(n, ranks.size, ranks.rank)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        stretches = []
        for writer, file in enumerate(opened):
            span = span_of(n, len(files), writer)
            start, stop = max(own.start, span.start), min(own.stop, span.stop)
            if start < stop:
                stretches.append((file, slice(start - span.start, stop - span.start)))
        for name in opened[0].keys():  # noqa: SIM118  (no dict)
            if _spread(name):
                tensor = torch.cat([file.get_slice(name)[rows] for file, rows in stretches])
            else:
                tensor = opened[0].get_tensor(name)
            tensors[name] = tensor.to(trainer.device)
        return opened[0].metadata(), tensors


def _spread(name: str) -> bool:
    """Whether a tensor has a row or a number per latent of the primary."""
    whole = any(part in REPLICATED for part in name.split("."))
    return name.startswith("primary.") and not whole and not name.endswith(".step")
