"""Writes a firing store for Neuronpedia's import: one folder per SAE, tables as lines of JSON.

    OUT/MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one line each
                     features/batch-N.jsonl.gz       a line per latent: rate, largest activation, histogram
                     activations/batch-N.jsonl.gz    a line per row of text: its tokens and the latent's value on each
                     explanations/batch-N.jsonl.gz   a line per explained latent

SOURCE is `LAYER-SET`, as `4-metasae-joint-s0`. For each latent the rows with the largest activations are written, each
once. Values are the store's fp32 numbers as the shortest decimals that give the same fp32. Columns that Neuronpedia
fills from elsewhere (logits, neuron alignment, correlated neurons) are empty lists.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.outputs import new_folder
from metasae.interop.stored_firings import StoredFirings, TokenGrid, grid_of, row_length, stored_firings
from metasae.progress.progress import SILENT, Progress

# Latents per file, as Neuronpedia's own exports have them.
BATCH = 1024
# Of the histogram of a latent's activations.
BINS = 50
# The owner that Neuronpedia's tools write where none is given.
NOBODY = "clkht01d40000jv08hvalcvly"

# Columns that Neuronpedia fills from elsewhere.
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
    "pos_str",
    "pos_values",
    "neg_str",
    "neg_values",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
)


def export_neuronpedia(
    arm_folder: str | Path,
    out: str | Path,
    *,
    release: str = "metasae",
    creator: str = "",
    creator_id: str = NOBODY,
    context: int | None = None,
    top: int = 20,
    tokenizer=None,
    progress: Progress = SILENT,
) -> dict:
    """Writes an arm's latents for Neuronpedia's import; returns the path of the source's folder and the counts. The
    folder is named after the model, and its set `metasae-<arm>-s<seed>`. release, creator: shown with them. context:
    tokens of a row, None for the SAE's own context. top: rows per latent. tokenizer: a Hugging Face one; None for that
    of the recipe's model. Explanations are read from the arm's interp.json where its latents have them. Raises
    UserError where the arm keeps no firings or does not say which model it belongs to, `out` is not empty, or a size is
    impossible.
    """
    stored = stored_firings(arm_folder, progress)
    view, names = stored.by_latent, _names(stored)
    grid = grid_of(stored.firings.documents, stored.firings.positions, row_length(stored.metadata, context))
    strings = stored.strings(tokenizer)
    explained = _explanations(stored)
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    common = {"modelId": names["model"], "layer": names["source"], "creatorId": creator_id, "createdAt": now}
    counts = {"features": 0, "dead": int((view.counts() == 0).sum()), "activations": 0, "explanations": 0}
    with new_folder(Path(out)) as part, progress.task("writing latents", view.n_latents, "latents") as task:
        folder = part / names["model"] / names["source"]
        folder.mkdir(parents=True)
        for name, line in _tables(stored, grid, names, release, creator, creator_id, now).items():
            (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n", encoding="ascii")
        for number, first in enumerate(range(0, view.n_latents, BATCH)):
            latents = range(first, min(first + BATCH, view.n_latents))
            rows = (_activations_of(stored, grid, strings, latent, top, common) for latent in latents)
            texts = ((latent, explained[latent]) for latent in latents if latent in explained)
            tables = {
                "features": (_feature_of(stored, latent, names, common) for latent in latents),
                "activations": chain.from_iterable(rows),
                "explanations": (_explanation_of(latent, text, common) for latent, text in texts),
            }
            for table, lines in tables.items():
                counts[table] += _write_lines(folder / table / f"batch-{number}.jsonl.gz", lines)
            task.advance(len(latents))
    return {"folder": str(Path(out) / names["model"] / names["source"]), **names, **counts}


def _names(stored: StoredFirings) -> dict[str, str]:
    """model, set, source and hook. Raises UserError for an SAE that does not say its model."""
    site = re.search(r"(?:blocks|layers|h)\.(\d+)(?:\.|$)", stored.hook)
    known = str(stored.metadata.get("model_name") or "").rpartition("/")[2]
    model = re.sub(r"[^\w.-]+", "-", known).strip("-.").lower()
    if not model:
        raise UserError(f"{stored.arm.folder} does not say its model (model_name in the metadata of its cfg.json)")
    source_set = re.sub(r"[^a-z0-9-]+", "-", f"metasae-{stored.arm.name}-s{stored.notes.get('seed', 0)}".lower())
    return {"model": model, "set": source_set, "source": f"{site[1] if site else 0}-{source_set}", "hook": stored.hook}


def _tables(
    stored: StoredFirings,
    grid: TokenGrid,
    names: dict,
    release: str,
    creator: str,
    creator_id: str,
    now: str,
) -> dict[str, dict]:
    """The four tables of one line."""
    creation, model = {"creatorId": creator_id, "createdAt": now}, names["model"]
    what = f"{names['hook']}, {stored.by_latent.n_latents} latents"
    return {
        "release": {
            "name": release,
            "description": release,
            "descriptionShort": release,
            "creatorName": creator,
            "urls": [],
            **creation,
        },
        "model": {
            "id": model,
            "displayName": model,
            "displayNameShort": model,
            "instruct": False,
            "updatedAt": now,
            **creation,
        },
        "sourceset": {
            "name": names["set"],
            "modelId": model,
            "description": what,
            "creatorName": creator,
            "releaseName": release,
            "urls": [],
            "visibility": "PUBLIC",
            **creation,
        },
        "source": {
            "id": names["source"],
            "modelId": model,
            "setName": names["set"],
            "dataset": str(stored.metadata.get("dataset_path") or ""),
            "num_prompts": grid.n_rows,
            "num_tokens_in_prompt": grid.length,
            "hfRepoId": None,
            "hfFolderId": None,
            "visibility": "PUBLIC",
            "inferenceEnabled": False,
            **creation,
        },
    }


def _explanations(stored: StoredFirings) -> dict[int, str]:
    """latent -> explanation, from interp.json."""
    path = stored.arm.folder / "interp.json"
    latents = checked.table(checked.read_json(path), "latents", str(path)) if path.exists() else {}
    texts = {
        int(name): entry.get("explanation")
        for name, entry in latents.items()
        if name.isdigit() and isinstance(entry, dict)
    }
    return {latent: text for latent, text in texts.items() if isinstance(text, str) and text}


def _activations_of(
    stored: StoredFirings,
    grid: TokenGrid,
    strings: Callable[[np.ndarray], list[str]],
    latent: int,
    top: int,
    common: dict,
) -> Iterator[dict]:
    """Up to `top` rows in which the latent is strongest, strongest first, ties to the earlier row.

    common: the columns that all lines of an export share.
    """
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
            # as in the dashboards, this is the group of the strongest rows and not an interval of strengths
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


def _feature_of(stored: StoredFirings, latent: int, names: dict[str, str], common: dict) -> dict:
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
        **common,
    }


def histogram(values: np.ndarray) -> tuple[list[int], list[float]]:
    """(counts in 50 equal bins from the smallest to the largest value, the middle of each bin); empty for no values."""
    if not len(values):
        return [], []
    heights, edges = np.histogram(np.asarray(values, np.float64), BINS)
    return heights.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()


def _explanation_of(latent: int, text: str, common: dict) -> dict:
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


def _write_lines(path: Path, lines: Iterator[dict]) -> int:
    """Writes objects as lines of JSON, and returns their number. Without a line there is no file. The same lines give
    the same bytes.
    """
    first, count = next(lines, None), 0
    if first is None:
        return count
    path.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(path, "wb", 5, mtime=0) as file:
        for line in chain([first], lines):
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            count += 1
    return count
