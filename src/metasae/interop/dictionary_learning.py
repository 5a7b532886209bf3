"""dictionary_learning: `ae.pt` (a state dict) + `config.json`, whose `trainer.dict_class` names the class.

    AutoEncoder             relu((x - bias) E + e),  D f + bias; rows come to unit length, as in its own loader
    AutoEncoderNew          relu(x E + e),  D f + decoder.bias
    GatedAutoEncoder        (u + gate_bias > 0) * relu(e^r_mag u + mag_bias),  u = (x - decoder_bias) E
    AutoEncoderTopK         the k largest of relu((x - b_dec) E + e) of each token
    BatchTopKSAE            relu((x - b_dec) E + e), where above one threshold for all latents; -1 before it is first
                            set, so that an SAE of few steps has none (`thresholds.py`)
    MatryoshkaBatchTopKSAE  alike, W_enc [d, n] and W_dec [n, d] under these names
    JumpReluAutoEncoder     relu(x W_enc + b_enc), where above a threshold per latent; b_dec is not subtracted from x

encoder.weight is [n, d] and decoder.weight [d, n]. A scale of the inputs (`norm_factor`) is in the saved biases
already.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.files import write_json
from metasae.interop import checked
from metasae.interop.detection import DICTIONARY_WEIGHTS as WEIGHTS
from metasae.interop.identities import (
    REFUSED,
    SAETensors,
    assemble,
    centred,
    gated,
    has_unit_rows,
    norms_into_encoder,
    tensors_of,
)
from metasae.interop.thresholds import refuse_other_sizes
from metasae.sae.sae import SAE, SAEConfig

CONFIG = "config.json"


@dataclass(frozen=True)
class TensorNames:
    """How a class names its tensors. linear: the matrices are encoder.weight and decoder.weight, else W_enc and W_dec.

    threshold: none, one or n of them. more: tensors [n] beside these. ignored: tensors that its `encode` does not go
    by.
    """

    architecture: str
    linear: bool = True
    b_enc: str = "encoder.bias"
    b_dec: str = "b_dec"
    threshold: str = "none"
    more: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ("k",)


_CLASSES = {
    "AutoEncoder": TensorNames("standard", b_dec="bias"),
    "AutoEncoderNew": TensorNames("standard", b_dec="decoder.bias"),
    "GatedAutoEncoder": TensorNames("gated", b_enc="mag_bias", b_dec="decoder_bias", more=("r_mag", "gate_bias")),
    # the threshold in the file is not used by `encode`
    "AutoEncoderTopK": TensorNames("topk", ignored=("k", "threshold")),
    "BatchTopKSAE": TensorNames("batchtopk", threshold="one"),
    # groups are used in training only
    "MatryoshkaBatchTopKSAE": TensorNames("matryoshka", False, "b_enc", threshold="one", ignored=("k", "group_sizes")),
    "JumpReluAutoEncoder": TensorNames("jumprelu", False, "b_enc", threshold="n"),
}
_WITH_K = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def load(path: Path) -> SAE:
    """Reads an SAE. path: the folder, its `ae.pt`, or one of its `checkpoints/ae_<step>.pt`. Raises UserError for a
    damaged file or an unknown class.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    config = checked.read_json(_config_of(weights))
    where = str(_config_of(weights))
    trainer = checked.table(config, "trainer", where)
    kind = checked.choice(trainer, "dict_class", f"{where}: trainer", _CLASSES)
    state = checked.state_of(checked.read_pt(weights), weights)
    d, n = _size(state, str(weights))
    refuse_other_sizes(trainer, {"activation_dim": d, "dict_size": n}, f"{where}: trainer")
    k = checked.count(trainer, "k", f"{where}: trainer", n) if kind in _WITH_K else 1
    if kind in _WITH_K and "k" in state and (state["k"].numel() != 1 or state["k"].item() != k):
        raise UserError(f"{where}: trainer.k is {k}, but the weights hold another k")
    tensors = _tensors(state, kind, d, n, str(weights))
    rule = "topk" if kind == "AutoEncoderTopK" else "threshold"
    # the hook, the model and the context by the names that SAELens has, beside our own metadata and the trainer's
    place = re.fullmatch(r"resid_(pre|post)_layer_(\d+)", str(trainer.get("submodule_name")))
    known = {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{place[2]}.hook_resid_{place[1]}" if place else None,
        "context_size": checked.table(config, "buffer", where).get("ctx_len"),
    }
    metadata = checked.without_none(known) | {"trainer": trainer} | checked.table(config, "metadata", where)
    return assemble(tensors, SAEConfig(d, n, _CLASSES[kind].architecture, k, "none", metadata, rule), str(weights))


def save(sae: SAE, out: Path, metadata: dict) -> None:
    """Writes the class that has the SAE's rule.

    `AutoEncoderTopK` keeps the k largest, `AutoEncoder` has no thresholds, `BatchTopKSAE` one for all latents, and
    `JumpReluAutoEncoder` one for each. Raises UserError for an SAE that cannot be written in this format.
    """
    if sae.config.normalize != "none":
        raise UserError(f"{REFUSED} dictionary_learning: dictionary_learning does not normalise tokens")
    kind, state = _state(sae)
    layer = re.match(r"blocks\.(\d+)\.", str(metadata.get("hook_name")))
    trainer = {
        "trainer_class": "metasae",
        "dict_class": kind,
        "activation_dim": sae.config.d_in,
        "dict_size": sae.n_latents,
        "k": sae.config.k,
        "layer": int(layer[1]) if layer else None,
        "lm_name": metadata.get("model_name"),
        "submodule_name": metadata.get("hook_name"),
        "seed": metadata["metasae"].get("seed") if isinstance(metadata.get("metasae"), dict) else None,
    }
    torch.save({name: tensor.clone() for name, tensor in state.items()}, out / WEIGHTS)
    config = {"trainer": trainer, "buffer": {"ctx_len": metadata.get("context_size")}, "metadata": metadata}
    write_json(out / CONFIG, config)


def _state(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """The class that holds this SAE, and its state dict."""
    tensors = tensors_of(sae)
    linear = {
        "encoder.weight": tensors.W_enc.t().contiguous(),
        "encoder.bias": tensors.b_enc,
        "decoder.weight": tensors.W_dec.t().contiguous(),
    }
    k = torch.tensor(sae.config.k, dtype=torch.int)
    if sae.config.rule == "topk":
        return "AutoEncoderTopK", {**linear, "b_dec": tensors.b_dec, "k": k, "threshold": torch.tensor(-1.0)}
    if (tensors.threshold <= 0).all() and has_unit_rows(tensors):
        return "AutoEncoder", {**linear, "bias": tensors.b_dec}
    if (tensors.threshold == tensors.threshold[0]).all():
        return "BatchTopKSAE", {**linear, "b_dec": tensors.b_dec, "k": k, "threshold": tensors.threshold[0]}
    return "JumpReluAutoEncoder", {name: tensor.contiguous() for name, tensor in vars(centred(tensors, -1.0)).items()}


def _config_of(weights: Path) -> Path:
    """config.json beside the weights, or above their `checkpoints` folder; a folder has it inside."""
    if weights.parent.name == "checkpoints" and not (weights.parent / CONFIG).exists():
        return weights.parent.parent / CONFIG
    return weights.parent / CONFIG


def _size(state: dict[str, Tensor], where: str) -> tuple[int, int]:
    """(d, n) as the encoder has them; the other tensors must fit."""
    name = next((name for name in ("encoder.weight", "W_enc") if name in state and state[name].dim() == 2), None)
    if name is None:
        raise UserError(f"{where} lacks a matrix 'encoder.weight' or 'W_enc'")
    rows, columns = state[name].shape
    return (columns, rows) if name == "encoder.weight" else (rows, columns)


def _tensors(state: dict[str, Tensor], kind: str, d: int, n: int, where: str) -> SAETensors:
    """The state dict of a class in our form. Raises UserError where its tensors are not those of the class."""
    own = _CLASSES[kind]
    matrices = ("encoder.weight", "decoder.weight") if own.linear else ("W_enc", "W_dec")
    sizes = [(n, d), (d, n)] if own.linear else [(d, n), (n, d)]
    shapes: checked.Shapes = dict(zip(matrices, sizes, strict=True))
    shapes |= {own.b_dec: (d,), own.b_enc: (n,)} | dict.fromkeys(own.more, (n,))
    if own.threshold != "none":
        shapes["threshold"] = () if own.threshold == "one" else (n,)
    state = {name: tensor for name, tensor in state.items() if name not in own.ignored}
    state = checked.take(state, shapes, where, infinite=("threshold",))
    W_enc, W_dec = (state[name].t() if own.linear else state[name] for name in matrices)
    threshold = state.get("threshold", torch.zeros(())).expand(n).clone()
    tensors = SAETensors(W_enc, state[own.b_enc], W_dec, state[own.b_dec], threshold)
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        return centred(tensors)
    if kind == "GatedAutoEncoder":
        return gated(tensors, state["r_mag"], state["gate_bias"])
    if kind == "AutoEncoder" and not has_unit_rows(tensors):
        return norms_into_encoder(tensors, threshold=True)
    return tensors
