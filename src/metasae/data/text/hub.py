"""The Hugging Face hub: whether it can be reached, datasets streamed from it, and its long errors as one line."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

from metasae.data.text.records import Document, document_of
from metasae.errors import UserError, install_hint
from metasae.recipe.recipe import Text

_SECONDS = 5.0
_LONGEST_REASON = 300


def documents(text: Text) -> Iterator[Document]:
    """The documents of a dataset on the hub, streamed without a download of the whole.

    Raises UserError with the hub's reason when the dataset, its configuration, split or column cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"text.source '{text.source}' is no local file, and a dataset needs: {install_hint('datasets')}"
        ) from None
    why = unreachable()
    if why:
        raise UserError(f"the dataset '{text.source}' cannot be had: {why}; use text.source=docs or a local file")
    label = f"the dataset '{text.source}'"
    try:
        records = datasets.load_dataset(text.source, text.name or None, split=text.split, streaming=True)
        for number, record in enumerate(records, 1):
            yield document_of(record, text.column, f"record {number} of {label}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{label} cannot be had: {reason(error)}; check text.source, text.name and text.split, or use a local file"
        ) from None


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
        # the client may have certificates that this probe lacks, so a doubt about them is left to it
        if not isinstance(why, ssl.SSLError):
            return f"{constants.ENDPOINT} cannot be reached from here ({why})"
    return ""


def reason(error: Exception) -> str:
    """The first line of an error that says something, without a full stop.

    transformers lists all its models in some; their end is cut.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[0].strip().rstrip(".")
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]}..."
