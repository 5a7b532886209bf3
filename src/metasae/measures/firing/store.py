"""The firing store: the firings of one SAE over one split, on disk, for texts whose firings do not fit in memory.

FOLDER/index.json             format, sizes, L0, whose firings these are, and every file's size and checksum
FOLDER/indptr.bin             int64 [T + 1], token t has entries indptr[t] to indptr[t + 1]
FOLDER/indices.bin            int32 [nnz], latents, rising within a token
FOLDER/values.bin             float32 [nnz], activations, above 0
FOLDER/documents.bin, tokens.bin, positions.bin     int32 [T]
FOLDER/by_latent/             the same entries in the order of latents, once they are asked for; see `by_latent.py`

8 bytes per firing and 20 per token: 20M tokens at L0 = 64 take 10.6 GB.
"""

import hashlib
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch

from metasae.errors import UserError
from metasae.measures.firing.arrays import ArrayFile, Kind, damaged, open_arrays, read_index, whole_folder, write_index
from metasae.measures.firing.firings import Firings, fired_blocks
from metasae.progress.progress import SILENT, Progress

STORE = Kind(
    "firing store",
    1,
    {"indptr": "<i8", "indices": "<i4", "values": "<f4", "documents": "<i4", "tokens": "<i4", "positions": "<i4"},
)
# Rows of activations by which a split is recognised, beside its text.
_PROBE_ROWS = 64


def write_firings(
    sae, split, folder: str | Path, batch: int = 2048, progress: Progress = SILENT, provenance: dict | None = None
) -> Firings:
    """Writes what `fire` would return to `folder`, block by block, and opens it.

    provenance: JSON-able, kept in the index as it is. Memory: one dense [batch, n] block, whatever the number of tokens.
    The folder appears when it is whole; a store that was there is replaced. Raises ValueError when the SAE has no threshold,
    UserError when the folder holds anything but a firing store, and when the disk is full.
    """
    folder = Path(folder)
    with whole_folder(folder, STORE) as part, ExitStack() as stack:
        files = {
            name: stack.enter_context(closing(ArrayFile(part, name, dtype))) for name, dtype in STORE.arrays.items()
        }
        files["indptr"].append(np.zeros(1, np.int64))
        for counts, latents, activations in fired_blocks(sae, split, batch, progress):
            files["indptr"].append(np.cumsum(counts) + files["indices"].length)
            files["indices"].append(latents)
            files["values"].append(activations)
        for name in ("documents", "tokens", "positions"):
            files[name].append(np.asarray(getattr(split, name)))
        n_tokens, n_firings = files["indptr"].length - 1, files["indices"].length
        assert n_tokens == split.n_tokens, "the split's blocks hold another number of tokens than it says"
        facts = {
            "n_tokens": n_tokens,
            "n_latents": sae.n_latents,
            "n_firings": n_firings,
            "l0": n_firings / n_tokens if n_tokens else 0.0,
            "sae": sae_fingerprint(sae),
            "split": split_fingerprint(split),
            "provenance": provenance,
        }
        stack.close()
        write_index(part, STORE, facts, {name: file.entry() for name, file in files.items()})
    return open_firings(folder)


def open_firings(folder: str | Path, verify: bool = False) -> Firings:
    """The firings in `folder` as read-only memory-maps; nothing is read until it is asked for.

    verify: also compares every file's checksum, which reads all of it. Raises UserError for a folder without a finished store,
    one of another version, and one with a missing, truncated or (with verify) changed file.
    """
    folder = Path(folder)
    index = read_index(folder, STORE)
    arrays = open_arrays(folder, STORE, index, verify)
    n_tokens, indptr = len(arrays["indptr"]) - 1, arrays["indptr"]
    lengths = {len(arrays[name]) for name in ("documents", "tokens", "positions")}
    if lengths != {n_tokens} or indptr[0] != 0 or not indptr[-1] == len(arrays["indices"]) == len(arrays["values"]):
        raise damaged(folder, STORE, "its arrays do not fit each other")
    if not isinstance(index.get("n_latents"), int):
        raise damaged(folder, STORE, "its index does not say how many latents there are")
    return Firings(n_latents=index["n_latents"], **arrays)


def is_store_of(folder: str | Path, sae, split) -> bool:
    """Whether `folder` holds a finished store of this version with the firings of this very SAE on this very split."""
    try:
        index = read_index(Path(folder), STORE)
    except UserError:
        return False
    return index.get("sae") == sae_fingerprint(sae) and index.get("split") == split_fingerprint(split)


def of_firings(folder: str | Path) -> dict:
    """{"sae", "text"}: digests of the SAE that fired and of the text it fired on. folder: of an arm. Raises UserError as `open_firings`."""
    index = read_index(Path(folder) / "firings", STORE)
    return {"sae": index.get("sae"), "text": index.get("split")}


def sae_fingerprint(sae) -> str:
    """A digest of what an SAE computes: its weights, its threshold, its normalisation. The same before and after saving."""
    digest = hashlib.blake2b(digest_size=16)
    rule = f"topk {sae.config.k}" if sae.config.rule == "topk" else "threshold"
    digest.update(f"{sae.config.d_in} {sae.config.d_sae} {sae.config.normalize} {rule}".encode())
    for tensor in (sae.W_enc.t(), sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold):
        digest.update(b"none" if tensor is None else _bytes(tensor))
    return digest.hexdigest()


def split_fingerprint(split) -> str:
    """A digest of a split: the text position of every token, and the first activations, which tell models and hooks apart."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(str(split.n_tokens).encode())
    for name in ("documents", "tokens", "positions"):
        digest.update(np.ascontiguousarray(getattr(split, name), "<i4"))
    for block in split.blocks(_PROBE_ROWS):
        digest.update(_bytes(block))
        break
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy(), "<f4")
