"""Language models and tokenizers from a folder, an installed package or the hub, with errors of one line.

transformers wraps the hub's errors in its own, so each error is looked at together with those that caused it.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from metasae.data.model.model_folder import local_folder
from metasae.data.model.quiet import quiet
from metasae.data.text import hub
from metasae.device import multiplies_bf16
from metasae.errors import UserError
from metasae.recipe import recipe

_A_FOLDER = "set model.path to a folder"
_STATUS = re.compile(r"\s*\d{3} Client Error")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the processor multiplies bf16 matrices itself, fp32 elsewhere."""
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def load_model(model: recipe.Model, device: torch.device) -> tuple[nn.Module, object, bool]:
    """Loads (model, tokenizer, causal). Raises UserError with one line for anything that cannot be loaded."""
    if model.device_map and importlib.util.find_spec("accelerate") is None:
        raise UserError(f"model.device_map={model.device_map} needs accelerate: pip install accelerate")
    with _place(model) as (source, options):
        return _load(source, options, model, device)


def load_tokenizer(model: recipe.Model):
    """The Hugging Face tokenizer of a recipe's model, without the weights, which take longer to read. Raises UserError
    with one line where it cannot be loaded.
    """
    with _place(model) as (source, options):
        import transformers

        return transformers.AutoTokenizer.from_pretrained(source, **options)


@contextmanager
def _place(model: recipe.Model) -> Iterator[tuple[str, dict]]:
    """(folder or name, options) for transformers, which prints nothing inside; its errors become a UserError of one
    line.
    """
    folder = local_folder(model)
    unreachable = "" if folder is not None else hub.unreachable()
    # a hub that cannot be reached may still have left the model in the local cache
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": bool(folder or unreachable)}
    if folder is None and model.revision:
        options["revision"] = model.revision
    with quiet():
        try:
            yield str(folder or model.source), options
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
    """Raises UserError for weights that are not in the files, which transformers fills with random numbers. An
    encoder's pooler may be random, as nothing here reads it.
    """
    weights = {name for name, _ in model.named_parameters()}
    random = sorted(name for name in missing if name in weights and "pooler" not in name)
    if random:
        more = f" and {len(random) - 1} more" if len(random) > 1 else ""
        raise UserError(
            f"the files of the model '{source}' lack the weights '{random[0]}'{more}; "
            f"use a complete {type(model).__name__}"
        )


def refusal(error: Exception, model: recipe.Model, unreachable: str = "") -> UserError:
    """The UserError for an error that loading `model` raised. unreachable: why the hub cannot be reached
    (`hub.unreachable`), empty where it can. The line names the hub's reason where the hub answered, and the key of the
    recipe to change.
    """
    from huggingface_hub import utils

    what = f"the model '{model.source}'"
    lacking = (utils.LocalEntryNotFoundError, utils.OfflineModeIsEnabled)
    not_in_cache = any(isinstance(cause, lacking) for cause in _chain(error))
    lines = [
        (
            "trust_remote_code" in str(error) and not model.trust_remote_code,
            f"{what} brings Python code of its own, which would run on this machine; read it, and if you trust it set "
            "model.trust_remote_code=true, with model.revision at the commit you read",
        ),
        (
            isinstance(error, torch.cuda.OutOfMemoryError),
            f"{what} does not fit into the GPU's memory; set model.dtype=bf16 or model.device_map=auto",
        ),
        (
            unreachable and not_in_cache,
            f"cannot load {what}: {unreachable}, and the local cache lacks it; load it once online, or {_A_FOLDER}",
        ),
        (
            unreachable,
            f"cannot load {what} from the local cache: {_named(error)}; "
            f"load it once online ({unreachable}), or {_A_FOLDER}",
        ),
    ]
    line = next((line for applies, line in lines if applies), None) or _by_hub(error, model, what)
    return UserError(line or f"cannot load {what}: {_named(error)}; check model.name or model.path")


def _by_hub(error: Exception, model: recipe.Model, what: str) -> str | None:
    """The line for an error that came from the hub; None for any other.

    The kinds are tried from the special to the general.
    """
    from huggingface_hub import utils

    def first(kind: type, besides: type | tuple[()] = ()) -> BaseException | None:
        """The first error of the kind in the chain that is not of the kind `besides`."""
        return next(
            (cause for cause in _chain(error) if isinstance(cause, kind) and not isinstance(cause, besides)), None
        )

    # (the cause where there is one, what is quoted of it as `why`, the line)
    lines = [
        (first(utils.GatedRepoError), _said, "{what} is gated ({why}); ask for access at {page}, then {log_in}"),
        (
            first(utils.RepositoryNotFoundError),
            _said,
            "the hub has no model '{name}', or it is private ({why}); {path_or_name}; for a private one {log_in}",
        ),
        (
            first(utils.RevisionNotFoundError),
            _said,
            "{what} has no revision '{revision}' ({why}); set model.revision to a branch, tag or commit of {page}",
        ),
        (
            first(utils.HFValidationError),
            hub.reason,
            "'{name}' is neither a folder nor a name on the hub ({why}); {path_or_name}",
        ),
        (
            # of a missing file transformers says more
            first(utils.HfHubHTTPError, besides=utils.EntryNotFoundError),
            _said,
            "the hub refuses {what} ({why}); try again later, {log_in}, or {a_folder}",
        ),
        (
            first(ConnectionError) or _of_http_library(error),
            hub.reason,
            "cannot load {what}: the connection to the hub failed ({why}), and the local cache lacks it; "
            "try again, or {a_folder}",
        ),
        (
            first(utils.LocalEntryNotFoundError),
            hub.reason,
            "cannot load {what}: the hub cannot be reached, and the local cache lacks it; "
            "try again online, or {a_folder}",
        ),
    ]
    words = {
        "what": what,
        "name": model.source,
        "revision": model.revision or "main",
        "page": f"https://huggingface.co/{model.source}",
        "log_in": "log in with `hf auth login` or set HF_TOKEN",
        "path_or_name": f"check model.name, or {_A_FOLDER}",
        "a_folder": _A_FOLDER,
    }
    return next((line.format(why=quote(cause), **words) for cause, quote, line in lines if cause is not None), None)


def _of_http_library(error: BaseException) -> BaseException | None:
    """An error of the hub's HTTP library (requests, httpx or httpx2), none of which metasae depends on."""
    modules = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
    return next((cause for cause in _chain(error) if type(cause).__module__.split(".")[0] in modules), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that caused it, each once."""
    passed: set[int] = set()
    while error is not None and id(error) not in passed:
        passed.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """The server's message; else the first line of the error that is more than an HTTP status."""
    lines = [line for line in str(error).splitlines() if not _STATUS.match(line)]
    return hub.reason(Exception(getattr(error, "server_message", None) or "\n".join(lines) or str(error)))


def _named(error: BaseException) -> str:
    """The first line of an error, after its class unless that is a common one, whose text says enough."""
    usual = isinstance(error, (OSError, ValueError, ImportError))
    return hub.reason(error) if usual else f"{type(error).__name__}: {hub.reason(error)}"
