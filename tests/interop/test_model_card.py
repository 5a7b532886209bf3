"""The README of a push: every main number with its interval, whichever way it points, and nothing in a name that
Markdown acts on.
"""

import json
import re

import pytest

from metasae.compare.catalogue import CATALOGUE, change, number
from metasae.compare.compare import compare
from metasae.files import toml
from metasae.interop.model_card import card_of_run, card_of_sae
from runs import write_arm

RECIPE = 'arms = ["solo", "joint"]\n'


def cfg_of(**metadata):
    about = {
        "model_name": "maker/small",
        "hook_name": "blocks.1.hook_resid_pre",
        "dataset_path": "stories",
        "context_size": 64,
        "k": 4,
    }
    recipe = {"model": {"name": "maker/small", "path": ""}, "train": {"tokens": 1_000_000}}
    about |= {"trained_architecture": "batchtopk", "metasae": {"recipe": recipe}}
    return {"architecture": "jumprelu", "d_in": 6, "d_sae": 12, "metadata": about | metadata}


def run_of(tmp_path, seeds=(0, 1, 2)):
    """joint: worse FVU, better mean |phi|, worse nearest-partner phi in every seed."""
    for seed in seeds:
        write_arm(
            tmp_path, "solo", seed, fidelity__fvu=0.30 + 0.001 * seed, cooccurrence__nearest_phi=0.20 + 0.001 * seed
        )
        lower = {"cooccurrence__mean_abs_phi": 0.001 + 0.00001 * seed}
        write_arm(
            tmp_path,
            "joint",
            seed,
            fidelity__fvu=0.33 + 0.001 * seed,
            cooccurrence__nearest_phi=0.25 + 0.001 * seed,
            **lower,
        )
    return compare(tmp_path)


def saes_of(tmp_path):
    return {
        path.name: cfg_of() | {"measures": json.loads((path / "measures.json").read_text())}
        for path in sorted((tmp_path / "arms").iterdir())
    }


def card(tmp_path, **options):
    comparison = run_of(tmp_path, options.pop("seeds", (0, 1, 2)))
    values = {"name": "tiny", "recipe": RECIPE, "repo": "owner/name", "revision": "v1", "license": "mit"} | options
    saes = saes_of(tmp_path)
    return card_of_run(
        values["name"], comparison, saes, values["recipe"], values["repo"], values["revision"], values["license"]
    ), comparison


def rows_of(text):
    return [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("|")]


def test_every_main_measure_is_there_with_interval_and_seeds_whichever_way_it_points(tmp_path):
    text, comparison = card(tmp_path)
    pair, rows = comparison["pairs"]["joint vs solo"], {row[0].replace("\\|", "|"): row for row in rows_of(text)}
    main = [q for q in CATALOGUE if q.main and q.key in pair]
    assert len(main) > 5
    for q in main:
        assert rows[q.label][4].replace("\\|", "|") == change(q, pair[q.key]) and rows[q.label][5] == str(
            pair[q.key]["n_seeds"]
        )
    assert (
        rows["FVU"][6] == "clearly worse; interval over seeds alone"
        and rows["mean |phi|"][6] == "interval over seeds alone"
    )
    for line in comparison["verdict"]:
        assert line["text"].replace("`", "").replace("<", "&lt;") in text


def test_the_conditions_stand_beside_the_numbers(tmp_path):
    text, comparison = card(tmp_path)
    assert f"{comparison['conditions']['n_tokens']:,} evaluation tokens" in text
    for arm, entry in comparison["arms"].items():
        assert f"{arm}: seeds 0, 1, 2, realised L0 {entry['means']['fidelity.l0']:.2f}" in text
    assert "trained on 1,000,000 tokens of the text `stories` in windows of 64 tokens" in text
    listed = [row for row in rows_of(text) if row[0].startswith("`arms/")]
    assert [row[0] for row in listed] == [f"`arms/{arm}-s{seed}`" for arm in ("joint", "solo") for seed in (0, 1, 2)]


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    text, _ = card(tmp_path, seeds=(0,))
    assert "1 seed" in text and not re.search(r"\| [-+][\d.]+% \[", text)
    assert "no direction is named" in text


def test_one_arm_alone_is_no_comparison(tmp_path):
    write_arm(tmp_path, "joint", 0)
    text = card_of_run("tiny", compare(tmp_path), saes_of(tmp_path), RECIPE, "owner/name", "main", "mit")
    assert "nothing to compare yet" in text and "This is one sparse autoencoder" in text
    write_arm(tmp_path, "joint", 1, fidelity__fvu=0.5)
    comparison = compare(tmp_path)
    text = card_of_run("tiny", comparison, saes_of(tmp_path), RECIPE, "owner/name", "main", "mit")
    interval = comparison["arms"]["joint"]["intervals"]["fidelity.fvu"]
    shown = {row[0]: row[2:] for row in rows_of(text)}
    ends = ", ".join(map(number, interval["ci95"]))
    assert shown["FVU"] == [f"{number(interval['mean'])} [{ends}]", "2"]


def test_both_ways_of_loading_name_repository_folder_and_revision(tmp_path):
    text, _ = card(tmp_path)
    assert 'metasae.load("hf:owner/name/arms/joint-s0/primary@v1")' in text
    place = "arms/joint-s0/primary"
    assert f'snapshot_download("owner/name", revision="v1", allow_patterns="{place}/*") + "/{place}"' in text
    for code in re.findall(r"```python\n(.*?)\n```", text, re.S):
        compile(code, "card", "exec")
    alone = card_of_sae("sae", cfg_of(), None, "owner/name", "main", "mit")
    assert 'metasae.load("hf:owner/name@main")' in alone and "It comes without measures" in alone


def test_the_recipe_comes_back_out_of_its_fence(tmp_path):
    recipe = 'note = """\n````\n```toml\n"""\narms = ["solo"]\n'
    text, _ = card(tmp_path, recipe=recipe)
    fence = re.search(r"^(`{3,})toml\n", text, re.M)
    body = text[fence.end() : text.index(f"\n{fence[1]}\n", fence.end())]
    assert len(fence[1]) == 5 and toml.loads(body) == toml.loads(recipe)


HOSTILE = "x](http://evil) <img src=x onerror=alert(1)> `code` | # head\n---\nlicense: gpl\n![y](z)"


def test_names_are_shown_and_not_interpreted(tmp_path):
    cfg = cfg_of(
        model_name=HOSTILE,
        dataset_path=HOSTILE,
        hook_name=HOSTILE,
        context_size=HOSTILE,
        k=HOSTILE,
        trained_architecture=HOSTILE,
    )
    cfg["metadata"]["metasae"]["recipe"]["model"]["name"] = HOSTILE
    saes = {"joint-s0": cfg | {"measures": {}}}
    hostile = run_of(tmp_path) | {"verdict": [{"kind": "truth", "text": HOSTILE}]}
    run = card_of_run(HOSTILE, hostile, saes, "", "owner/name", "main", "mit")
    for text in (run, card_of_sae(HOSTILE, cfg, None, "owner/name", "main", "mit")):
        outside = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.S | re.M)
        assert (
            "<img" not in outside
            and "](" not in outside
            and outside.count("\n---\n") == 1
            and "\nlicense: gpl" not in outside
        )
        assert "base_model" not in text


@pytest.mark.parametrize(
    ("model", "named"),
    [({"name": "maker/small"}, True), ({"name": "small", "path": "package:x"}, False), ({"name": 3}, False)],
)
def test_the_front_matter(model, named):
    yaml = pytest.importorskip("yaml")
    text = card_of_sae("sae", cfg_of(metasae={"recipe": {"model": model}}), None, "owner/name", "main", "apache-2.0")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0" and "saelens" in head["tags"]
    assert head.get("base_model") == ("maker/small" if named else None)


def test_one_sae_shows_what_was_measured_of_it(tmp_path):
    folder = write_arm(tmp_path, "joint", 0)
    measures = json.loads((folder / "measures.json").read_text())
    text = card_of_sae("joint-s0 primary", cfg_of(), measures, "owner/name", "main", "mit")
    assert "One SAE, so no intervals over seeds" in text and f"n_tokens {measures['conditions']['n_tokens']}" in text
    shown = {row[0].replace("\\|", "|"): row[2] for row in rows_of(text)}
    assert shown["FVU"] == number(measures["fidelity"]["fvu"]) == "0.2000" and "mean |phi|" in shown
