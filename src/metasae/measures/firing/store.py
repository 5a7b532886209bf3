"""The firing store: the firings of one SAE over one split, on disk, for texts whose firings do not fit in memory.

FOLDER/index.json             format, sizes, L0, whose firings these are, and every file's size and checksum
FOLDER/indptr.bin             int64 [T + 1], token t of those that count has entries indptr[t] to indptr[t + 1]
FOLDER/indices.bin            int32 [nnz], latents, rising within a token
FOLDER/values.bin             float32 [nnz], activations, above 0
FOLDER/documents.bin, tokens.bin, positions.bin     int32, of the text's tokens
FOLDER/left_out.bin           int64, which of these do not count (`metasae.data.cache.loud`); not there where all do
FOLDER/by_latent/             the same entries in the order of latents, once they are asked for; see `by_latent.py`

8 bytes per firing and 20 per token: 20M tokens at L0 = 64 take 10.6 GB.
"""

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch

from metasae.data.split import Split, in_text, own_part
from metasae.errors import UserError
from metasae.measures.firing.arrays import ArrayFile, Kind, damaged, open_arrays, read_index, whole_folder, write_index
from metasae.measures.firing.firings import PLACES, Firings, fired_pieces, joined
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, Ranks
from metasae.sae.sae import SAE

STORE = Kind(
    "firing store",
    1,
    {"indptr": "<i8", "indices": "<i4", "values": "<f4", "documents": "<i4", "tokens": "<i4", "positions": "<i4"},
    optional={"left_out": "<i8"},
)
# Rows of activations that are hashed, beside the text, to recognise a split.
_PROBE_ROWS = 64


def write_firings(
    sae: SAE,
    split: Split,
    folder: Path,
    batch: int = 2048,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> Firings:
    """Writes what `fire` would return to `folder`, block by block, together with the tokens that are left out, and
    opens it.

    Memory: one dense [batch, n] block, whatever the number of tokens. The folder appears when it is whole; a store that
    was there is replaced. ranks: share the tokens, and each returns the whole store; the folder must lie on a disk that
    all see. Raises ValueError when the SAE has no threshold, UserError when the folder holds anything but a firing
    store, and when the disk is full.
    """
    if ranks.size == 1:
        return _write(sae, split, folder, fired_pieces(sae, split, batch, progress))
    if ranks.first:
        # left by a job that was killed, perhaps with more ranks
        for leftover in folder.parent.glob(f".{folder.name}.rank*"):
            shutil.rmtree(leftover, ignore_errors=True)
    ranks.wait()
    folders = [folder.with_name(f".{folder.name}.rank{rank}") for rank in range(ranks.size)]
    try:
        own = own_part(split, batch, ranks)
        _write(sae, own, folders[ranks.rank], fired_pieces(sae, own, batch, progress))
        ranks.wait()
        if ranks.first:
            _write(sae, split, folder, joined([open_firings(part).counted for part in folders]))
        ranks.wait()
    finally:
        shutil.rmtree(folders[ranks.rank], ignore_errors=True)
    return open_firings(folder)


def _write(sae: SAE, split: Split, folder: Path, pieces: Iterable[dict[str, np.ndarray]]) -> Firings:
    text, own = in_text(split)
    of_text = {name: np.asarray(getattr(text, name)) for name in PLACES} if own is not None else {}
    left_out = {"left_out": np.flatnonzero(~own)} if own is not None else {}
    with whole_folder(folder, STORE) as part, ExitStack() as stack:
        files = {
            name: stack.enter_context(closing(ArrayFile(part, name, dtype)))
            for name, dtype in (STORE.arrays | {name: STORE.optional[name] for name in left_out}).items()
        }
        for name, values in (of_text | left_out).items():
            files[name].append(values)
        for piece in pieces:
            for name in piece.keys() - of_text.keys():
                files[name].append(piece[name])
        n_tokens, n_firings = files["indptr"].length - 1, files["indices"].length
        assert n_tokens == split.n_tokens, "the split's blocks hold another number of tokens than it says"
        facts = {
            "n_tokens": text.n_tokens,
            "n_latents": sae.n_latents,
            "n_firings": n_firings,
            "l0": n_firings / n_tokens if n_tokens else 0.0,
            "sae": sae_fingerprint(sae),
            "split": split_fingerprint(split),
            "provenance": None,
        }
        stack.close()
        write_index(part, STORE, facts, {name: file.entry() for name, file in files.items()})
    return open_firings(folder)


def open_firings(folder: Path) -> Firings:
    """Opens the firings in `folder` as read-only memory-maps; nothing is read until it is asked for.

    Raises UserError for a folder without a finished store, one of another version, and one with a missing or truncated
    file.
    """
    index = read_index(folder, STORE)
    arrays = open_arrays(folder, STORE, index)
    left_out, indptr = arrays.get("left_out", np.empty(0, np.int64)), arrays["indptr"]
    n_tokens = len(indptr) - 1 + len(left_out)
    lengths = {len(arrays[name]) for name in PLACES}
    if lengths != {n_tokens} or indptr[0] != 0 or not indptr[-1] == len(arrays["indices"]) == len(arrays["values"]):
        raise damaged(folder, STORE, "its arrays do not fit each other")
    if len(left_out):
        counts = np.zeros(n_tokens, np.int64)
        counts[np.delete(np.arange(n_tokens), left_out)] = np.diff(indptr)
        arrays["indptr"] = np.append(0, np.cumsum(counts))
    if not isinstance(index.get("n_latents"), int):
        raise damaged(folder, STORE, "its index does not say how many latents there are")
    return Firings(n_latents=index["n_latents"], **arrays)


def is_store_of(folder: Path, sae: SAE, split: Split) -> bool:
    """Whether `folder` holds a finished store of this version with the firings of this very SAE on this very split."""
    try:
        index = read_index(folder, STORE)
    except UserError:
        return False
    return index.get("sae") == sae_fingerprint(sae) and index.get("split") == split_fingerprint(split)


def of_firings(folder: Path) -> dict:
    """{"sae", "text"}: digests of the SAE that fired and of the text it fired on.

    folder: of an arm. Raises UserError as `open_firings`.
    """
    index = read_index(folder / "firings", STORE)
    return {"sae": index.get("sae"), "text": index.get("split")}


def sae_fingerprint(sae: SAE) -> str:
    """A digest of what an SAE computes: its weights, its threshold, its normalisation.

    The same before and after saving.
    """
    digest = hashlib.blake2b(digest_size=16)
    rule = f"topk {sae.config.k}" if sae.config.rule == "topk" else "threshold"
    digest.update(f"{sae.config.d_in} {sae.config.d_sae} {sae.config.normalize} {rule}".encode())
    for tensor in (sae.W_enc.t(), sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold):
        digest.update(b"none" if tensor is None else _bytes(tensor))
    return digest.hexdigest()


def split_fingerprint(split: Split) -> str:
    """A digest of a split: the text position of every token, and the first activations, which tell models and hooks
    apart."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(str(split.n_tokens).encode())
    for name in PLACES:
        digest.update(np.ascontiguousarray(getattr(split, name), "<i4"))
    digest.update(_bytes(next(split.blocks(_PROBE_ROWS), torch.empty(0))))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy(), "<f4")
