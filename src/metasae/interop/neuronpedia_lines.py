"""The lines of Neuronpedia's tables: what is shown of one latent.

common: the columns that all lines of an export share.
"""

import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from metasae.errors import UserError
from metasae.interop.stored_firings import StoredFirings
from metasae.interop.token_grid import TokenGrid

BINS = 50
# Tokens whose logits a latent raises and lowers most.
SHOWN = 10


def activations_of(
    stored: StoredFirings,
    grid: TokenGrid,
    strings: Callable[[np.ndarray], list[str]],
    latent: int,
    top: int,
    common: dict,
) -> Iterator[dict]:
    """Up to `top` rows in which the latent is strongest, strongest first, ties to the earlier row."""
    tokens, values = (np.asarray(array) for array in stored.by_latent.latent(latent))
    if not len(tokens):
        return
    row = grid.row[tokens]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(row)) + 1])
    strongest = np.maximum.reduceat(values, starts)
    best = np.argsort(-strongest, kind="stable")[:top]
    peak = float(values.max())
    for rank, which in enumerate(best):
        number = int(row[starts[which]])
        start, end = grid.tokens_of(number, number + 1)
        here = slice(*np.searchsorted(tokens, np.array([start, end], tokens.dtype)))
        dense = [0.0] * (end - start)
        for token, value in zip(tokens[here], values[here], strict=True):
            dense[token - start] = _short(value)
        at = int(tokens[here][np.argmax(values[here])]) - start
        yield {
            "id": _id(common, latent, rank),
            "index": str(latent),
            "tokens": strings(np.arange(start, end)),
            "values": dense,
            "maxValue": dense[at],
            "maxValueTokenIndex": at,
            "minValue": min(dense),
            "qualifyingTokenIndex": at,
            # as in the dashboards: the group of the strongest, not an interval of strengths
            "binMin": -1,
            "binMax": _short(peak),
            "binContains": -1,
            "dataIndex": str(int(stored.firings.documents[start])),
            "dataSource": str(stored.metadata.get("dataset_path") or ""),
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "lossValues": [],
            "logitContributions": None,
            **common,
        }


_LOGITS = (
    "pos_str",
    "pos_values",
    "neg_str",
    "neg_values",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
)
_EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "topkCosSimIndices",
    "topkCosSimValues",
    "decoder_weights_dist",
    "vector",
)


def feature_of(
    stored: StoredFirings, latent: int, names: dict[str, str], logits: Callable[[int], dict] | None, common: dict
) -> dict:
    _, values = stored.by_latent.latent(latent)
    heights, centres = histogram(values)
    return {
        "index": str(latent),
        "sourceSetName": names["set"],
        "maxActApprox": _short(values.max()) if len(values) else 0.0,
        "frac_nonzero": len(values) / max(stored.by_latent.n_tokens, 1),
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": centres,
        "hasVector": False,
        "vectorLabel": None,
        "hookName": names["hook"],
        **{key: [] for key in _EMPTY},
        **(logits(latent) if logits else {key: [] for key in _LOGITS}),
        **common,
    }


def histogram(values: np.ndarray) -> tuple[list[int], list[float]]:
    """(counts in 50 equal bins from the smallest to the largest value, the middle of each bin); empty for no values."""
    if not len(values):
        return [], []
    heights, edges = np.histogram(np.asarray(values, np.float64), BINS)
    return heights.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()


def logits_of(stored: StoredFirings, unembedding: Tensor, tokenizer=None) -> Callable[[int], dict]:
    """latent -> what its decoder row w adds to the logits: U w, for the unembedding U [V, d].

    Raises UserError for an unembedding of another width than the SAE's input.
    """
    W_dec, unembedding = stored.arm.sae().W_dec.detach(), unembedding.detach().float()
    if unembedding.dim() != 2 or unembedding.shape[1] != W_dec.shape[1]:
        raise UserError(
            f"unembedding must have the shape [V, {W_dec.shape[1]}] for this SAE, not {tuple(unembedding.shape)}"
        )
    tokenizer = tokenizer or stored.tokenizer()

    def of_latent(latent: int) -> dict:
        logits = (unembedding @ W_dec[latent]).numpy()
        order = np.argsort(logits, kind="stable")
        most, least = order[::-1][:SHOWN], order[:SHOWN]
        heights, centres = histogram(logits)
        return {
            "pos_str": [tokenizer.decode([int(token)]) for token in most],
            "pos_values": [_short(logits[token]) for token in most],
            "neg_str": [tokenizer.decode([int(token)]) for token in least],
            "neg_values": [_short(logits[token]) for token in least],
            "logits_hist_data_bar_heights": heights,
            "logits_hist_data_bar_values": centres,
        }

    return of_latent


def explanation_of(latent: int, text: str, common: dict) -> dict:
    return {
        "id": _id(common, latent, "explanation"),
        "index": str(latent),
        "description": text,
        "authorId": common["creatorId"],
        "typeName": None,
        "explanationModelName": None,
        **{key: common[key] for key in ("modelId", "layer", "createdAt")},
    }


def _id(common: dict, *parts) -> str:
    """25 letters and digits, the same for the same SAE, latent and rank."""
    text = json.dumps([common["modelId"], common["layer"], *map(str, parts)])
    return "c" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _short(value) -> float:
    """The shortest decimal that is the same number in fp32."""
    return float(str(np.float32(value)))
