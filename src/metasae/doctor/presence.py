"""A recipe's language model before its weights are loaded: whether it is on this machine, its size and its width."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metasae.data.model import hooks, loading
from metasae.data.model.model_folder import local_folder
from metasae.data.model.quiet import quiet
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.text import hub
from metasae.doctor.estimate import is_planted
from metasae.errors import UserError
from metasae.recipe.recipe import Model, Recipe

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
_GEMMA2 = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 256, "vocab_size": 256_000}
# Configurations of the models in shipped recipes and of related models, from their public config.json, so that a plan
# needs neither the hub nor the weights. Other values are the family's defaults in transformers.
KNOWN = {
    "openai-community/gpt2": _GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "openai-community/gpt2-medium": _GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-large": _GPT2 | {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "openai-community/gpt2-xl": _GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "google/gemma-2-2b": _GEMMA2
    | {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "google/gemma-3-270m": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    | {
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262_144,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "google/gemma-2-9b": _GEMMA2
    | {
        "hidden_size": 3584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True)
class Presence:
    """Whether a model is on this machine. place: its folder, `hub cache`, `none needed`, or None if it is not here.
    problem: one line on why a run cannot get it, None if it can.

    d: width of the hooked tensor. bytes: of the weights as they will be loaded. vocabulary: number of tokens it can
    predict, 0 for an encoder. All three are None if the configuration is not available.
    """

    source: str
    place: str | None
    problem: str | None
    d: int | None = None
    bytes: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, without its weights. d: width of the hooked tensor. numbers: number of weights. vocabulary:
    number of tokens it can predict, 0 for an encoder.

    flops: of matrix products per token of a full window, up to the last hook point; None if only a run shows them.
    source: where the configuration is from.
    """

    d: int
    numbers: int
    vocabulary: int
    flops: float | None
    source: str


def presence_of(wanted: Recipe, device: str = "cpu") -> Presence:
    """Looks for the recipe's model and reads its configuration.

    Downloads only the configuration, and only if the model is not here but available on the hub.
    """
    if is_planted(wanted):
        try:
            return Presence("planted", "none needed", None, shape_of(wanted).d, 0, 0)
        except UserError as error:
            return Presence("planted", None, str(error))
    model, place, facts = wanted.model, None, ()
    try:
        folder = local_folder(model)
        place = str(folder) if folder is not None else "hub cache" if _in_hub_cache(model) else None
        shape = shape_of(wanted, tokens=2)
        size = shape.numbers * loading.pick_dtype(model.dtype, torch.device(device)).itemsize
        problem, facts = None, (shape.d, size, shape.vocabulary)
        unreachable = hub.unreachable() if place is None else ""
        if unreachable:
            problem = f"the model '{model.source}' is not on this machine and {unreachable}; set model.path to a folder"
    except UserError as error:
        problem = str(error)
    return Presence(model.source, place, problem, *facts)


def shape_of(wanted: Recipe, tokens: int = 0) -> Shape:
    """The shape of a recipe's model, from its folder, from KNOWN, or from the hub; or the shape of a planted world.
    tokens: tokens of a window, instead of the recipe's.

    Raises UserError if none of them has the configuration, for an unknown hook point and for a wrong table `planted`.
    """
    if is_planted(wanted):
        return Shape(PlantedCache(wanted.planted, {}).d, 0, 0, 0.0, "the planted world")
    import transformers

    model, folder, unreachable = wanted.model, local_folder(wanted.model), ""
    facts = KNOWN.get(model.source) or KNOWN.get(f"openai-community/{model.source}")
    try:
        if folder is None and facts is not None:
            config, source = transformers.AutoConfig.for_model(**facts), "its public configuration"
        else:
            here = folder is not None or _in_hub_cache(model)
            unreachable = "" if here else hub.unreachable()
            options = {"local_files_only": here or bool(unreachable), "trust_remote_code": model.trust_remote_code}
            with quiet(), tempfile.TemporaryDirectory() as passing:
                if folder is None:
                    # a configuration that is only read now is not kept
                    kept = {} if options["local_files_only"] else {"cache_dir": passing}
                    options |= {"revision": model.revision or None, **kept}
                config = transformers.AutoConfig.from_pretrained(str(folder or model.source), **options)
            source = str(folder or "the hub")
        return _shape(config, model, (wanted.hook.point, *wanted.hook.also), tokens or wanted.text.context, source)
    except UserError:
        raise
    except Exception as error:
        # transformers and a model's own code raise all kinds of errors
        raise loading.refusal(error, model, unreachable) from error


def _shape(config, model: Model, points: Sequence[str], context: int, source: str) -> Shape:
    """The shape of a model that is built without weights; its FLOPs are for windows of `context` tokens. Raises as
    `shape_of`.
    """
    import transformers

    causal = loading._is_causal(config)
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with quiet(), torch.device("meta"):
        skeleton = loader.from_config(config, trust_remote_code=model.trust_remote_code)
    # some releases of transformers do not tie weights without storage
    skeleton.tie_weights()
    text_config = config.get_text_config()
    layers = getattr(text_config, "num_hidden_layers", None)
    if not layers:
        raise UserError(f"'{model.source}' is a {config.model_type} model, not one stack of transformer layers")
    places = [hooks.resolve(skeleton, point, config.model_type, layers) for point in points]
    widths, flops = zip(*(_followed(skeleton, place, context) for place in places), strict=True)
    width = widths[0] or (text_config.hidden_size if points[0].startswith("blocks.") else None)
    if width is None:
        raise UserError(
            f"the width at '{points[0]}' is known only when the model runs; "
            "use a point like blocks.1.hook_resid_pre instead"
        )
    numbers = sum(parameter.numel() for parameter in skeleton.parameters())
    vocabulary = text_config.vocab_size if causal else 0
    return Shape(width, numbers, vocabulary, None if None in flops else max(flops), source)


@torch.no_grad()
def _followed(skeleton: nn.Module, place: hooks.Place, tokens: int) -> tuple[int, float] | tuple[None, None]:
    """(width of the hooked tensor, FLOPs of matrix products per token), from a pass of one window through a model
    without weights.

    (None, None) if that is impossible, as the model reads its own values on the way.
    """

    def stop(x) -> None:
        raise hooks.Reached(x)

    counter = FlopCounterMode(display=False)
    try:
        with counter, hooks.hooked(place, stop):
            # without a mask, as some models read its values
            skeleton.eval()(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    except hooks.Reached as reached:
        return reached.args[0].shape[-1], counter.get_total_flops() / tokens
    except Exception:
        return None, None
    return None, None


def _in_hub_cache(model: Model) -> bool:
    """Whether all weight files of a hub model are in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> Path | None:
        file = try_to_load_from_cache(model.source, name, revision=model.revision or None)
        return Path(file) if isinstance(file, str) else None

    for name in _WEIGHTS:
        if cached(name):
            return True
        if index := cached(f"{name}.index.json"):
            return all(cached(part) for part in set(json.loads(index.read_text())["weight_map"].values()))
    return False
