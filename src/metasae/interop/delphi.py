"""A firing store as delphi's cache of latents (EleutherAI, `eai-delphi`), for its explainers and scorers.

    OUT/HOOKPOINT/START_END.safetensors    latents START to END, both included
        locations     [nnz, 3]  row, column, latent - START; uint16 where all three fit, else uint32
        activations   [nnz]     fp16
        tokens        int64 [R, L]
    OUT/HOOKPOINT/config.json              model_name, the text, and under `metasae` where the firings come from

delphi has no padding: it packs documents one after another (`pack`). Within documents, the last row of each is padded with `pad_id`.
fp16 rounds by up to 2^-11 of a value, and below 6.1e-5 by up to 3e-8. Where some activation of the store would become infinite or 0
in it, all are written in fp32, which delphi's loader takes as well; config.json says which.
Entries are in the order of latents, then tokens. Nothing of the size of the firings is in memory.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.files import write_json
from metasae.interop import checked
from metasae.interop.arms import Arm, new_folder, open_arm
from metasae.interop.rows import Rows, context_of, rows_of
from metasae.interop.stream import write_safetensors
from metasae.measures.firing.arrays import read_index
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.store import STORE
from metasae.progress.progress import SILENT, Progress

# Files that delphi itself writes per hook point, if it is told nothing else.
FILES = 5
# Entries in memory at once.
CHUNK = 1 << 20


def export_delphi(
    arm_folder: str | Path,
    out: str | Path,
    recipe=None,
    *,
    hookpoint: str | None = None,
    context: int | None = None,
    pack: bool = False,
    pad_id: int = 0,
    latents_per_file: int | None = None,
    progress: Progress = SILENT,
) -> dict:
    """Writes the firings of an arm as a cache that delphi's `LatentDataset(out)` opens; gives what config.json holds.

    hookpoint: the folder's name, None for the SAE's own hook. context: L, None for the context the SAE was trained with; delphi wants
    R L to be a multiple of its `example_ctx_len` (32). latents_per_file: None for five files. recipe: names the text and the model.
    Raises UserError where the arm keeps no firings, `out` is not empty, or a name or size is impossible.
    """
    arm = open_arm(arm_folder, recipe, progress)
    hookpoint = _folder_name(hookpoint or arm.hook or "")
    context = context_of(arm.metadata, context)
    per_file = -(-arm.view.n_latents // FILES) if latents_per_file is None else latents_per_file
    if per_file < 1:
        raise UserError(f"latents_per_file must be at least 1, not {per_file}")
    rows = rows_of(arm.firings.documents, arm.firings.positions, context, pack)
    dtype = _activation_dtype(arm.view.values)
    config = _config(arm, rows, per_file, pad_id, pack, dtype)
    with new_folder(Path(out)) as part, progress.task("delphi cache", len(arm.view.values), "firings") as task:
        (part / hookpoint).mkdir()
        for start in range(0, arm.view.n_latents, per_file):
            end = min(start + per_file, arm.view.n_latents)
            _write(part / hookpoint / f"{start}_{end - 1}.safetensors", arm, rows, start, end, pad_id, dtype)
            task.advance(int(arm.view.indptr[end] - arm.view.indptr[start]))
        write_json(part / hookpoint / "config.json", config)
    return config


def _folder_name(hookpoint: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", hookpoint):
        raise UserError(
            f"{checked.shown(hookpoint)} cannot name a folder; give hookpoint=, letters, digits, dots and dashes, as layers.5"
        )
    return hookpoint


def _write(path: Path, arm: Arm, rows: Rows, start: int, end: int, pad_id: int, dtype: np.dtype) -> None:
    first, last = int(arm.view.indptr[start]), int(arm.view.indptr[end])
    small = rows.n_rows <= 1 << 16 and end - start <= 1 << 16
    places = np.dtype("<u2" if small else "<u4")
    write_safetensors(
        path,
        {
            "tokens": ((rows.n_rows, rows.length), np.dtype("<i8"), rows.blocks(arm.firings.tokens, pad_id)),
            "locations": ((last - first, 3), places, _locations(arm.view, rows, start, first, last, places)),
            "activations": (
                (last - first,),
                dtype,
                (arm.view.values[a:b].astype(dtype) for a, b in _chunks(first, last)),
            ),
        },
    )


def _locations(view: ByLatent, rows: Rows, start: int, first: int, last: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    for a, b in _chunks(first, last):
        tokens = view.tokens[a:b]
        latents = np.searchsorted(view.indptr, np.arange(a, b), side="right") - 1
        yield np.stack([rows.row[tokens], rows.column[tokens], latents - start], axis=1).astype(dtype)


def _chunks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for a in range(first, last, CHUNK):
        yield a, min(a + CHUNK, last)


def _activation_dtype(values: np.ndarray) -> np.dtype:
    """fp16 where every activation stays a positive finite number in it."""
    for a, b in _chunks(0, len(values)):
        # a value out of range becomes infinite here, and that is what is asked
        with np.errstate(over="ignore"):
            half = values[a:b].astype(np.float16)
        if np.isinf(half).any() or (half == 0).any():
            return np.dtype("<f4")
    return np.dtype("<f2")


def _config(arm: Arm, rows: Rows, per_file: int, pad_id: int, pack: bool, dtype: np.dtype) -> dict:
    """What delphi's own config.json says, as far as it is known, and what it has no place for."""
    index = read_index(arm.folder / "firings", STORE)
    held = (
        checked.table(arm.own, "recipe", str(arm.folder)) if arm.given is None else arm.recipe.model_dump(mode="json")
    )
    model, text = (checked.table(held, name, str(arm.folder)) for name in ("model", "text"))
    return {
        "model_name": model.get("name") or model.get("path") or arm.metadata.get("model_name") or "",
        "dataset_repo": text.get("source") or arm.metadata.get("dataset_path") or "",
        "dataset_split": text.get("split", ""),
        "dataset_name": text.get("name", ""),
        "dataset_column": text.get("column", ""),
        "batch_size": 1,
        "cache_ctx_len": rows.length,
        "ctx_len": rows.length,
        "n_tokens": arm.firings.n_tokens,
        "n_splits": -(-arm.view.n_latents // per_file),
        "metasae": {
            "arm": arm.name,
            "seed": arm.own.get("seed"),
            "n_latents": arm.view.n_latents,
            "n_firings": len(arm.view.values),
            "l0": arm.firings.l0,
            "activations": "fp16" if dtype.itemsize == 2 else "fp32",
            "packed": pack,
            "padding": {"id": pad_id, "places": rows.padding},
            "sae": index.get("sae"),
            "split": index.get("split"),
        },
    }
