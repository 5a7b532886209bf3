"""Why a model cannot be loaded, and what to do about it: the hub's and transformers' long errors as one line.

transformers wraps the hub's errors in its own, so each error is looked at together with those that caused it.
"""

import re
from collections.abc import Iterator

import torch

from metasae.data.text.hub import reason
from metasae.errors import UserError
from metasae.recipe import recipe

_A_FOLDER = "set model.path to a folder"
_STATUS = re.compile(r"\s*\d{3} Client Error")
_PATH_OR_NAME = f"check model.name, or {_A_FOLDER}"


def refusal(error: Exception, model: recipe.Model, unreachable: str = "") -> UserError:
    """error: what loading `model` raised. unreachable: why the hub cannot be reached (`hub.unreachable`), empty where it can.

    The line names the hub's reason where the hub answered, and the key of the recipe to change.
    """
    from huggingface_hub import utils

    what = f"the model '{model.source}'"
    if "trust_remote_code" in str(error) and not model.trust_remote_code:
        return UserError(
            f"{what} brings Python code of its own, which would run on this machine; read it, and if you trust it set "
            "model.trust_remote_code=true, with model.revision at the commit you read"
        )
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return UserError(f"{what} does not fit into the GPU's memory; set model.dtype=bf16 or model.device_map=auto")
    if unreachable:
        if _cause(error, (utils.LocalEntryNotFoundError, utils.OfflineModeIsEnabled)):
            return UserError(
                f"cannot have {what}: {unreachable}, and the local cache lacks it; load it once online, or {_A_FOLDER}"
            )
        return UserError(
            f"cannot load {what} from the local cache: {_named(error)}; load it once online ({unreachable}), or {_A_FOLDER}"
        )
    return UserError(
        _by_hub(error, model, what) or f"cannot load {what}: {_named(error)}; check model.name or model.path"
    )


def _by_hub(error: Exception, model: recipe.Model, what: str) -> str | None:
    """The line for an error that came from the hub; None for any other. The classes are tried from the special to the general."""
    from huggingface_hub import utils

    page = f"https://huggingface.co/{model.source}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if found := _cause(error, utils.GatedRepoError):
        return f"{what} is gated ({_said(found)}); ask for access at {page}, then {log_in}"
    if found := _cause(error, utils.RepositoryNotFoundError):
        return f"the hub has no model '{model.source}', or it is private ({_said(found)}); {_PATH_OR_NAME}; for a private one {log_in}"
    if found := _cause(error, utils.RevisionNotFoundError):
        return f"{what} has no revision '{model.revision or 'main'}' ({_said(found)}); set model.revision to a branch, tag or commit of {page}"
    if found := _cause(error, utils.HFValidationError):
        return f"'{model.source}' is neither a folder nor a name on the hub ({reason(found)}); {_PATH_OR_NAME}"
    # of a missing file transformers says more
    if found := _cause(error, utils.HfHubHTTPError, besides=utils.EntryNotFoundError):
        return f"the hub does not hand out {what} ({_said(found)}); try again later, {log_in}, or {_A_FOLDER}"
    if found := _cause(error, ConnectionError) or _of_http_library(error):
        return f"cannot have {what}: the connection to the hub failed ({reason(found)}), and the local cache lacks it; try again, or {_A_FOLDER}"
    if _cause(error, utils.LocalEntryNotFoundError):
        return f"cannot have {what}: the hub cannot be reached, and the local cache lacks it; try again online, or {_A_FOLDER}"
    return None


def _cause(
    error: BaseException, kind: type | tuple[type, ...], besides: type | tuple[type, ...] = ()
) -> BaseException | None:
    """The first error of the kind in the chain that is of no kind of `besides`."""
    return next((cause for cause in _chain(error) if isinstance(cause, kind) and not isinstance(cause, besides)), None)


def _of_http_library(error: BaseException) -> BaseException | None:
    """An error of the hub's HTTP library, requests, httpx or httpx2, which are no dependencies of ours."""
    modules = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
    return next((each for each in _chain(error) if type(each).__module__.split(".")[0] in modules), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """What the server said; else the first line of the error that is more than an HTTP status."""
    said = getattr(error, "server_message", None) or "\n".join(
        line for line in str(error).splitlines() if not _STATUS.match(line)
    )
    return reason(Exception(said or str(error)))


def _named(error: BaseException) -> str:
    """The first line of an error; with its kind where that is none of the usual ones, whose words speak for themselves."""
    return (
        reason(error)
        if isinstance(error, (OSError, ValueError, ImportError))
        else f"{type(error).__name__}: {reason(error)}"
    )
