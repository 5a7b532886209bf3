"""Reads and writes SAELens's `cfg.json` + `sae_weights.safetensors`, of versions 3 to 6, inference folders and training
checkpoints.

    z = norm(x);  pre = (z - b_dec [apply_b_dec_to_input]) W_enc + b_enc;  x_hat = unnorm(acts W_dec + b_dec)
    standard     acts = relu(pre)
    jumprelu     acts = relu(pre) * (pre > threshold)
    gated        acts = (z W_enc + b_gate > 0) * relu(z W_enc e^r_mag + b_mag)
    topk         acts = relu of the k largest pre of each token
    batchtopk    in training, the k B largest of a batch; SAELens saves it for use as jumprelu at its `topk_threshold`,
                 and so it is read; 0 before it is first set (`thresholds.py`). matryoshka_batchtopk alike
    rescale_acts_by_decoder_norm: pre is multiplied by the norms of the decoder rows, and acts divided by them before
    W_dec

Weights in half precision are read as they are and used in fp32; SAELens also rounds inputs and activations, unless it
gets `dtype="float32"`.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.identities import (
    SAETensors,
    assemble,
    centred,
    gated,
    norms_into_encoder,
    tensors_of,
    unscaled,
)
from metasae.sae import folder as own
from metasae.sae.sae import SAE, SAEConfig

SCALER = "activation_scaler.json"
_NORMALIZE = {"none": "none", "layer_norm": "token", "expected_average_only_in": "none"}
_REFUSED_RESHAPE = {"hook_z": "it joins the heads of hook_z, which metasae does not hook"}
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_TOPK = ("topk", *_BATCH)
_KNOWN = ("standard", "jumprelu", "gated", *_TOPK)
_REFUSED = {
    "abstopk": "its activations may be negative",
    "temporal": "its activations depend on other tokens",
    "matching_pursuit": "it has no encoder but a pursuit",
    **dict.fromkeys(
        ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
        "a transcoder rebuilds another activation",
    ),
}
_REFUSED_NORMALIZE = {
    "constant_norm_rescale": "each token is divided by its norm without its mean, which metasae does not do",
    "covariance_whitening": "the whitening is not folded into the weights; "
    "save the finished SAE rather than a checkpoint",
}
# Keys that version 5 and earlier have at the top of cfg.json and version 6 has in `metadata`.
_OLD_METADATA = (
    "model_name",
    "hook_name",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "neuronpedia_id",
    "hook_head_index",
)


def load(path: Path) -> SAE:
    """Reads a folder. Raises UserError for one that is damaged, and for one whose rule metasae does not have."""
    where = str(path / own.CONFIG)
    cfg = _modern(checked.read_json(path / own.CONFIG), where)
    architecture = checked.choice(cfg, "architecture", where, _KNOWN, refused=_REFUSED)
    d, n = checked.count(cfg, "d_in", where), checked.count(cfg, "d_sae", where)
    theirs = checked.choice(cfg, "normalize_activations", where, _NORMALIZE, "none", _REFUSED_NORMALIZE)
    checked.choice(cfg, "reshape_activations", where, ("none",), "none", _REFUSED_RESHAPE)
    rescale = architecture in _TOPK and checked.typed(cfg, "rescale_acts_by_decoder_norm", where, bool, False)
    metadata = checked.table(cfg, "metadata", where)
    k = cfg.get("k") if architecture in _TOPK else 1
    if isinstance(k, float) and architecture in _BATCH and math.isfinite(k):
        # a mean, which may be a fraction; its rule is the threshold
        k = max(1, round(k))
    k = checked.count({"k": k}, "k", where, n)

    state = _state(path / own.WEIGHTS, architecture, d, n)
    tensors = _tensors(state, architecture, n)
    # a factor on each activation before W_dec, learnt after training; it goes into the rows
    factor = state.get("scaling_factor", torch.ones(n))
    if not torch.allclose(factor, torch.ones(n)):
        if not checked.typed(cfg, "finetuning_scaling_factor", where, bool, False):
            raise UserError(
                f"{where}: the weights hold a scaling_factor, but finetuning_scaling_factor is false, "
                "so its meaning is not clear"
            )
        tensors = replace(tensors, W_dec=tensors.W_dec * factor[:, None])
    if not checked.typed(cfg, "apply_b_dec_to_input", where, bool, True):
        tensors = centred(tensors)
    scale = _scale(path / SCALER, where) if theirs == "expected_average_only_in" else 1.0
    tensors = norms_into_encoder(tensors, threshold=False) if rescale else unscaled(tensors, scale)

    ours = "trained_architecture" in metadata and own.notes_of(metadata, where).undone_with_eps
    normalize = "token_eps" if theirs == "layer_norm" and ours else _NORMALIZE[theirs]
    rule = "topk" if architecture == "topk" else "threshold"
    config = SAEConfig(d, n, architecture, k, normalize, metadata, rule)
    sae = assemble(tensors, config, str(path))
    # SAELens folds the norms after the scale, which leaves rows of unit length
    return sae.scaled(scale) if rescale else sae


def save(sae: SAE, out: Path, metadata: dict) -> None:
    """Writes the SAE as `standard` where no latent has a threshold above 0, as `topk` where that is its rule, else as
    `jumprelu`.
    """
    standard = sae.config.rule == "threshold" and bool((tensors_of(sae).threshold <= 0).all())
    own.save(sae, out, standard, metadata)


def _modern(cfg: dict[str, Any], where: str) -> dict[str, Any]:
    """A config of any version with the keys of version 6.

    Older ones keep metadata and the activation function at the top.
    """
    metadata = checked.table(cfg, "metadata", where)
    version = metadata.get("sae_lens_version") or cfg.get("sae_lens_version")
    if isinstance(version, str) and version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 6:
        return cfg
    cfg = {"architecture": "standard", **cfg}
    cfg.setdefault("hook_name", cfg.get("hook_point"))
    cfg["metadata"] = {**{key: cfg[key] for key in _OLD_METADATA if cfg.get(key) is not None}, **metadata}
    if isinstance(cfg.get("normalize_activations"), bool) or cfg.get("normalize_activations") is None:
        cfg["normalize_activations"] = "expected_average_only_in" if cfg.get("normalize_activations") else "none"
    if isinstance(cfg["hook_name"], str) and "hook_z" in cfg["hook_name"]:
        cfg.setdefault("reshape_activations", "hook_z")
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if function == "topk" and cfg["architecture"] in ("standard", "topk"):
        cfg["architecture"], cfg["k"] = "topk", checked.table(cfg, "activation_fn_kwargs", where).get("k")
    elif function != "relu" and cfg["architecture"] != "topk":
        raise UserError(f"{where}: activation function {checked.shown(function)} is not known here, only relu and topk")
    return cfg


def _state(path: Path, architecture: str, d: int, n: int) -> dict[str, Tensor]:
    """The tensors of the weight file, which must be those of the architecture."""
    present = checked.tensor_shapes(path)
    shapes: checked.Shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",), (n,))
    if architecture == "jumprelu":
        shapes["log_threshold" if "log_threshold" in present else "threshold"] = (n,)
    if architecture in _BATCH:
        # a BatchTopK SAE that was saved for use has a threshold per latent
        shapes |= {"threshold": (n,)} if "threshold" in present else {"topk_threshold": ()}
    if "scaling_factor" in present:
        shapes["scaling_factor"] = (n,)
    return checked.read_tensors(path, shapes, infinite=("threshold", "log_threshold"))


def _tensors(state: dict[str, Tensor], architecture: str, n: int) -> SAETensors:
    threshold = state.get("threshold", state.get("topk_threshold", torch.zeros(())))
    if "log_threshold" in state:
        threshold = state["log_threshold"].exp()
    b_enc = state["b_mag" if architecture == "gated" else "b_enc"]
    tensors = SAETensors(state["W_enc"], b_enc, state["W_dec"], state["b_dec"], threshold.expand(n))
    return gated(tensors, state["r_mag"], state["b_gate"]) if architecture == "gated" else tensors


def _scale(path: Path, where: str) -> float:
    """The scale that inputs of a checkpoint are multiplied with; SAELens folds it only into the finished SAE."""
    scale = checked.read_json(path).get("scaling_factor") if path.exists() else None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not (math.isfinite(scale) and scale > 0):
        raise UserError(
            f"{where}: normalize_activations 'expected_average_only_in' needs a scale that is not in the folder "
            f"({SCALER}); let SAELens load and fold it, then save it again"
        )
    return float(scale)
