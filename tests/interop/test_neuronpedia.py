"""Neuronpedia's tables, read back with gzip and json alone and compared with the firing store."""

import gzip
import json

import numpy as np
import pytest
from arm_folders import ADVERSARIAL, HOSTILE, Tokenizer, entries_of, firings_of, random_firings, write_arm

from metasae.errors import UserError
from metasae.interop import neuronpedia
from metasae.interop.neuronpedia import export_neuronpedia, histogram
from sources import tokenizer_for

# the columns that Neuronpedia's import knows, by table
FEATURE = """
modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel hookName topkCosSimIndices
topkCosSimValues neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices
correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices correlated_features_pearson
correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights
freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName
"""
ACTIVATION = """
id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource dataIndex dfaValues
dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains qualifyingTokenIndex
"""
EXPLANATION = """
id modelId layer index description authorId typeName explanationModelName createdAt
"""


def lines(folder, table):
    rows = []
    for number in range(len(list((folder / table).glob("*"))) if (folder / table).is_dir() else 0):
        with gzip.open(folder / table / f"batch-{number}.jsonl.gz", "rt", encoding="ascii") as file:
            rows += [json.loads(line) for line in file.read().split("\n") if line]
    return rows


def export(tmp_path, firings, tokenizer=None, **options):
    write_arm(tmp_path / "arm", firings)
    facts = export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=tokenizer or Tokenizer(), **options)
    folder = tmp_path / "out" / facts["model"] / facts["source"]
    assert str(folder) == facts["folder"]
    return folder, facts


def rows_by_hand(firings, length):
    """Lists of tokens of the split, one per row."""
    rows, before = [], None
    for token in range(firings.n_tokens):
        here = (firings.documents[token], firings.positions[token])
        if before is None or here[0] != before[0] or here[1] != before[1] + 1 or len(rows[-1]) == length:
            rows.append([])
        rows[-1].append(token)
        before = here
    return rows


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_strongest_rows_of_every_latent(tmp_path, name):
    firings = ADVERSARIAL[name]
    folder, facts = export(tmp_path, firings, context=16, top=4)
    entries, rows, tokenizer = entries_of(firings), rows_by_hand(firings, 16), Tokenizer()
    shown = lines(folder, "activations")
    for latent in range(firings.n_latents):
        values = [[entries.get((token, latent), np.float32(0)) for token in row] for row in rows]
        ranked = sorted((-max(row), place) for place, row in enumerate(values) if any(row))[:4]
        mine = [line for line in shown if line["index"] == str(latent)]
        assert len(mine) == len(ranked)
        for line, (strongest, place) in zip(mine, ranked, strict=True):
            # the same fp32 numbers, not nearly so
            assert [np.float32(value) for value in line["values"]] == values[place]
            assert line["tokens"] == [tokenizer.decode([int(firings.tokens[token])]) for token in rows[place]]
            assert np.float32(line["maxValue"]) == -strongest == np.float32(line["values"][line["maxValueTokenIndex"]])
            assert line["minValue"] == min(line["values"]) and line["dataIndex"] == str(
                firings.documents[rows[place][0]]
            )
    assert facts["activations"] == len(shown) and len({line["id"] for line in shown}) == len(shown)
    assert all(set(line) == set(ACTIVATION.split()) and len(line["id"]) == 25 for line in shown)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_line_for_every_latent(tmp_path, name):
    firings = ADVERSARIAL[name]
    folder, facts = export(tmp_path, firings)
    features, entries = lines(folder, "features"), entries_of(firings)
    assert [line["index"] for line in features] == [str(latent) for latent in range(firings.n_latents)]
    for latent, line in enumerate(features):
        values = [value for (_, i), value in entries.items() if i == latent]
        assert set(line) == set(FEATURE.split())
        assert np.float32(line["maxActApprox"]) == max(values, default=0)
        assert line["frac_nonzero"] == len(values) / max(firings.n_tokens, 1)
        assert sum(line["freq_hist_data_bar_heights"]) == len(values)
        assert (
            line["pos_str"] == line["logits_hist_data_bar_values"] == []
            and line["hookName"] == "blocks.4.hook_resid_pre"
        )
    assert (facts["features"], facts["dead"]) == (
        firings.n_latents,
        sum(not any(i == n for _, i in entries) for n in range(firings.n_latents)),
    )


def test_the_histogram_by_hand():
    heights, centres = histogram(np.array([0.0, 0.5, 100.0, 100.0, 49.0]))
    assert (heights[0], heights[24], heights[49], sum(heights), len(heights)) == (2, 1, 2, 5, 50)
    assert (centres[0], centres[49]) == (1.0, 99.0)
    assert histogram(np.zeros(0)) == ([], [])
    # one strength alone
    assert sum(histogram(np.full(7, 2.5, np.float32))[0]) == 7


def test_batches_hold_so_many_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "BATCH", 4)
    folder, _ = export(tmp_path, random_firings(n=10))
    assert sorted(path.name for path in (folder / "features").iterdir()) == [f"batch-{n}.jsonl.gz" for n in range(3)]
    assert [line["index"] for line in lines(folder, "features")] == [str(latent) for latent in range(10)]
    assert not (folder / "explanations").exists()


def test_the_tables_of_one_line(tmp_path):
    folder, facts = export(tmp_path, random_firings(), creator="Us", release="ours")
    tables = {
        name: json.loads((folder / f"{name}.jsonl").read_text()) for name in ("release", "model", "sourceset", "source")
    }
    assert (facts["model"], facts["source"], facts["set"]) == ("small-model", "4-metasae-joint-s0", "metasae-joint-s0")
    assert tables["model"]["id"] == tables["source"]["modelId"] == tables["sourceset"]["modelId"] == "small-model"
    assert (
        tables["source"]["id"] == facts["source"]
        and tables["source"]["setName"] == tables["sourceset"]["name"] == facts["set"]
    )
    assert (
        tables["sourceset"]["releaseName"] == tables["release"]["name"] == "ours"
        and tables["release"]["creatorName"] == "Us"
    )
    assert tables["source"]["num_tokens_in_prompt"] == 32
    for line in lines(folder, "features") + lines(folder, "activations"):
        assert (line["modelId"], line["layer"]) == ("small-model", facts["source"])


def test_hostile_tokens_come_back_as_they_are(tmp_path):
    firings = random_firings()
    folder, _ = export(tmp_path, firings, Tokenizer(HOSTILE), context=128, top=50)
    raw = gzip.decompress((folder / "activations" / "batch-0.jsonl.gz").read_bytes())
    assert raw.isascii() and raw.count(b"\n") == len(lines(folder, "activations"))
    tokens = {token for line in lines(folder, "activations") for token in line["tokens"]}
    assert tokens == set(HOSTILE)


def test_explanations_come_from_interp_json(tmp_path):
    write_arm(tmp_path / "arm", random_firings())
    latents = {
        "1": {"explanation": "after a comma", "own": True},
        "3": {"own": True},
        "5": {"explanation": None},
        "12": {"explanation": "\n"},
        "x": 3,
    }
    (tmp_path / "arm" / "interp.json").write_text(json.dumps({"latents": latents}))
    facts = export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Tokenizer())
    explanations = lines(tmp_path / "out" / facts["model"] / facts["source"], "explanations")
    assert {line["index"]: line["description"] for line in explanations} == {
        "1": "after a comma",
        "12": "\n",
    } and facts["explanations"] == 2
    assert all(set(line) == set(EXPLANATION.split()) for line in explanations)
    (tmp_path / "arm" / "interp.json").write_text("[" * 10)
    with pytest.raises(UserError, match=r"interp.json is not valid JSON"):
        export_neuronpedia(tmp_path / "arm", tmp_path / "other", tokenizer=Tokenizer())


def test_two_exports_differ_in_their_time_alone(tmp_path):
    a, _ = export(tmp_path, random_firings())
    b = tmp_path / "again" / a.relative_to(tmp_path / "out")
    export_neuronpedia(tmp_path / "arm", tmp_path / "again", tokenizer=Tokenizer())
    for table in ("features", "activations"):
        assert [line | {"createdAt": 0} for line in lines(a, table)] == [
            line | {"createdAt": 0} for line in lines(b, table)
        ]


@pytest.mark.parametrize(("name", "model"), [("../up", "up"), ("a\\b", "a-b"), ("x/-Y.", "y"), (5, "5")])
def test_a_hostile_name_is_made_one_that_stays_in_the_folder(tmp_path, name, model):
    write_arm(tmp_path / "arm", random_firings(), arm="../x", model_name=name)
    facts = export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Tokenizer())
    assert (facts["model"], facts["set"]) == (model, "metasae--x-s0")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [model]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm", "out"]


@pytest.mark.parametrize("name", ["maker/..", "/", "", None])
def test_an_sae_without_a_models_name_is_refused(tmp_path, name):
    write_arm(tmp_path / "arm", random_firings(), model_name=name)
    with pytest.raises(UserError, match="does not say its model"):
        export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Tokenizer())
    assert not (tmp_path / "out").exists()


def test_an_impossible_size_writes_nothing(tmp_path):
    write_arm(tmp_path / "arm", random_firings())
    with pytest.raises(UserError, match="rows need a length") as caught:
        export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Tokenizer(), context=-1)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path):
    class Broken(Tokenizer):
        def decode(self, ids):
            if len(ids) == 2 and ids[1] == 49:
                raise OSError(28, "No space left on device")
            return super().decode(ids)

    write_arm(tmp_path / "arm", random_firings())
    with pytest.raises(UserError, match="No space left on device"):
        export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        export_neuronpedia(tmp_path / "arm", tmp_path / "out", tokenizer=Tokenizer())


def test_the_tokenizer_of_the_recipe_is_loaded_without_its_model(tmp_path, build):
    folder = build("gpt2")
    firings = firings_of(np.ones((6, 1)), np.ones((6, 1)), (6,), tokens=np.array([300, 301, 302, 20, 21, 22]))
    write_arm(tmp_path / "arm", firings, metasae={"recipe": {"model": {"path": str(folder)}}})
    facts = export_neuronpedia(tmp_path / "arm", tmp_path / "out")
    from transformers import AutoTokenizer

    (line,) = lines(tmp_path / "out" / facts["model"] / facts["source"], "activations")
    assert "".join(line["tokens"]) == AutoTokenizer.from_pretrained(folder).decode(firings.tokens.tolist())
    write_arm(tmp_path / "lost", firings, metasae={"recipe": {"model": {"path": "/nowhere"}}})
    with pytest.raises(UserError, match="the model folder '/nowhere' does not exist"):
        export_neuronpedia(tmp_path / "lost", tmp_path / "other")


def test_a_character_of_several_tokens_is_whole_in_every_row(tmp_path):
    tokenizer, text = tokenizer_for("gpt2", True), "naïve 🧪 漢字 שלום " * 8
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    on = np.ones((len(ids), 1), bool)
    firings = firings_of(on, np.arange(1, len(ids) + 1)[:, None], [len(ids)], tokens=ids)
    folder, _ = export(tmp_path, firings, tokenizer, context=5, top=1000)
    rows = sorted(lines(folder, "activations"), key=lambda line: line["maxValue"])
    assert len(rows) == -(-len(ids) // 5)
    assert all("\ufffd" not in "".join(row["tokens"]) and "".join(row["tokens"]) in text for row in rows)
    assert all(len(row["tokens"]) == len(row["values"]) for row in rows)
    # where no row ends within a character, the rows are the text
    (tmp_path / "whole").mkdir()
    folder, _ = export(tmp_path / "whole", firings, tokenizer, context=len(ids))
    (row,) = lines(folder, "activations")
    assert "".join(row["tokens"]) == text and row["tokens"].count("🧪") == 8
