"""Hook points: a name -> a module of the plain Hugging Face model and the side of it (its input or its output).

Names are TransformerLens's (`blocks.4.hook_resid_pre`) or module paths (`encoder.layer.3:out`,
`transformer.h.2.mlp:in`). A TransformerLens name means the tensor that TransformerLens gives for unprocessed weights.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from metasae.errors import UserError, nearest

RESIDUAL = {"resid_pre": ("", "in"), "resid_post": ("", "out")}
_LLAMA = {"attn_out": ("self_attn", "out"), "resid_mid": ("post_attention_layernorm", "in"), "mlp_out": ("mlp", "out")}
# Gemma 2 and 3 normalise what attention and MLP write before they add it.
_GEMMA2 = {
    "attn_out": ("post_attention_layernorm", "out"),
    "resid_mid": ("pre_feedforward_layernorm", "in"),
    "mlp_out": ("post_feedforward_layernorm", "out"),
}
# BERT normalises after adding: mid-layer and at the end of a block, the stream is the sum that enters a LayerNorm,
# and the next block reads what leaves it.
_BERT = {
    "attn_out": ("attention.output.dense", "out"),
    "resid_mid": ("attention.output.LayerNorm", "in"),
    "mlp_out": ("output.dense", "out"),
    "resid_post": ("output.LayerNorm", "in"),
    "normalized_resid_post": ("", "out"),
}
_GPT2 = {"attn_out": ("attn", "out"), "resid_mid": ("ln_2", "in"), "mlp_out": ("mlp", "out")}
_NEOX = {"attn_out": ("attention", "out"), "resid_mid": ("post_attention_layernorm", "in"), "mlp_out": ("mlp", "out")}

# Only families whose inner places were checked, as other families (OLMo 2) use the same module names for other things.
FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA2),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), _BERT),
}

_LENS_NAME = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
_BLOCKS = re.compile(r"(^|\.)(h|layers?|blocks?)$")
# Models that also read images or sound have a stack of blocks for each of them.
_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech")


@dataclass(frozen=True)
class Place:
    """A module and the side of it that is read: `in` or `out`. `path` is the module's name in the model."""

    module: nn.Module
    path: str
    side: str


class Reached(Exception):
    """Raised inside a hook to stop the model there; its one argument is the hooked tensor [b, t, d]."""


def layers_of(model: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """(path, the list of the blocks that read text). Raises UserError when no list of n_layers blocks is found."""
    for path, module in model.named_modules():
        is_stack = isinstance(module, nn.ModuleList) and len(module) == n_layers
        if is_stack and _BLOCKS.search(path) and not _OTHER_SENSES.search(path):
            return path, module
    raise UserError(
        f"no list of {n_layers} layers in {type(model).__name__}; "
        "name the module itself, e.g. hook.point='path.to.module:out'"
    )


def resolve(model: nn.Module, point: str, model_type: str, n_layers: int) -> Place:
    """The place a hook point names. Raises UserError that names the nearest right one."""
    if point.startswith("blocks."):
        return _resolve_lens_name(model, point, model_type, n_layers)
    path, _, side = point.partition(":")
    side = side or "out"
    modules = dict(model.named_modules())
    if side not in ("in", "out"):
        raise UserError(f"hook.point '{point}' must end with ':in' or ':out', not ':{side}'")
    if not path or path not in modules:
        hint = nearest(path, [name for name in modules if name])
        if "did you mean" not in hint:
            hint = f"; try 'blocks.L.hook_resid_pre' with L from 0 to {n_layers - 1}"
        raise UserError(f"no module '{path}' in {type(model).__name__}{hint}")
    return Place(modules[path], path, side)


def _resolve_lens_name(model: nn.Module, point: str, model_type: str, n_layers: int) -> Place:
    kinds = {**RESIDUAL, **FAMILIES.get(model_type, {})}
    if getattr(model.config, "use_parallel_residual", False):
        # the two branches of the block run side by side (GPT-NeoX), so there is no mid-layer stream
        kinds.pop("resid_mid", None)
    match = _LENS_NAME.fullmatch(point)
    if not match or match[2] not in kinds:
        layer = re.match(r"blocks\.(\d+)", point)
        options = [f"blocks.{layer[1] if layer else 0}.hook_{kind}" for kind in kinds]
        known = ", ".join(f"hook_{kind}" for kind in kinds)
        raise UserError(f"no hook point '{point}' in a {model_type} model{nearest(point, options)}; known: {known}")
    layer, kind = int(match[1]), match[2]
    if layer >= n_layers:
        raise UserError(
            f"hook.point '{point}': the model has {n_layers} layers; did you mean 'blocks.{n_layers - 1}.hook_{kind}'?"
        )
    path, layers = layers_of(model, n_layers)
    inner, side = kinds[kind]
    full = f"{path}.{layer}.{inner}".rstrip(".")
    try:
        return Place(layers[layer].get_submodule(inner), full, side)
    except AttributeError:
        raise UserError(
            f"this {model_type} model has no module '{full}' for '{point}'; "
            f"name the module itself, e.g. '{path}.{layer}:out'"
        ) from None


@contextmanager
def hooked(place: Place, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the tensor [b, t, d] at `place` is replaced by change(tensor). The hook is removed even after an
    error.
    """

    def before(_module, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        if "hidden_states" not in kwargs:
            raise UserError(f"the input of '{place.path}' is no tensor; hook its output: '{place.path}:out'")
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_module, _args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        if not isinstance(output, Tensor):
            raise UserError(f"the output of '{place.path}' is no tensor; hook a module inside it")
        return change(output)

    if place.side == "in":
        handle = place.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = place.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
