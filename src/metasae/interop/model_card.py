"""The README of a pushed run or SAE: what it is, what was found with intervals and conditions, how to load it, and its recipe.

Every main measure of the comparison is in one table in the catalogue's order, whichever way it points; the sentence above it counts both
ways. Text that comes out of files is put into code spans and fences, so that it is shown and not interpreted.
"""

import json
import re
from typing import Any

from metasae.compare.catalogue import CATALOGUE, Quantity, value_of
from metasae.compare.tables import conditions_line
from metasae.compare.words import change, number, reading

TAGS = ("sparse-autoencoder", "saelens", "metasae", "interpretability")
# SAEs that are listed with their numbers, and with how they are loaded.
_PER_SAE = ("fidelity.fvu", "fidelity.l0", "fidelity.dead", "cooccurrence.mean_abs_phi", "cooccurrence.nearest_phi")


def card_of_run(
    name: str, comparison: dict, saes: dict[str, dict], recipe: str, repo: str, revision: str, license: str
) -> str:
    """comparison: compare.json. saes: arm folder -> its cfg.json, with "measures" beside it. recipe: the text of recipe.toml."""
    first = next(iter(saes.values()))
    many = "This is one sparse autoencoder" if len(saes) == 1 else f"These are {len(saes)} sparse autoencoders"
    lines = [*_head(license, first), f"# {_plain(name)}", "", _what(first, many), ""]
    lines += ["## What was found", "", _plain(comparison["verdict"]), "", _plain(conditions_line(comparison)), ""]
    for pair in comparison["pairs"]:
        lines += _pair(pair, comparison)
    if not comparison["pairs"]:
        lines += _means(comparison)
    lines += ["## The SAEs", "", *_table_of(saes), ""]
    place = f"arms/{next((each for each in saes if each.startswith('joint')), next(iter(saes)))}/primary"
    lines += [*_loading(repo, place, revision), "## Recipe", "", *_fenced(recipe, "toml"), "", *_limits(), ""]
    return "\n".join(lines)


def card_of_sae(name: str, cfg: dict, measures: dict | None, repo: str, revision: str, license: str) -> str:
    """Of one SAE folder. measures: the measures.json of its arm, where it has one."""
    lines = [*_head(license, cfg), f"# {_plain(name)}", "", _what(cfg, "This is a sparse autoencoder"), ""]
    if measures is None:
        lines += ["It comes without measures: `metasae measure` makes them.", ""]
    else:
        conditions = measures["conditions"]
        told = ", ".join(
            f"{key} {_plain(str(conditions[key]))}"
            for key in ("n_tokens", "rule", "l0_realised", "seed")
            if key in conditions
        )
        lines += [
            "## What was measured",
            "",
            f"One SAE, so no intervals over seeds. {told}.",
            "",
            *_measured(measures),
            "",
        ]
    lines += _loading(repo, "", revision)
    recipe = _notes(cfg).get("recipe")
    if isinstance(recipe, dict):
        lines += ["## Recipe", "", *_fenced(json.dumps(recipe, indent=1), "json"), ""]
    return "\n".join([*lines, *_limits(), ""])


def _head(license: str, cfg: dict) -> list[str]:
    """The front matter. JSON texts are YAML texts, so nothing in a name can end one."""
    made = ["---", f"license: {json.dumps(license)}", "library_name: saelens", "tags:", *[f"- {tag}" for tag in TAGS]]
    model = _table(_table(_notes(cfg), "recipe"), "model")
    # a name that was loaded from a folder is none on the hub
    if (
        isinstance(model.get("name"), str)
        and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model["name"])
        and not model.get("path")
    ):
        made.append(f"base_model: {json.dumps(model['name'])}")
    return [*made, "---", ""]


def _what(cfg: dict, what: str) -> str:
    """One sentence from a cfg.json."""
    about = _table(cfg, "metadata")
    told = {
        key: _plain(str(about.get(key))) for key in ("model_name", "hook_name", "dataset_path", "context_size", "k")
    }
    kind = _plain(str(about.get("trained_architecture") or cfg.get("architecture")))
    size = f"{_plain(str(cfg.get('d_sae')))} latents on vectors of width {_plain(str(cfg.get('d_in')))}"
    where = f"`{told['hook_name']}` of `{told['model_name']}`"
    text = f"the text `{told['dataset_path']}` in windows of {told['context_size']} tokens"
    tokens = _table(_table(_notes(cfg), "recipe"), "train").get("tokens")
    trained = f"trained on {tokens:,} tokens of" if isinstance(tokens, int) else "made from"
    return f"{what} ({kind}, {size}, k = {told['k']}) of the activations at {where}, {trained} {text}, with metasae."


def _pair(name: str, comparison: dict) -> list[str]:
    """The main measures of one arm against the baseline, and how many of them point which way."""
    a, b = name.split(" vs ")
    pair = comparison["pairs"][name]
    rows = [(q, pair[q.key], reading(q, pair[q.key])) for q in CATALOGUE if q.main and q.key in pair]
    words = [row[2] for row in rows if row[0].speaks_of == "atomicity"]
    more, less = words.count("more atomic"), words.count("less atomic")
    told = f"Of {len(words)} main measures of atomicity {more} clearly say more atomic, {less} less atomic, {len(words) - more - less} neither."
    lines = [
        f"### {_plain(name)}",
        "",
        told,
        "",
        f"| measure | better | {_plain(b)} | {_plain(a)} | change, 95% interval | seeds | |",
    ]
    lines.append("|---|---|---:|---:|---:|---:|---|")
    for q, entry, word in rows:
        cells = (
            q.label,
            q.better or "",
            number(entry["b"]),
            number(entry["a"]),
            change(q, entry),
            str(entry["n_seeds"]),
            word,
        )
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return [*lines, ""]


def _means(comparison: dict) -> list[str]:
    """The main measures of arms that there is nothing to compare with: means over seeds."""
    lines = []
    for arm, entry in comparison["arms"].items():
        lines += [f"### {_plain(arm)}", "", "| measure | better | mean, 95% interval | seeds |", "|---|---|---:|---:|"]
        for q in CATALOGUE:
            if q.main and q.key in entry["intervals"]:
                found = entry["intervals"][q.key]
                interval = "" if found["ci95"] is None else f" [{number(found['ci95'][0])}, {number(found['ci95'][1])}]"
                lines.append(
                    f"| {_label(q)} | {q.better or ''} | {number(found['mean'])}{interval} | {found['n_seeds']} |"
                )
        lines.append("")
    return lines


def _table_of(saes: dict[str, dict]) -> list[str]:
    known = [q for q in CATALOGUE if q.key in _PER_SAE]
    lines = [f"| folder | {' | '.join(_label(q) for q in known)} |", f"|---|{'---:|' * len(known)}"]
    for name, cfg in saes.items():
        values = [number(value_of(cfg.get("measures") or {}, q)) for q in known]
        lines.append(f"| `arms/{_cell(name)}` | {' | '.join(values)} |")
    return lines


def _measured(measures: dict) -> list[str]:
    found = [(q, value_of(measures, q)) for q in CATALOGUE if q.main]
    rows = [f"| {_label(q)} | {q.better or ''} | {number(value)} |" for q, value in found if value is not None]
    return ["| measure | better | value |", "|---|---|---:|", *rows]


def _loading(repo: str, place: str, revision: str) -> list[str]:
    """`place`: of one SAE in the repository, empty where it is the repository."""
    inside = f"/{place}" if place else ""
    only = f', allow_patterns="{place}/*"' if place else ""
    saelens = f"""\
from huggingface_hub import snapshot_download
from sae_lens import SAE

sae = SAE.load_from_disk(snapshot_download("{repo}", revision="{revision}"{only}) + "{inside}")"""
    ours = f"""\
import metasae

sae = metasae.load("hf:{repo}{inside}@{revision}")"""
    meta = (
        "The meta SAE of an arm, where it has one, lies in `meta/` beside `primary/` and loads the same way. "
        if place
        else ""
    )
    note = f"{meta}Name a commit in place of `{revision}` to get the same numbers again."
    return ["## How to load it", "", *_fenced(saelens, "python"), "", *_fenced(ours, "python"), "", note, ""]


def _limits() -> list[str]:
    return [
        "## What these numbers cannot say",
        "",
        "They hold for this model, hook point, text, width and sparsity. The unit is a trained SAE: intervals are over paired seeds, and "
        "where the measure looks at text over blocks of documents. No single measure here is atomicity.",
    ]


def _label(quantity: Quantity) -> str:
    return _cell(quantity.label)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line in which Markdown finds no link, image, code or HTML."""
    return " ".join(text.replace("`", "").replace("<", "&lt;").replace("](", "] (").split())


def _fenced(text: str, language: str) -> list[str]:
    """A fence longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}{language}", text.rstrip(), fence]


def _notes(cfg: dict) -> dict:
    return _table(_table(cfg, "metadata"), "metasae")


def _table(value: dict, key: str) -> dict:
    found: Any = value.get(key)
    return found if isinstance(found, dict) else {}
