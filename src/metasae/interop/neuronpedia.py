"""A firing store as Neuronpedia imports it: one folder per SAE, tables as lines of JSON.

    OUT/MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one line each
                     features/batch-N.jsonl.gz       a line per latent: rate, largest activation, histogram, logits
                     activations/batch-N.jsonl.gz    a line per row of text: its tokens and the latent's value on each
                     explanations/batch-N.jsonl.gz   a line per explained latent

SOURCE is `LAYER-SET`, as `4-metasae-joint-s0`. Of each latent the rows with the largest activations are shown, each
once. Values are the store's fp32 numbers in the shortest decimals that read back as the same fp32. Columns that
Neuronpedia fills from elsewhere (neuron alignment, correlated neurons) are empty lists.
"""

import gzip
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

from torch import Tensor

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.neuronpedia_lines import activations_of, explanation_of, feature_of, logits_of
from metasae.interop.outputs import new_folder
from metasae.interop.stored_firings import StoredFirings, stored_firings
from metasae.interop.token_grid import TokenGrid, grid_of, row_length
from metasae.progress.progress import SILENT, Progress

# Latents per file, as Neuronpedia's own exports have them.
BATCH = 1024
# The owner that Neuronpedia's tools write where nobody is named.
NOBODY = "clkht01d40000jv08hvalcvly"


def export_neuronpedia(
    arm_folder: str | Path,
    out: str | Path,
    recipe=None,
    *,
    model_id: str | None = None,
    source_set: str | None = None,
    release: str = "metasae",
    creator: str = "",
    creator_id: str = NOBODY,
    context: int | None = None,
    top: int = 20,
    unembedding: Tensor | None = None,
    hub: tuple[str, str] | None = None,
    tokenizer=None,
    progress: Progress = SILENT,
) -> dict:
    """Writes an arm's latents for Neuronpedia's import; gives the path of the source's folder and what was counted.

    model_id, source_set: names on Neuronpedia; None for the model's and `metasae-<arm>-s<seed>`. release, creator:
    shown with them. context: tokens of a row, None for the SAE's own context. top: rows per latent. unembedding: [V,
    d], the map from the SAE's space to logits; with it the tokens that each decoder row raises and lowers most, else
    none. hub: repository and folder of the weights. tokenizer: a Hugging Face one; None for that of the recipe's model.
    Explanations are read from the arm's interp.json where its latents have them. Raises UserError where the arm keeps
    no firings, `out` is not empty, or a name or size is impossible.
    """
    stored = stored_firings(arm_folder, recipe, progress)
    view, names = stored.by_latent, _names(stored, model_id, source_set)
    length = row_length(stored.metadata, context)
    grid = grid_of(stored.firings.documents, stored.firings.positions, length)
    if top < 1:
        raise UserError(f"top must be at least 1 row per latent, not {top}")
    strings = stored.strings(tokenizer)
    logits = None if unembedding is None else logits_of(stored, unembedding, tokenizer)
    explained = _explanations(stored)
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    common = {"modelId": names["model"], "layer": names["source"], "creatorId": creator_id, "createdAt": now}
    counts = {"features": 0, "dead": int((view.counts() == 0).sum()), "activations": 0, "explanations": 0}
    with new_folder(Path(out)) as part, progress.task("neuronpedia", view.n_latents, "latents") as task:
        folder = part / names["model"] / names["source"]
        folder.mkdir(parents=True)
        for name, line in _tables(stored, grid, names, release, creator, creator_id, now, hub).items():
            (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n", encoding="ascii")
        for number, first in enumerate(range(0, view.n_latents, BATCH)):
            latents = range(first, min(first + BATCH, view.n_latents))
            rows = (activations_of(stored, grid, strings, latent, top, common) for latent in latents)
            texts = ((latent, explained[latent]) for latent in latents if latent in explained)
            tables = {
                "features": (feature_of(stored, latent, names, logits, common) for latent in latents),
                "activations": chain.from_iterable(rows),
                "explanations": (explanation_of(latent, text, common) for latent, text in texts),
            }
            for table, lines in tables.items():
                counts[table] += _write_lines(folder / table / f"batch-{number}.jsonl.gz", lines)
            task.advance(len(latents))
    return {"folder": str(Path(out) / names["model"] / names["source"]), **names, **counts}


def _names(stored: StoredFirings, model_id: str | None, source_set: str | None) -> dict[str, str]:
    """model, set, source and hook. Raises UserError for what cannot name a folder and a page."""
    site = re.search(r"(?:blocks|layers|h)\.(\d+)(?:\.|$)", stored.hook)
    known = str(stored.metadata.get("model_name") or "").rpartition("/")[2]
    model = model_id or re.sub(r"[^\w.-]+", "-", known).strip("-.").lower()
    own = f"metasae-{stored.arm.name}-s{stored.notes.get('seed', 0)}".lower()
    wanted = source_set or re.sub(r"[^a-z0-9-]+", "-", own)
    for what, name, pattern in (("model_id", model, r"\w[\w.-]*"), ("source_set", wanted, r"[a-z0-9][a-z0-9_-]*")):
        if not re.fullmatch(pattern, name):
            raise UserError(
                f"{checked.shown(name)} cannot be a {what} on Neuronpedia; "
                f"give {what}= in lower-case letters, digits and dashes"
            )
    return {"model": model, "set": wanted, "source": f"{site[1] if site else 0}-{wanted}", "hook": stored.hook}


def _tables(
    stored: StoredFirings,
    grid: TokenGrid,
    names: dict,
    release: str,
    creator: str,
    creator_id: str,
    now: str,
    hub: tuple[str, str] | None,
) -> dict[str, dict]:
    """The four tables of one line."""
    creation, model = {"creatorId": creator_id, "createdAt": now}, names["model"]
    what = f"{names['hook']}, {stored.by_latent.n_latents} latents"
    repo, place = hub or (None, None)
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
            "hfRepoId": repo,
            "hfFolderId": place,
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


def _write_lines(path: Path, lines: Iterator[dict]) -> int:
    """Writes objects as lines of JSON, and gives how many. No line, no file. The same lines give the same bytes."""
    first, count = next(lines, None), 0
    if first is None:
        return count
    path.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(path, "wb", 5, mtime=0) as file:
        for line in chain([first], lines):
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            count += 1
    return count
