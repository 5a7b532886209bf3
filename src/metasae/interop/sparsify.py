"""sparsify (EleutherAI): `sae.safetensors` + `cfg.json`, one folder for each hook point of a model.

    acts = the k largest of relu((x - b_dec) E^T + e) of each token,   x_hat = acts W_dec + b_dec

encoder.weight E and W_dec are both [n, d].
"""

import re
from pathlib import Path

import torch

from metasae.errors import UserError
from metasae.files import write_json, write_tensors
from metasae.interop import checked
from metasae.interop.detection import SPARSIFY_WEIGHTS as WEIGHTS
from metasae.interop.identities import REFUSED, SAETensors, assemble, tensors_of
from metasae.sae.layout import CONFIG
from metasae.sae.sae import SAE, SAEConfig

_PLACES = {"": "resid_post", ".mlp": "mlp_out"}
# Settings of a coder that metasae cannot represent, and why.
_REFUSED = {
    "transcode": "a transcoder rebuilds another activation",
    "skip_connection": "metasae has no linear skip connection",
    "signed": "its activations may be negative",
}


def load(path: Path) -> SAE:
    """Reads an SAE. Raises UserError for a folder that is damaged, and for transcoders and other rules than TopK."""
    where = str(path / CONFIG)
    cfg = checked.read_json(path / CONFIG)
    d = checked.count(cfg, "d_in", where)
    n = (
        checked.count(cfg, "num_latents", where)
        if cfg.get("num_latents")
        else d * checked.count(cfg, "expansion_factor", where)
    )
    for key, why in _REFUSED.items():
        if checked.typed(cfg, key, where, bool, False):
            raise UserError(f"{where}: {key} = true cannot be represented: {why}")
    checked.choice(
        cfg, "activation", where, ("topk",), "topk", {"groupmax": "it takes the largest latent of each group"}
    )
    k = checked.count(cfg, "k", where, n)
    shapes = {"encoder.weight": (n, d), "encoder.bias": (n,), "W_dec": (n, d), "b_dec": (d,)}
    state = checked.read_tensors(path / WEIGHTS, shapes)
    W_enc = state["encoder.weight"].t()
    tensors = SAETensors(W_enc, state["encoder.bias"], state["W_dec"], state["b_dec"], torch.zeros(n))
    return assemble(tensors, SAEConfig(d, n, "topk", k, "none", _metadata(path, cfg), "topk"), str(path))


def save(sae: SAE, out: Path, metadata: dict) -> None:
    """Writes an SAE. Raises UserError for one that cannot be written in this format."""
    if sae.config.rule != "topk":
        raise UserError(f"{REFUSED} sparsify: sparsify keeps the k largest of each token and knows no thresholds")
    if sae.config.normalize != "none":
        raise UserError(f"{REFUSED} sparsify: sparsify does not normalise tokens")
    tensors = tensors_of(sae)
    state = {
        "encoder.weight": tensors.W_enc.t(),
        "encoder.bias": tensors.b_enc,
        "W_dec": tensors.W_dec,
        "b_dec": tensors.b_dec,
    }
    cfg = {
        "activation": "topk",
        "d_in": sae.config.d_in,
        "num_latents": sae.n_latents,
        "expansion_factor": max(1, sae.n_latents // sae.config.d_in),
        "k": sae.config.k,
        "normalize_decoder": False,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "metadata": metadata,
    }
    write_tensors(out / WEIGHTS, state)
    write_json(out / CONFIG, cfg)


def _metadata(path: Path, cfg: dict) -> dict:
    """The metadata where sparsify keeps it: model and text in the `config.json` above the folder, the hook in the
    folder's name.
    """
    above = path.parent / "config.json"
    run = checked.read_json(above) if above.exists() else {}
    place = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)(\.mlp)?", path.name)
    known = {
        "model_name": run.get("model"),
        "dataset_path": run.get("dataset"),
        "context_size": run.get("ctx_len"),
        "hook_name": f"blocks.{place[1]}.hook_{_PLACES[place[2] or '']}" if place else None,
    }
    return checked.without_none(known) | checked.table(cfg, "metadata", str(path / CONFIG))
