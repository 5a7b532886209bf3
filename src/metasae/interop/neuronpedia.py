"""A firing store as Neuronpedia imports it: one folder per SAE, tables as lines of JSON.

    OUT/MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one line each
                     features/batch-N.jsonl.gz       a line per latent: rate, largest activation, histogram, logits
                     activations/batch-N.jsonl.gz    a line per row of text: its tokens and the latent's value on each
                     explanations/batch-N.jsonl.gz   a line per explained latent

SOURCE is `LAYER-SET`, as `4-metasae-joint-s0`. Of each latent the rows with the largest activations are shown, each once. Values are
the store's fp32 numbers in the shortest decimals that read back as the same fp32. Columns that Neuronpedia fills from elsewhere
(neuron alignment, correlated neurons) are empty lists.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from torch import Tensor

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.arms import Arm, new_folder, open_arm
from metasae.interop.neuronpedia_lines import Logits, activations_of, explanation_of, feature_of
from metasae.interop.rows import Rows, context_of, rows_of
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

    model_id, source_set: names on Neuronpedia; None for the model's and `metasae-<arm>-s<seed>`. release, creator: shown with them.
    context: tokens of a row, None for the SAE's own context. top: rows per latent. unembedding: [V, d], the map from the SAE's space to
    logits; with it the tokens that each decoder row raises and lowers most, else none. hub: repository and folder of the weights.
    tokenizer: a Hugging Face one; None for that of the recipe's model.
    Explanations are read from the arm's interp.json where its latents have them.
    Raises UserError where the arm keeps no firings, `out` is not empty, or a name or size is impossible.
    """
    arm = open_arm(arm_folder, recipe, progress)
    names = _names(arm, model_id, source_set)
    rows = rows_of(arm.firings.documents, arm.firings.positions, context_of(arm.metadata, context))
    if top < 1:
        raise UserError(f"top must be at least 1 row per latent, not {top}")
    strings = arm.strings(tokenizer)
    logits = None if unembedding is None else Logits.of_arm(arm, unembedding, tokenizer)
    explained = _explanations(arm)
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    common = {"modelId": names["model"], "layer": names["source"], "creatorId": creator_id, "createdAt": now}
    counts = {"features": 0, "dead": 0, "activations": 0, "explanations": 0}
    with new_folder(Path(out)) as part, progress.task("neuronpedia", arm.view.n_latents, "latents") as task:
        folder = part / names["model"] / names["source"]
        folder.mkdir(parents=True)
        for name, line in _tables(arm, rows, names, release, creator, creator_id, now, hub).items():
            (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n", encoding="ascii")
        for number, first in enumerate(range(0, arm.view.n_latents, BATCH)):
            latents = range(first, min(first + BATCH, arm.view.n_latents))
            with _lines(folder / "features", number) as features, _lines(folder / "activations", number) as activations:
                for latent in latents:
                    shown = list(activations_of(arm, rows, strings, latent, top, common))
                    for line in shown:
                        activations(line)
                    features(feature_of(arm, latent, names, logits, common))
                    counts["features"] += 1
                    counts["dead"] += not shown
                    counts["activations"] += len(shown)
                    task.advance(1)
            with _lines(folder / "explanations", number) as explanations:
                for latent in latents:
                    if latent in explained:
                        explanations(explanation_of(latent, explained[latent], common))
                        counts["explanations"] += 1
    return {"folder": str(Path(out) / names["model"] / names["source"]), **names, **counts}


def _names(arm: Arm, model_id: str | None, source_set: str | None) -> dict[str, str]:
    """model, set, source and hook. Raises UserError for what cannot name a folder and a page."""
    site = re.search(r"(?:blocks|layers|h)\.(\d+)(?:\.|$)", arm.hook or "")
    model = (
        model_id
        or re.sub(r"[^\w.-]+", "-", str(arm.metadata.get("model_name") or "").rpartition("/")[2]).strip("-.").lower()
    )
    wanted = source_set or re.sub(r"[^a-z0-9-]+", "-", f"metasae-{arm.name}-s{arm.own.get('seed', 0)}".lower())
    for what, name, pattern in (("model_id", model, r"\w[\w.-]*"), ("source_set", wanted, r"[a-z0-9][a-z0-9_-]*")):
        if not re.fullmatch(pattern, name):
            raise UserError(
                f"{checked.shown(name)} cannot be a {what} on Neuronpedia; give {what}= in lower-case letters, digits and dashes"
            )
    return {"model": model, "set": wanted, "source": f"{site[1] if site else 0}-{wanted}", "hook": arm.hook or ""}


def _tables(
    arm: Arm,
    rows: Rows,
    names: dict,
    release: str,
    creator: str,
    creator_id: str,
    now: str,
    hub: tuple[str, str] | None,
) -> dict[str, dict]:
    """The four tables of one line."""
    made, model = {"creatorId": creator_id, "createdAt": now}, names["model"]
    what = f"{names['hook']}, {arm.view.n_latents} latents"
    repo, place = hub or (None, None)
    return {
        "release": {
            "name": release,
            "description": release,
            "descriptionShort": release,
            "creatorName": creator,
            "urls": [],
            **made,
        },
        "model": {
            "id": model,
            "displayName": model,
            "displayNameShort": model,
            "instruct": False,
            "updatedAt": now,
            **made,
        },
        "sourceset": {
            "name": names["set"],
            "modelId": model,
            "description": what,
            "creatorName": creator,
            "releaseName": release,
            "urls": [],
            "visibility": "PUBLIC",
            **made,
        },
        "source": {
            "id": names["source"],
            "modelId": model,
            "setName": names["set"],
            "dataset": str(arm.metadata.get("dataset_path") or ""),
            "num_prompts": rows.n_rows,
            "num_tokens_in_prompt": rows.length,
            "hfRepoId": repo,
            "hfFolderId": place,
            "visibility": "PUBLIC",
            "inferenceEnabled": False,
            **made,
        },
    }


def _explanations(arm: Arm) -> dict[int, str]:
    """latent -> explanation, from interp.json."""
    path = arm.folder / "interp.json"
    latents = checked.table(checked.read_json(path), "latents", str(path)) if path.exists() else {}
    found = {
        int(name): entry.get("explanation")
        for name, entry in latents.items()
        if name.isdigit() and isinstance(entry, dict)
    }
    return {latent: text for latent, text in found.items() if isinstance(text, str) and text}


@contextmanager
def _lines(folder: Path, number: int) -> Iterator[Callable[[dict], None]]:
    """Writes objects as lines of folder/batch-N.jsonl.gz. No line, no file. The same lines give the same bytes."""
    file: IO[bytes] | None = None

    def write(value: dict) -> None:
        nonlocal file
        if file is None:
            folder.mkdir(exist_ok=True)
            file = gzip.GzipFile(folder / f"batch-{number}.jsonl.gz", "wb", 5, mtime=0)
        file.write(json.dumps(value, allow_nan=False).encode() + b"\n")

    try:
        yield write
    finally:
        if file is not None:
            file.close()
