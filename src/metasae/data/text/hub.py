"""The Hugging Face hub: whether it can be reached, datasets streamed from it, and its long errors as one line."""

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

from metasae.data.text.records import Document, document_of
from metasae.errors import Dropped, UserError, install_hint
from metasae.recipe.recipe import Text

_SECONDS = 5.0
_LONGEST_REASON = 300
# The hub's client and the libraries that stream files for datasets, as their errors have no class in common; and what
# Python itself raises where a connection, or a compressed file that comes over it, ends too early.
_CLIENTS = {"httpx", "httpcore", "requests", "urllib3", "aiohttp", "fsspec", "huggingface_hub"}
_BROKEN = (ConnectionError, TimeoutError, asyncio.TimeoutError, ssl.SSLError, http.client.HTTPException, EOFError)


def documents(text: Text) -> Iterator[Document]:
    """The documents of a dataset on the hub, streamed without a download of the whole.

    Raises UserError with the hub's reason when the dataset, its configuration, split or column cannot be loaded, and
    Dropped when the connection breaks after the first document.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"text.source '{text.source}' is no local file, and a dataset needs: {install_hint('datasets')}"
        ) from None
    why = unreachable()
    if why:
        raise UserError(f"the dataset '{text.source}' cannot be loaded: {why}; use text.source=docs or a local file")
    label, number = f"the dataset '{text.source}'", 0
    try:
        records = datasets.load_dataset(text.source, text.name or None, split=text.split, streaming=True)
        for number, record in enumerate(records, 1):
            yield document_of(record, text.column, f"record {number} of {label}")
    except UserError:
        raise
    except Exception as error:
        why, dropped = reason(error), _is_of_the_network(error)
        if dropped and number:
            raise Dropped(
                f"{label} stopped after {number:,} documents ({why}); the harvest so far is kept, so run the same "
                "command again to continue"
            ) from None
        known = isinstance(error, (OSError, ValueError, datasets.exceptions.DatasetsError))
        if not known and not dropped:
            raise
        where = f" after document {number:,}" if number else ""
        check = "check text.source, text.name and text.split" if known else "try again later"
        raise UserError(f"{label} cannot be loaded{where}: {why}; {check}, or use a local file") from None


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, means that a connection broke, whichever client raised it."""
    while error is not None and not isinstance(error, FileNotFoundError):
        roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, _BROKEN) or roots & _CLIENTS:
            return True
        error = error.__cause__ or error.__context__
    return False


def unreachable() -> str:
    """Why the hub cannot be reached, or nothing when it can.

    Takes seconds; the hub's own client retries for half a minute.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer of any kind is an answer
    except OSError as error:
        why = getattr(error, "reason", error)
        # the client may have certificates that this probe lacks, so an error about certificates is left to the client
        if not isinstance(why, ssl.SSLError):
            return f"{constants.ENDPOINT} cannot be reached from here ({why})"
    return ""


def reason(error: Exception) -> str:
    """The first line of an error, without a full stop. A long line is cut, as transformers lists all its models in
    some.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[0].strip().rstrip(".")
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]}..."
