"""Language models and tokenizers from a folder, an installed package or the hub, with errors of one line."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from metasae.data.model.model_folder import local_folder
from metasae.data.model.refusal import refusal
from metasae.data.text import hub
from metasae.device import multiplies_bf16
from metasae.errors import UserError
from metasae.recipe import recipe

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the processor multiplies bf16 matrices itself, fp32 elsewhere."""
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def load_model(model: recipe.Model, device: torch.device) -> tuple[nn.Module, object, bool]:
    """(model, tokenizer, causal). Raises UserError with one line for anything that cannot be had."""
    folder = local_folder(model)
    if model.device_map and importlib.util.find_spec("accelerate") is None:
        raise UserError(f"model.device_map={model.device_map} needs accelerate: pip install accelerate")
    unreachable = "" if folder is not None else hub.unreachable()
    # a hub that cannot be reached may still have left the model in the local cache
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": bool(folder or unreachable)}
    if folder is None and model.revision:
        options["revision"] = model.revision
    with quiet():
        try:
            return _load(str(folder or model.source), options, model, device)
        except UserError:
            raise
        except Exception as error:
            # transformers, the hub's client and a model's own code raise errors of every kind
            raise refusal(error, model, unreachable) from error


def _load(source: str, options: dict, model: recipe.Model, device: torch.device) -> tuple[nn.Module, object, bool]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, **options)
    if config.is_encoder_decoder:
        raise UserError(f"'{source}' is an encoder-decoder model; use a causal model or an encoder")
    causal = _is_causal(config)
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    options = {**options, "output_loading_info": True}
    if model.device_map:
        options["device_map"] = model.device_map
        device = torch.device("cuda") if torch.cuda.is_available() else device  # where `auto` puts layers first
    loaded, report = loader.from_pretrained(source, config=config, dtype=pick_dtype(model.dtype, device), **options)
    _refuse_missing_weights(source, loaded, report["missing_keys"])
    return loaded if model.device_map else loaded.to(device), tokenizer, causal


def _is_causal(config) -> bool:
    import transformers

    names = config.architectures or ()
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return True
    # models that also see (Gemma 3) have a causal language model inside
    return (
        any(name.endswith("ForConditionalGeneration") for name in names)
        and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )


def _refuse_missing_weights(source: str, model: nn.Module, missing: Iterable[str]) -> None:
    """transformers fills weights that are not in the files with random numbers. An encoder's pooler may be random: nothing here reads it."""
    weights = {name for name, _ in model.named_parameters()}
    random = sorted(name for name in missing if name in weights and "pooler" not in name)
    if random:
        more = f" and {len(random) - 1} more" if len(random) > 1 else ""
        raise UserError(
            f"the files of the model '{source}' lack the weights '{random[0]}'{more}; use a complete {type(model).__name__}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' bars and reports of unused weights, and puts the settings back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
