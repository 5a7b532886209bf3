"""Gemma Scope: `params.npz` of JumpReLU SAEs, as google/gemma-scope-* on the hub has them. They can be read but not
written.

    acts = relu(x W_enc + b_enc), where above a threshold per latent;   x_hat = acts W_dec + b_dec

W_enc [d, n], W_dec [n, d]; b_dec is not subtracted from x. There is no config: model and hook point are known from the
path alone, `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`.
"""

import re
from pathlib import Path

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.arrays import read_npz
from metasae.interop.detection import GEMMA_SCOPE_WEIGHTS as WEIGHTS
from metasae.interop.identities import SAETensors, assemble, centred
from metasae.sae.sae import SAE, SAEConfig

_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<kind>[a-z]+)")
_LAYER = re.compile(r"layer_(\d+)")
# What a repository's SAEs rebuild. `att` reads the heads side by side, before their output projection joins them.
_HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "model.layers.{}.self_attn.o_proj:in",
}


def load(path: Path) -> SAE:
    """Reads an SAE. path: the folder or its `params.npz`. Raises UserError for a damaged or hostile file, other arrays
    than these, and transcoders.
    """
    file = path / WEIGHTS if path.is_dir() else path
    metadata = _metadata(file)
    state = read_npz(file)
    d, n = tuple(state["W_enc"].shape) if "W_enc" in state and state["W_enc"].dim() == 2 else (0, 0)
    if not d or not n:
        raise UserError(f"{file} lacks a matrix 'W_enc': it is no SAE of Gemma Scope")
    shapes: checked.Shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,), "threshold": (n,)}
    tensors = SAETensors(**checked.take(state, shapes, str(file), ("threshold",)))
    config = SAEConfig(d, n, "jumprelu", metadata=metadata)
    return assemble(centred(tensors), config, str(file))


def _metadata(file: Path) -> dict:
    """The metadata in the path: model, hook point and how the SAE was trained; empty for a path of another form."""
    parts = file.absolute().parts[:-1]
    repository = next(filter(None, map(_REPOSITORY.search, reversed(parts))), None)
    layer = next(filter(None, map(_LAYER.fullmatch, reversed(parts))), None)
    if repository is None:
        return {}
    if repository["kind"] == "transcoders":
        raise UserError(f"{file} cannot be represented: a transcoder rebuilds another activation")
    tuned = "" if repository["tuned"] == "pt" else "-it"
    hook = _HOOKS.get(repository["kind"])
    # the repositories say so of all their SAEs (arXiv 2408.05147)
    known = {
        "model_name": f"google/gemma-2-{repository['size']}{tuned}",
        "context_size": 1024,
        "prepend_bos": True,
        "hook_name": hook.format(layer[1]) if hook and layer else None,
    }
    return checked.without_none(known)
