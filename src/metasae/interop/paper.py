"""The MetaSAE paper's checkpoints (arXiv 2604.03436): `<label>_primary_sae.pt` and `thresholds_<label>.npy`.

The `.pt` file holds {cfg, state_dict}.

    u = (x - mean) / (std + 1e-5) where cfg.input_unit_norm, else x;    pre = relu((u - b_dec) W_enc)
    with thresholds        acts = pre where pre > threshold;  x_hat = (acts W_dec + b_dec) (std + 1e-5) + mean
    batchtopk, topk alone  acts = the top_k largest pre of each token;  x_hat = (acts W_dec + b_dec) std + mean
    vanilla                acts = relu((u - b_dec) W_enc + b_enc)
    jumprelu               acts = relu(u W_enc + b_enc), where above its own threshold; b_dec is not subtracted

b_enc is saved with every checkpoint and used by the last two only. A dead latent's threshold is 10.0; it is kept, and a
larger pre-activation still passes it. In training batchtopk selects over the batch; without thresholds, outside of
training, the paper's code selects per token.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.arrays import read_npy
from metasae.interop.identities import REFUSED, SAETensors, assemble, centred, tensors_of
from metasae.sae.sae import SAE, SAEConfig

_KINDS = ("batchtopk", "topk", "vanilla", "jumprelu")
_SITE = re.compile(r"blocks\.(\d+)\.hook_(\w+)")


def load(path: Path, thresholds: Path | None = None) -> SAE:
    """Reads an SAE. path: the `.pt` file, or a folder with one. thresholds: the `.npy` file; None for the one of the
    checkpoint's label. Raises UserError for a damaged or hostile file, and where it is not clear which checkpoint is
    meant.
    """
    weights = _only_checkpoint(path) if path.is_dir() else path
    where = str(weights)
    checkpoint = checked.read_pt(weights)
    for part in ("cfg", "state_dict"):
        if part not in checkpoint:
            raise UserError(f"{where} lacks '{part}': it is no checkpoint of the paper's code")
    cfg = checked.table(checkpoint, "cfg", where)
    kind = checked.typed(cfg, "sae_type", where, str, "batchtopk").lower()
    checked.choice({"sae_type": kind}, "sae_type", where, _KINDS)
    d, n = checked.count(cfg, "act_size", where), checked.count(cfg, "dict_size", where)
    selects = kind in ("batchtopk", "topk")
    k = checked.count(cfg, "top_k", where, n) if selects else 1
    if thresholds is None and kind == "batchtopk":
        thresholds = _thresholds_of(weights)
    if thresholds is not None and not selects:
        raise UserError(f"{where}: a '{kind}' SAE has its own rule; thresholds belong to batchtopk and topk")

    shapes: checked.Shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    shapes |= {"threshold": (n,)} if kind == "jumprelu" else {}
    state = checked.take(checked.state_of(checkpoint["state_dict"], weights), shapes, where, ("threshold",))
    if kind != "jumprelu":
        state["threshold"] = torch.zeros(n) if thresholds is None else read_npy(thresholds, n)
    if selects:
        state["b_enc"] = torch.zeros(n)
    tensors = SAETensors(**state)
    normalize = "token" if thresholds is None else "token_eps"
    if not checked.typed(cfg, "input_unit_norm", where, bool, False):
        normalize = "none"
    rule = "topk" if selects and thresholds is None else "threshold"
    metadata = _metadata(checkpoint, cfg, where) | ({"thresholds": thresholds.name} if thresholds else {})
    config = SAEConfig(d, n, kind, k, normalize, metadata, rule)
    return assemble(centred(tensors) if kind == "jumprelu" else tensors, config, where)


def save(sae: SAE, out: Path, metadata: dict) -> None:
    """Writes an SAE of rule "topk" as `topk`, one with an encoder bias as `jumprelu`, and any other as `batchtopk` with
    its thresholds beside it.

    Raises UserError for an SAE that cannot be written in this format.
    """
    if sae.b_enc.any() and sae.config.rule == "topk":
        raise UserError(f"{REFUSED} paper: the paper's topk and batchtopk have no encoder bias")
    if sae.b_enc.any() and sae.config.normalize == "token_eps":
        raise UserError(
            f"{REFUSED} paper: with the paper's per-token eps, only SAEs without an encoder bias can be written"
        )
    tensors, ours = tensors_of(sae), metadata.get("metasae")
    label = ours.get("arm") if isinstance(ours, dict) else None
    label = label if isinstance(label, str) and re.fullmatch(r"\w+", label) else "sae"
    kind = "topk" if sae.config.rule == "topk" else "jumprelu" if sae.b_enc.any() else "batchtopk"
    state = vars(centred(tensors, -1.0) if kind == "jumprelu" else tensors)
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if kind != "jumprelu":
        del state["threshold"]
    if kind == "batchtopk":
        np.save(out / f"thresholds_{label}.npy", tensors.threshold.numpy(), allow_pickle=False)
    place = _SITE.fullmatch(str(metadata.get("hook_name")))
    # what the paper's classes and scripts read
    cfg = {
        "sae_type": kind,
        "act_size": sae.config.d_in,
        "dict_size": sae.n_latents,
        "top_k": sae.config.k,
        "input_unit_norm": sae.config.normalize != "none",
        "dtype": torch.float32,
        "device": "cpu",
        "seed": 0,
        "l1_coeff": 0.0,
        "n_batches_to_dead": 5,
        "top_k_aux": 512,
        "aux_penalty": 1 / 32,
        "model_name": metadata.get("model_name"),
        "dataset_path": metadata.get("dataset_path"),
        "dataset_name": None,
        "seq_len": metadata.get("context_size"),
        "layer": int(place[1]) if place else None,
        "site": place[2] if place else None,
        "hook_point": metadata.get("hook_name"),
    }
    # JSON, so that nothing but plain values is read back
    payload = {"cfg": cfg, "state_dict": state, "metadata": json.dumps(metadata, allow_nan=False)}
    torch.save(payload, out / f"{label}_primary_sae.pt")


def _only_checkpoint(folder: Path) -> Path:
    checkpoints = sorted(folder.glob("*.pt"))
    if len(checkpoints) != 1:
        names = ", ".join(path.name for path in checkpoints[:4])
        raise UserError(f"{folder} holds {len(checkpoints)} checkpoints ({names}); name one of them")
    return checkpoints[0]


def _thresholds_of(weights: Path) -> Path | None:
    """thresholds_<label>.npy of the longest label that the checkpoint's name begins with.

    Without one, thresholds_sae.npy belongs to a checkpoint that lies alone; None where there is none either.
    """
    labels = {path: path.stem.removeprefix("thresholds_") for path in weights.parent.glob("thresholds_*.npy")}
    own = [path for path, label in labels.items() if f"{weights.stem}_".startswith(f"{label}_")]
    if not own and len(list(weights.parent.glob("*.pt"))) == 1:
        own = [path for path, label in labels.items() if label == "sae"]
    return max(own, key=lambda path: len(labels[path]), default=None)


def _metadata(checkpoint: dict, cfg: dict, where: str) -> dict:
    ours = checkpoint.get("metadata")
    ours = checked.parse_object(ours, f"{where}: metadata") if isinstance(ours, str) else {}
    layer, site = cfg.get("layer"), cfg.get("site", "resid_pre")
    known = {
        "model_name": cfg.get("model_name"),
        "dataset_path": cfg.get("dataset_path"),
        "context_size": cfg.get("seq_len"),
        "hook_name": f"blocks.{layer}.hook_{site}" if isinstance(layer, int) and isinstance(site, str) else None,
    }
    return {**{key: value for key, value in known.items() if isinstance(value, (str, int))}, **ours}
