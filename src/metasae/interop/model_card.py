"""The README of a pushed run or SAE: what it is, what was found under which conditions, how to load it, its recipe.

Every main measure of the comparison is in one table in the catalogue's order, whether it favours the arm or not; the
sentence above the table counts both. Text that comes out of files is put into code spans and fences, so that it is
shown and not interpreted.
"""

import json
import re
from typing import Any

from jinja2 import Environment, StrictUndefined

from metasae.compare.catalogue import CATALOGUE, change, number, reading, value_of
from metasae.compare.older import completed
from metasae.compare.tables import conditions_line

TAGS = ("sparse-autoencoder", "saelens", "metasae", "interpretability")
# The measures that SAEs are listed with.
_PER_SAE = ("fidelity.fvu", "fidelity.l0", "fidelity.dead", "cooccurrence.mean_abs_phi", "cooccurrence.nearest_phi")
_MAIN = [quantity for quantity in CATALOGUE if quantity.main]
# JSON texts are YAML texts, so nothing in a name can end the front matter. A backslash joins a line to the next.
_CARD = """\
---
license: {{ license | json }}
library_name: saelens
tags:
{% for tag in tags %}
- {{ tag }}
{% endfor %}
{% if base_model %}
base_model: {{ base_model | json }}
{% endif %}
---

# {{ name | plain }}

{{ what }} ({{ (about.get("trained_architecture") or cfg.get("architecture")) | plain }}, \
{{ cfg.get("d_sae") | plain }} latents on vectors of width {{ cfg.get("d_in") | plain }}, \
k = {{ about.get("k") | plain }}) of the activations at \
`{{ about.get("hook_name") | plain }}` of `{{ about.get("model_name") | plain }}`, \
{% if tokens is integer %}trained on {{ "{:,}".format(tokens) }} tokens of{% else %}made from{% endif %} \
the text `{{ about.get("dataset_path") | plain }}` in windows of {{ about.get("context_size") | plain }} tokens, \
with metasae.

{% if comparison %}
## What was found

{% for line in comparison["verdict"] %}
{{ line["text"] | plain }}

{% endfor %}

{{ conditions | plain }}

{% for pair in pairs %}
### {{ pair["name"] | plain }}

| measure | better | {{ pair["baseline"] | plain }} | {{ pair["arm"] | plain }} | change, 95% interval | seeds | |
|---|---|---:|---:|---:|---:|---|
{% for q, entry, word in pair["rows"] %}
| {{ q.label | cell }} | {{ q.better or "" }} | {{ entry["b"] | number }} | {{ entry["a"] | number }} \
| {{ change(q, entry) | cell }} | {{ entry["n_seeds"] }} | {{ word | cell }} |
{% endfor %}

{% else %}
{% for arm, entry in comparison["arms"].items() %}
### {{ arm | plain }}

| measure | better | mean, 95% interval | seeds |
|---|---|---:|---:|
{% for q in main if q.key in entry["intervals"] %}
{% set over_seeds = entry["intervals"][q.key] %}
| {{ q.label | cell }} | {{ q.better or "" }} | {{ over_seeds["mean"] | number }}\
{% if over_seeds["ci95"] %} [{{ over_seeds["ci95"] | map("number") | join(", ") }}]{% endif %} \
| {{ over_seeds["n_seeds"] }} |
{% endfor %}

{% endfor %}
{% endfor %}
## The SAEs

| folder | {{ per_sae | map(attribute="label") | map("cell") | join(" | ") }} |
|---|{{ "---:|" * (per_sae | length) }}
{% for folder, sae in saes.items() %}
| `arms/{{ folder | cell }}` {% for q in per_sae %}| {{ value_of(sae.get("measures") or {}, q) | number }} {% endfor %}|
{% endfor %}

{% elif measures is none %}
It comes without measures: `metasae measure` makes them.

{% else %}
## What was measured

One SAE, so no intervals over seeds. {{ told }}.

| measure | better | value |
|---|---|---:|
{% for q in main if value_of(measures, q) is not none %}
| {{ q.label | cell }} | {{ q.better or "" }} | {{ value_of(measures, q) | number }} |
{% endfor %}

{% endif %}
## How to load it

```python
from huggingface_hub import snapshot_download
from sae_lens import SAE

sae = SAE.load_from_disk(snapshot_download("{{ repo }}", revision="{{ revision }}"\
{% if place %}, allow_patterns="{{ place }}/*"{% endif %}) + "{{ inside }}")
```

```python
import metasae

sae = metasae.load("hf:{{ repo }}{{ inside }}@{{ revision }}")
```

{% if place %}
The meta SAE of an arm, where it has one, lies in `meta/` beside `primary/` and loads the same way. \
{% endif %}
Name a commit in place of `{{ revision }}` to get the same numbers again.

{% if recipe %}
## Recipe

{{ recipe }}

{% endif %}
## What these numbers cannot say

They hold for this model, hook point, text, width and sparsity. \
The unit is a trained SAE: intervals are over paired seeds, \
and where the measure looks at text over blocks of documents. \
No single measure here is atomicity.
"""


def card_of_run(
    name: str, comparison: dict, saes: dict[str, dict], recipe: str, repo: str, revision: str, license: str
) -> str:
    """The card of a run. comparison: compare.json. saes: arm folder -> its cfg.json, with "measures" beside it. recipe:
    the text of recipe.toml.
    """
    comparison = completed(comparison)
    many = "This is one sparse autoencoder" if len(saes) == 1 else f"These are {len(saes)} sparse autoencoders"
    shown = next((label for label in saes if label.startswith("joint")), next(iter(saes)))
    return _rendered(
        next(iter(saes.values())),
        f"arms/{shown}/primary",
        name=name,
        what=many,
        comparison=comparison,
        conditions=conditions_line(comparison),
        pairs=[_pair(pair, entries, comparison["trained"]["enough"]) for pair, entries in comparison["pairs"].items()],
        saes=saes,
        per_sae=[quantity for quantity in CATALOGUE if quantity.key in _PER_SAE],
        recipe=_fenced(recipe, "toml"),
        repo=repo,
        revision=revision,
        license=license,
    )


def card_of_sae(name: str, cfg: dict, measures: dict | None, repo: str, revision: str, license: str) -> str:
    """The card of one SAE folder. measures: the measures.json of its arm, where it has one."""
    conditions = {} if measures is None else measures["conditions"]
    keys = [key for key in ("n_tokens", "rule", "l0_realised", "seed") if key in conditions]
    recipe = _recipe(cfg)
    return _rendered(
        cfg,
        "",
        name=name,
        what="This is a sparse autoencoder",
        comparison=None,
        measures=measures,
        told=", ".join(f"{key} {_plain(conditions[key])}" for key in keys),
        recipe=_fenced(json.dumps(recipe, indent=1), "json") if recipe else "",
        repo=repo,
        revision=revision,
        license=license,
    )


def _rendered(cfg: dict, place: str, **values) -> str:
    """The card as Markdown. cfg: of the SAE that is described. place: of one SAE in the repository, empty where the SAE
    is at its top.
    """
    card = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    card.filters |= {"plain": _plain, "cell": _cell, "number": number, "json": json.dumps}
    return card.from_string(_CARD).render(
        cfg=cfg,
        about=_within(cfg, "metadata"),
        tokens=_within(_recipe(cfg), "train").get("tokens"),
        base_model=_base_model(cfg),
        place=place,
        inside=f"/{place}" if place else "",
        tags=TAGS,
        main=_MAIN,
        change=change,
        value_of=value_of,
        **values,
    )


def _pair(name: str, pair: dict, enough: bool | None) -> dict[str, Any]:
    """The main measures of one arm against the baseline."""
    arm, baseline = name.split(" vs ")
    rows = [(q, pair[q.key], reading(q, pair[q.key], enough)) for q in _MAIN if q.key in pair]
    return {"name": name, "arm": arm, "baseline": baseline, "rows": rows}


def _base_model(cfg: dict) -> str:
    """The model's name on the hub; empty for one that was loaded from a folder."""
    model = _within(_recipe(cfg), "model")
    name = model.get("name")
    on_hub = isinstance(name, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not model.get("path")
    return name if on_hub else ""


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(value: Any) -> str:
    """One line in which Markdown finds no link, image, code or HTML."""
    return " ".join(str(value).replace("`", "").replace("<", "&lt;").replace("](", "] (").split())


def _fenced(text: str, language: str) -> str:
    """A fence longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _recipe(cfg: dict) -> dict:
    """The recipe that the SAE was trained by, where its metadata holds one."""
    return _within(_within(_within(cfg, "metadata"), "metasae"), "recipe")


def _within(value: dict, key: str) -> dict:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}
