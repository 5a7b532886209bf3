"""What is known of a recipe's language model before its weights are loaded: whether it is here, how large, how wide."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from metasae import recipe
from metasae.data import hooks, hub, loading
from metasae.data.refusal import refusal
from metasae.errors import UserError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Presence:
    """place: the folder the model lies in, `hub cache`, `none needed`, or None where it is not here. problem: why a run cannot have it, one line.

    d: width of the hooked tensor. bytes: of the weights as they will be loaded. vocabulary: tokens it chooses the next one from, 0 for an
    encoder. All None where the configuration cannot be had.
    """

    source: str
    place: str | None
    problem: str | None
    d: int | None = None
    bytes: int | None = None
    vocabulary: int | None = None

    def as_dict(self) -> dict:
        return asdict(self)


def planted_presence(values: dict) -> Presence:
    """Of a planted world, which needs no model. values: the recipe's table `planted`."""
    from metasae.data.planted_cache import PlantedCache

    try:
        return Presence("planted", "none needed", None, PlantedCache(values, {}).d, 0, 0)
    except UserError as error:
        return Presence("planted", None, str(error))


def presence_of(model: recipe.Model, point: str, device: str = "cpu") -> Presence:
    """Looks for the model and at its configuration. Downloads nothing but that, and only where the model is not here but could be had."""
    unreachable, place, shape = "", None, ()
    try:
        folder = loading.local_folder(model)
        place = str(folder) if folder is not None else "hub cache" if _in_hub_cache(model) else None
        unreachable = hub.unreachable() if place is None else ""
        shape = _shape(model, folder, place is not None or bool(unreachable), point, torch.device(device))
        problem = f"the model '{model.source}' is not here and {unreachable}; set model.path to a folder" if unreachable else None
    except UserError as error:
        problem = str(error)
    except Exception as error:
        # transformers and a model's own code raise errors of every kind
        problem = str(refusal(error, model, unreachable))
    return Presence(model.source, place, problem, *shape)


def _shape(model: recipe.Model, folder: Path | None, offline: bool, point: str, device: torch.device) -> tuple[int, int, int]:
    """(width at the hook point, bytes of the weights, vocabulary) of the model built without weights. Raises UserError for an unknown hook point."""
    import transformers

    with loading.quiet(), tempfile.TemporaryDirectory() as passing:
        options = {"local_files_only": offline, "trust_remote_code": model.trust_remote_code}
        if folder is None:
            # a configuration that is only looked at is not kept
            options |= {"revision": model.revision or None, **({} if offline else {"cache_dir": passing})}
        config = transformers.AutoConfig.from_pretrained(str(folder or model.source), **options)
        causal = loading._is_causal(config)
        loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        with torch.device("meta"):
            skeleton = loader.from_config(config, trust_remote_code=model.trust_remote_code)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text_config, "num_hidden_layers", None)
    if not layers:
        raise UserError(f"'{model.source}' is a {config.model_type} model, not one stack of transformer layers")
    place = hooks.resolve(skeleton, point, config.model_type, layers)
    numbers = sum(parameter.numel() for parameter in skeleton.parameters())
    width = _width(skeleton, place) or (text_config.hidden_size if point.startswith("blocks.") else None)
    if width is None:
        raise UserError(f"the width at '{point}' shows only when the model runs; look at a point like blocks.1.hook_resid_pre in its place")
    return width, numbers * loading.pick_dtype(model.dtype, device).itemsize, text_config.vocab_size if causal else 0


@torch.no_grad()
def _width(skeleton: nn.Module, place: hooks.Place) -> int | None:
    """Width of the hooked tensor, from a pass in which no number is worked out; None where the model looks at its numbers on the way."""

    def stop(x) -> None:
        raise hooks.Reached(x)

    try:
        with hooks.hooked(place, stop):
            # without a mask, whose numbers some models look at
            skeleton.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"))
    except hooks.Reached as reached:
        return reached.tensor.shape[-1]
    except Exception:
        return None
    return None


def _in_hub_cache(model: recipe.Model) -> bool:
    """Whether all weight files of a hub model lie in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> Path | None:
        found = try_to_load_from_cache(model.source, name, revision=model.revision or None)
        return Path(found) if isinstance(found, str) else None

    for name in _WEIGHTS:
        if cached(name):
            return True
        if index := cached(f"{name}.index.json"):
            return all(cached(part) for part in set(json.loads(index.read_text())["weight_map"].values()))
    return False
