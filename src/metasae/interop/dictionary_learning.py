"""dictionary_learning: `ae.pt` (a state dict) + `config.json`, whose `trainer.dict_class` names the class.

    AutoEncoder             relu((x - bias) E + e),  D f + bias; its loader brings the rows to unit length, and so does this one
    AutoEncoderNew          relu(x E + e),  D f + decoder.bias
    GatedAutoEncoder        (u + gate_bias > 0) * relu(e^r_mag u + mag_bias),  u = (x - decoder_bias) E
    AutoEncoderTopK         the k largest of relu((x - b_dec) E + e) of each token
    BatchTopKSAE            relu((x - b_dec) E + e), where above one threshold for all latents (-1: it was never set)
    MatryoshkaBatchTopKSAE  alike, W_enc [d, n] and W_dec [n, d] under these names
    JumpReluAutoEncoder     relu(x W_enc + b_enc), where above a threshold per latent; b_dec is not subtracted from x

encoder.weight is [n, d] and decoder.weight [d, n]. A scale of the inputs (`norm_factor`) lies in the saved biases already.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.files import write, write_json
from metasae.interop import checked
from metasae.interop.parts import (
    Parts,
    assemble,
    centred,
    gated,
    has_unit_rows,
    norms_into_encoder,
    parts_of,
    uncentred,
)
from metasae.interop.places import DICTIONARY_WEIGHTS as WEIGHTS
from metasae.sae.sae import SAE, SAEConfig

CONFIG = "config.json"
State = dict[str, Tensor]


def load(path: Path) -> SAE:
    """path: the folder, its `ae.pt`, or one of its `checkpoints/ae_<step>.pt`. Raises UserError for what is damaged or another class."""
    weights = path / WEIGHTS if path.is_dir() else path
    where = str(_config_of(weights))
    config = checked.read_json(_config_of(weights))
    trainer = checked.table(config, "trainer", where)
    kind = checked.text(trainer, "dict_class", f"{where}: trainer")
    if kind not in _CLASSES:
        raise UserError(f"{where}: dict_class {checked.shown(kind)} is not known here; known: {', '.join(_CLASSES)}")
    state = checked.state_of(checked.read_pt(weights), weights)
    d, n = _size(state, str(weights))
    k = _k(trainer, state, n, where) if kind in ("AutoEncoderTopK", *_BATCH) else 1
    parts = _CLASSES[kind]({name: tensor for name, tensor in state.items() if name != "k"}, d, n, str(weights))
    rule = "topk" if kind == "AutoEncoderTopK" else "threshold"
    return assemble(
        parts, SAEConfig(d, n, _NAMES[kind], k, "none", _metadata(config, trainer, where), rule), str(weights)
    )


def why_not(sae: SAE) -> str | None:
    """Why an SAE cannot be written in this format; None where it can."""
    return None if sae.config.normalize == "none" else "dictionary_learning does not normalise tokens"


def save(sae: SAE, out: Path, metadata: dict) -> None:
    """By its rule: `AutoEncoderTopK`; `AutoEncoder` without thresholds; `BatchTopKSAE` with one for all; else `JumpReluAutoEncoder`."""
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
    write(out / WEIGHTS, lambda part: torch.save({name: tensor.clone() for name, tensor in state.items()}, part))
    write_json(
        out / CONFIG, {"trainer": trainer, "buffer": {"ctx_len": metadata.get("context_size")}, "metadata": metadata}
    )


def _state(sae: SAE) -> tuple[str, State]:
    """The class that holds this SAE, and its state dict."""
    parts = parts_of(sae)
    linear = {
        "encoder.weight": parts.W_enc.t().contiguous(),
        "encoder.bias": parts.b_enc,
        "decoder.weight": parts.W_dec.t().contiguous(),
    }
    k = torch.tensor(sae.config.k, dtype=torch.int)
    if sae.config.rule == "topk":
        return "AutoEncoderTopK", {**linear, "b_dec": parts.b_dec, "k": k, "threshold": torch.tensor(-1.0)}
    if (parts.threshold <= 0).all() and has_unit_rows(parts):
        return "AutoEncoder", {**linear, "bias": parts.b_dec}
    if (parts.threshold == parts.threshold[0]).all():
        return "BatchTopKSAE", {**linear, "b_dec": parts.b_dec, "k": k, "threshold": parts.threshold[0]}
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    return "JumpReluAutoEncoder", {name: getattr(uncentred(parts), name).contiguous() for name in names}


def _config_of(weights: Path) -> Path:
    """config.json beside the weights, or above their `checkpoints` folder; a folder has it inside."""
    if weights.parent.name == "checkpoints" and not (weights.parent / CONFIG).exists():
        return weights.parent.parent / CONFIG
    return weights.parent / CONFIG


def _size(state: State, where: str) -> tuple[int, int]:
    """(d, n) as the encoder has them; the other tensors must fit."""
    name = next((name for name in ("encoder.weight", "W_enc") if name in state and state[name].dim() == 2), None)
    if name is None:
        raise UserError(f"{where} lacks a matrix 'encoder.weight' or 'W_enc'")
    rows, columns = state[name].shape
    return (columns, rows) if name == "encoder.weight" else (rows, columns)


def _k(trainer: dict, state: State, n: int, where: str) -> int:
    k = checked.count(trainer, "k", f"{where}: trainer")
    if "k" in state and (state["k"].numel() != 1 or state["k"].item() != k):
        raise UserError(f"{where}: trainer.k is {k}, the weights say otherwise")
    if k > n:
        raise UserError(f"{where}: trainer.k is {k}, more than the {n} latents")
    return k


def _linear(state: State, d: int, n: int, where: str, **more: tuple[int, ...]) -> State:
    return checked.take(state, {"encoder.weight": (n, d), "encoder.bias": (n,), "decoder.weight": (d, n)} | more, where)


def _autoencoder(state: State, d: int, n: int, where: str) -> Parts:
    found = _linear(state, d, n, where, bias=(d,))
    parts = _from_linear(found, found["bias"], torch.zeros(n))
    return parts if has_unit_rows(parts) else norms_into_encoder(parts, threshold=True)


def _autoencoder_new(state: State, d: int, n: int, where: str) -> Parts:
    found = _linear(state, d, n, where, **{"decoder.bias": (d,)})
    return centred(_from_linear(found, found["decoder.bias"], torch.zeros(n)))


def _gated(state: State, d: int, n: int, where: str) -> Parts:
    shapes = {
        "encoder.weight": (n, d),
        "decoder.weight": (d, n),
        "decoder_bias": (d,),
        "r_mag": (n,),
        "gate_bias": (n,),
        "mag_bias": (n,),
    }
    found = checked.take(state, shapes, where)
    plain = _from_linear({**found, "encoder.bias": found["mag_bias"]}, found["decoder_bias"], torch.zeros(n))
    return gated(plain, found["r_mag"], found["gate_bias"], found["mag_bias"])


def _top_k(state: State, d: int, n: int, where: str) -> Parts:
    # the threshold that is saved along is not what `encode` goes by
    found = _linear({name: tensor for name, tensor in state.items() if name != "threshold"}, d, n, where, b_dec=(d,))
    return _from_linear(found, found["b_dec"], torch.zeros(n))


def _batch_top_k(state: State, d: int, n: int, where: str) -> Parts:
    found = _linear(state, d, n, where, b_dec=(d,), threshold=())
    return _from_linear(found, found["b_dec"], found["threshold"].expand(n).clone())


def _matryoshka(state: State, d: int, n: int, where: str) -> Parts:
    # groups only matter in training
    return _by_name({name: tensor for name, tensor in state.items() if name != "group_sizes"}, d, n, (), where)


def _jumprelu(state: State, d: int, n: int, where: str) -> Parts:
    return centred(_by_name(state, d, n, (n,), where))


def _by_name(state: State, d: int, n: int, threshold: tuple[int, ...], where: str) -> Parts:
    shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,), "threshold": threshold}
    found = checked.take(state, shapes, where, infinite=("threshold",))
    return Parts(**{**found, "threshold": found["threshold"].expand(n).clone()})


def _from_linear(found: State, b_dec: Tensor, threshold: Tensor) -> Parts:
    return Parts(found["encoder.weight"].t(), found["encoder.bias"], found["decoder.weight"].t(), b_dec, threshold)


def _metadata(config: dict, trainer: dict, where: str) -> dict:
    """What SAELens calls model_name, hook_name and context_size, where the config says it, beside our own and the trainer's."""
    ours = checked.table(config, "metadata", where)
    place = re.fullmatch(r"resid_(pre|post)_layer_(\d+)", str(trainer.get("submodule_name")))
    known = {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{place[2]}.hook_resid_{place[1]}" if place else None,
        "context_size": checked.table(config, "buffer", where).get("ctx_len"),
    }
    return {**{key: value for key, value in known.items() if value is not None}, "trainer": trainer, **ours}


_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_CLASSES: dict[str, Callable[[State, int, int, str], Parts]] = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _autoencoder_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
_NAMES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}
