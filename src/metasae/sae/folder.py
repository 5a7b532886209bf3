"""An SAE's folder: `cfg.json` + `sae_weights.safetensors`, in the layout that SAELens 6 reads as it is.

For inference a BatchTopK SAE with its calibrated threshold is a JumpReLU SAE, and is written as one. Rule "topk" is
SAELens's "topk", and token normalisation is SAELens's "layer_norm". What SAELens has no key for (k, recipe, seed, ...)
is in `metadata`. `metasae.interop` reads the folders of other libraries, and SAELens's further architectures.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metasae.errors import UserError
from metasae.files import read_json, read_tensors, write_json, write_tensors
from metasae.sae.layout import CONFIG, WEIGHTS
from metasae.sae.sae import SAE, SAEConfig

# SAELens ignores the metadata of files that do not name a version of at least 6.0.0.
SAELENS_VERSION = "6.0.0"
_NORMALIZE = {"none": "none", "token": "layer_norm", "token_eps": "layer_norm"}
_SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
}
_RULES = {"jumprelu": "threshold", "topk": "topk"}


def save(sae: SAE, folder: str | Path, standard: bool = False, metadata: dict | None = None) -> None:
    """Writes the folder. standard: as SAELens's plain ReLU SAE, without thresholds. metadata: in place of the SAE's
    own.

    Raises ValueError when the SAE has no threshold yet, or has thresholds above 0 that its layout has no place for;
    UserError when the folder cannot be written.
    """
    if sae.threshold is None:
        raise ValueError("an SAE is saved with its threshold: calibrate it first")
    folder, config = Path(folder), sae.config
    topk = config.rule == "topk"
    if (topk or standard) and (sae.threshold > 0).any():
        raise ValueError("SAELens's 'topk' and 'standard' know no thresholds above 0")
    if topk and standard:
        raise ValueError("an SAE of rule 'topk' is not SAELens's 'standard'")
    cfg = {
        "architecture": "topk" if topk else "standard" if standard else "jumprelu",
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": _NORMALIZE[config.normalize],
        "reshape_activations": "none",
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if topk else {}),
        "metadata": {
            **(config.metadata if metadata is None else metadata),
            "sae_lens_version": SAELENS_VERSION,
            "trained_architecture": config.architecture,
            "k": config.k,
            # SAELens undoes the normalisation without eps, so its outputs differ by 1e-5 of the normalised ones
            **({"undone_with_eps": True} if config.normalize == "token_eps" else {}),
        },
    }
    tensors = {
        "W_enc": sae.W_enc.detach(),
        "W_dec": sae.W_dec.detach(),
        "b_enc": sae.b_enc.detach(),
        "b_dec": sae.b_dec.detach(),
        **({} if topk or standard else {"threshold": sae.threshold}),
    }
    write_tensors(folder / WEIGHTS, {name: tensor.float().cpu() for name, tensor in tensors.items()})
    write_json(folder / CONFIG, cfg)


def load(folder: str | Path) -> SAE:
    """Reads a folder written by `save`, or by SAELens for a plain JumpReLU or TopK SAE; `metasae.interop.load` reads
    any other.

    Raises UserError for a folder that is missing or damaged, and for weights of a wrong shape or with a NaN.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no SAE folder '{folder}'")
    cfg, tensors = read_json(folder / CONFIG), read_tensors(folder / WEIGHTS)
    config = _config(cfg, folder)
    _check(tensors, config, folder)
    if config.rule == "threshold" and "trained_architecture" not in (cfg.get("metadata") or {}):
        refuse_never_set(tensors["threshold"], str(folder))
    sae = SAE(config)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        getattr(sae, name).data.copy_(tensors[name])
    if config.rule == "threshold":
        # a copy, as of the weights: a view into the file would change when the file is deleted or written again
        sae.threshold = tensors["threshold"].to(torch.float32, copy=True)
    return sae


def never_set(threshold: torch.Tensor, dead: float = math.inf) -> bool:
    """Whether none of the thresholds [n] says when a latent fires: each is 0 or below, infinite, or the mark `dead`."""
    return not ((threshold > 0) & torch.isfinite(threshold) & (threshold != dead)).any()


def refuse_never_set(threshold: torch.Tensor, where: str) -> None:
    """Raises UserError for another library's JumpReLU SAE in which no threshold [n] was ever set.

    By its rule it would be a ReLU SAE. Other libraries write such files when they save before thresholds are set.
    """
    if never_set(threshold):
        raise UserError(
            f"{where}: none of its thresholds was ever set (all are 0, below or infinite); save the SAE again with "
            "them, or set architecture to 'standard' in its config if it is a plain ReLU SAE"
        )


def _config(cfg: Any, folder: Path) -> SAEConfig:
    if not isinstance(cfg, dict):
        raise UserError(f"{folder / CONFIG} must hold a JSON object, not {type(cfg).__name__}")
    missing = [key for key in ("architecture", "d_in", "d_sae") if key not in cfg]
    if missing:
        raise UserError(f"{folder / CONFIG} lacks '{missing[0]}'")
    rule = next((rule for name, rule in _RULES.items() if name == cfg["architecture"]), None)
    if rule is None:
        raise UserError(
            f"{folder / CONFIG}: architecture '{cfg['architecture']}' is not read here, only 'jumprelu' and 'topk'"
        )
    if not all(_is_count(cfg[key]) for key in ("d_in", "d_sae")):
        raise UserError(f"{folder / CONFIG}: d_in and d_sae must be positive whole numbers")
    if cfg.get("apply_b_dec_to_input", True) is not True:
        raise UserError(
            f"{folder / CONFIG}: apply_b_dec_to_input = {json.dumps(cfg['apply_b_dec_to_input'])} is not "
            "supported, only true"
        )
    if cfg.get("rescale_acts_by_decoder_norm", False) is not False:
        raise UserError(f"{folder / CONFIG}: rescale_acts_by_decoder_norm is not supported, only false")
    theirs = cfg.get("normalize_activations", "none")
    normalize = next((ours for ours, name in _NORMALIZE.items() if name == theirs), None)
    if normalize is None:
        known = ", ".join(dict.fromkeys(_NORMALIZE.values()))
        raise UserError(f"{folder / CONFIG}: normalize_activations '{theirs}' is not supported; known: {known}")
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{folder / CONFIG}: metadata must be a JSON object, not {type(metadata).__name__}")
    notes = notes_of(metadata, str(folder / CONFIG))
    k = notes.k
    if rule == "topk":
        k = cfg.get("k")
        if not _is_count(k) or k > cfg["d_sae"]:
            raise UserError(f"{folder / CONFIG}: k must be a whole number from 1 to d_sae")
    normalize = "token_eps" if notes.undone_with_eps and normalize == "token" else normalize
    return SAEConfig(
        cfg["d_in"], cfg["d_sae"], notes.architecture or cfg["architecture"], k, normalize, notes.metadata, rule
    )


@dataclass(frozen=True)
class Notes:
    """The keys that `save` added to the metadata, and the rest. architecture: None in other libraries' folders."""

    architecture: str | None
    k: int
    undone_with_eps: bool
    metadata: dict


def notes_of(metadata: dict, where: str) -> Notes:
    """Separates the keys that `save` added from the rest of a cfg.json's metadata.

    Raises UserError for a key whose value has a wrong type.
    """
    rest = dict(metadata)
    # `save` writes the version of the format again
    rest.pop("sae_lens_version", None)
    architecture, k, eps = rest.pop("trained_architecture", None), rest.pop("k", 1), rest.pop("undone_with_eps", False)
    if not _is_count(k):
        raise UserError(f"{where}: metadata.k must be a positive whole number")
    if architecture is not None and not isinstance(architecture, str):
        raise UserError(f"{where}: metadata.trained_architecture must be a text")
    return Notes(architecture, k, eps is True, rest)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check(tensors: dict[str, torch.Tensor], config: SAEConfig, folder: Path) -> None:
    shapes = {name: dims for name, dims in _SHAPES.items() if name != "threshold" or config.rule == "threshold"}
    for name, dims in shapes.items():
        shape = tuple(getattr(config, dim) for dim in dims)
        if name not in tensors:
            raise UserError(f"{folder / WEIGHTS} lacks the tensor '{name}'")
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(tensors[name].shape)}, the config says {shape}"
            )
        if not tensors[name].is_floating_point():
            raise UserError(f"{folder / WEIGHTS}: {name} has dtype {tensors[name].dtype}, not a floating-point one")
        # a threshold of infinity is a latent that never fires
        if torch.isnan(tensors[name]).any() or (name != "threshold" and torch.isinf(tensors[name]).any()):
            raise UserError(f"{folder / WEIGHTS}: {name} holds NaN or inf")
    if unknown := sorted(set(tensors) - set(shapes)):
        raise UserError(f"{folder / WEIGHTS} holds the tensor '{unknown[0]}', which is not understood here")
