"""The part of a document of the evaluation text that was read, with the activations of one latent."""

import numpy as np

from metasae.errors import UserError
from metasae.explore.pages import run_files
from metasae.explore.store.blobs import short
from metasae.explore.store.open_store import OpenStore, SaeFacts

# Tokens that are shown on either side.
AROUND = 400


def document_page(store: OpenStore, sae: SaeFacts, latent: int, place: int) -> dict:
    """Up to AROUND tokens of the document on either side of token `place` of the evaluation text.

    {"document", "start": position of the first token in the document, "n_tokens": that were read of the document,
    "peak": place in the list, "tokens", "names", "values", "breaks": places where text in between was not read}. Raises
    KeyError for a place outside the text, UserError for an SAE whose firings are not in the run folder.
    """
    if not store.has_firings(sae):
        raise UserError(f"the firings of {sae.name} are not in the run folder, so there is no text to show")
    if not 0 <= place < sae.n_tokens:
        raise KeyError(f"no token {place} in the evaluation text of {sae.n_tokens} tokens")
    text = store.text(sae.text)
    begin, end = text.document_round(place)
    first, last = max(begin, place - AROUND), min(end, place + AROUND + 1)
    document, position = text.where(first)
    tokens, strengths = run_files.fired(store.arm_folder(sae), latent)
    low, high = np.searchsorted(tokens, np.array([first, last], tokens.dtype))
    values: list[float] = [0] * (last - first)
    for token, value in zip(tokens[low:high].tolist(), strengths[low:high].tolist(), strict=True):
        values[token - first] = short(value)
    return {
        "document": document,
        "start": position,
        "n_tokens": end - begin,
        "peak": place - first,
        "tokens": text.strings(first, last),
        "names": text.names(first, last),
        "values": values,
        "breaks": [int(cut) - first for cut in text.first if first < cut < last],
    }
