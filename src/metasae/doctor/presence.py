"""What is known of a recipe's language model before its weights are loaded: whether it is here, how large, how wide."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from metasae.data.model import hooks, loading
from metasae.data.model.model_folder import local_folder
from metasae.data.model.loading import refusal
from metasae.data.text import hub
from metasae.doctor.known import config_of
from metasae.errors import UserError
from metasae.recipe import recipe

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
    from metasae.data.planted.planted_cache import PlantedCache

    try:
        return Presence("planted", "none needed", None, PlantedCache(values, {}).d, 0, 0)
    except UserError as error:
        return Presence("planted", None, str(error))


def presence_of(model: recipe.Model, point: str, device: str = "cpu") -> Presence:
    """Looks for the model and at its configuration. Downloads nothing but that, and only where the model is not here but could be had."""
    unreachable, place, shape = "", None, ()
    try:
        folder = local_folder(model)
        place = str(folder) if folder is not None else "hub cache" if _in_hub_cache(model) else None
        unreachable = hub.unreachable() if place is None else ""
        shape = _shape(model, folder, place is not None or bool(unreachable), point, torch.device(device))
        problem = (
            f"the model '{model.source}' is not here and {unreachable}; set model.path to a folder"
            if unreachable
            else None
        )
    except UserError as error:
        problem = str(error)
    except Exception as error:
        # transformers and a model's own code raise errors of every kind
        problem = str(refusal(error, model, unreachable))
    return Presence(model.source, place, problem, *shape)


@dataclass(frozen=True)
class Shape:
    """A model without its weights. d: width of the hooked tensor. numbers: of the weights. vocabulary: 0 for an encoder.

    flops: of matrix products per token of a full window, up to the last hook point; None where the model must run to know them.
    source: where its configuration is from.
    """

    d: int
    numbers: int
    vocabulary: int
    flops: float | None
    source: str

    def as_dict(self) -> dict:
        return asdict(self)


def shape_of(wanted: recipe.Recipe) -> Shape:
    """The shape of a recipe's model: from its folder, from what is known of it by name, or from the hub.

    Raises UserError where none of them has it, and for an unknown hook point.
    """
    model, points = wanted.model, (wanted.hook.point, *wanted.hook.also)
    folder = local_folder(model)
    config, source = (None, str(folder)) if folder is not None else (config_of(model.name), "its public configuration")
    why = ""
    if config is None:
        if folder is None:
            why, source = hub.unreachable(), "the hub"
        try:
            config = _config(model, folder, folder is not None or bool(why))
        except Exception as error:
            # transformers and a model's own code raise errors of every kind
            if not why:
                raise refusal(error, model, why) from error
            raise UserError(
                f"the shape of '{model.source}' is not known, and {why}; set model.path to a folder with its config.json"
            ) from None
    skeleton, causal, text_config = _skeleton(config, model)
    places = [_place(skeleton, config, text_config, model, point) for point in points]
    flops = [_flops(skeleton, place, wanted.text.context) for place in places]
    numbers = sum(parameter.numel() for parameter in skeleton.parameters())
    width = _width_at(skeleton, places[0], text_config, points[0])
    return Shape(width, numbers, text_config.vocab_size if causal else 0, None if None in flops else max(flops), source)


def _shape(
    model: recipe.Model, folder: Path | None, offline: bool, point: str, device: torch.device
) -> tuple[int, int, int]:
    """(width at the hook point, bytes of the weights, vocabulary) of the model built without weights. Raises UserError for an unknown hook point."""
    config = _config(model, folder, offline)
    skeleton, causal, text_config = _skeleton(config, model)
    place = _place(skeleton, config, text_config, model, point)
    numbers = sum(parameter.numel() for parameter in skeleton.parameters())
    width = _width_at(skeleton, place, text_config, point)
    return width, numbers * loading.pick_dtype(model.dtype, device).itemsize, text_config.vocab_size if causal else 0


def _config(model: recipe.Model, folder: Path | None, offline: bool):
    import transformers

    with loading.quiet(), tempfile.TemporaryDirectory() as passing:
        options = {"local_files_only": offline, "trust_remote_code": model.trust_remote_code}
        if folder is None:
            # a configuration that is only looked at is not kept
            options |= {"revision": model.revision or None, **({} if offline else {"cache_dir": passing})}
        return transformers.AutoConfig.from_pretrained(str(folder or model.source), **options)


def _skeleton(config, model: recipe.Model) -> tuple[nn.Module, bool, object]:
    """(the model without storage, whether it predicts tokens, the configuration of its text part)."""
    import transformers

    causal = loading._is_causal(config)
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with loading.quiet(), torch.device("meta"):
        skeleton = loader.from_config(config, trust_remote_code=model.trust_remote_code)
    # some releases of transformers leave this out where there is no storage
    skeleton.tie_weights()
    return skeleton, causal, config.get_text_config() if hasattr(config, "get_text_config") else config


def _place(skeleton: nn.Module, config, text_config, model: recipe.Model, point: str) -> hooks.Place:
    layers = getattr(text_config, "num_hidden_layers", None)
    if not layers:
        raise UserError(f"'{model.source}' is a {config.model_type} model, not one stack of transformer layers")
    return hooks.resolve(skeleton, point, config.model_type, layers)


def _width_at(skeleton: nn.Module, place: hooks.Place, text_config, point: str) -> int:
    width = _width(skeleton, place) or (text_config.hidden_size if point.startswith("blocks.") else None)
    if width is None:
        raise UserError(
            f"the width at '{point}' shows only when the model runs; look at a point like blocks.1.hook_resid_pre in its place"
        )
    return width


def _width(skeleton: nn.Module, place: hooks.Place) -> int | None:
    """Width of the hooked tensor; None where the model looks at its numbers on the way."""
    reached = _reached(skeleton, place, 2)
    return None if reached is None else reached.shape[-1]


def _flops(skeleton: nn.Module, place: hooks.Place, context: int) -> float | None:
    """FLOPs of matrix products per token, of one window up to the hook; None as for the width."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        reached = _reached(skeleton, place, context)
    return None if reached is None else counter.get_total_flops() / context


@torch.no_grad()
def _reached(skeleton: nn.Module, place: hooks.Place, tokens: int) -> torch.Tensor | None:
    """The hooked tensor, from a pass of one window in which no number is worked out; None where that cannot be done."""

    def stop(x) -> None:
        raise hooks.Reached(x)

    try:
        with hooks.hooked(place, stop):
            # without a mask, whose numbers some models look at
            skeleton.eval()(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    except hooks.Reached as reached:
        return reached.tensor
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
