"""Concepts from a user's own labelled sentences: which tokens they are on at, the activations there, and bad files."""

import json

import numpy as np
import pytest
import torch

from metasae import UserError
from metasae.data.concepts.tagged_concepts import FAMILY, tagged_concepts

POINT = "blocks.1.hook_resid_pre"
RIVER = {"concept": "water", "before": "past the", "target": "river mill", "after": "until dusk"}
DUSK = {
    "concept": "dusk",
    "family": "time",
    "before": "past the river mill until",
    "target": "dusk",
    "after": "",
}
SNOW = {"concept": "water", "before": "", "target": "Snow", "after": "fell on the harbour"}


def write(folder, lines, name="own.jsonl"):
    path = folder / name
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_tokens_of_the_target_are_on_and_all_others_off(load, tmp_path, family):
    host = load(family, POINT)
    tagged = tagged_concepts(host, write(tmp_path, [RIVER, DUSK, SNOW, SNOW]))
    assert [(c.name, c.family) for c in tagged.bank.concepts] == [("water", FAMILY), ("dusk", "time")]
    sentences = ["past the river mill until dusk", "Snow fell on the harbour"]
    ids = [host.tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
    assert tagged.sentence.tolist() == [0] * len(ids[0]) + [1] * len(ids[1])
    labels = tagged.bank.labels.toarray()
    assert set(np.unique(labels)) == {0, 1}
    on = [host.tokenizer.decode(np.concatenate(ids)[labels[:, column] > 0]) for column in (0, 1)]
    assert [text.replace(" ", "") for text in on] == ["rivermillSnow", "dusk"]
    framed = torch.tensor([[*host.frame.prefix, *ids[1], *host.frame.suffix]])
    wanted = host.activations(framed, torch.ones_like(framed))[0, len(host.frame.prefix) :][: len(ids[1])]
    torch.testing.assert_close(tagged.x[tagged.sentence == 1], wanted, atol=1e-5, rtol=0)


def test_a_long_sentence_runs_in_several_windows(load, tmp_path):
    host = load("gpt2", POINT)
    long = {"concept": "number", "before": " ".join("0123456789" * 3), "target": "7", "after": "mill"}
    tagged = tagged_concepts(host, write(tmp_path, [long]), context=16)
    assert len(tagged.x) == len(tagged.sentence) > 2 * 16 and tagged.bank.labels.sum() >= 1
    assert set(tagged.sentence) == {0}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{oops\n", r"line 2 is no JSON .*; write one object a line with the keys concept, before, target, after"),
        ("[1]\n", "line 2 is a list, not an object"),
        ({key: value for key, value in RIVER.items() if key != "after"}, "line 2 has no key 'after'"),
        ({**RIVER, "concept": " "}, "line 2: 'concept' is empty"),
        ({**RIVER, "family": 3}, "line 2: 'family' must be text, not int"),
        ({**RIVER, "family": ""}, "line 2: 'family' is empty"),
        ({**RIVER, "target": None}, "line 2: 'target' must be text, not NoneType"),
    ],
)
def test_a_bad_line_is_named(load, tmp_path, bad, says):
    with pytest.raises(UserError, match=says) as error:
        tagged_concepts(load("gpt2", POINT), write(tmp_path, [RIVER, bad]))
    assert "own.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_files_without_anything_to_judge(load, tmp_path):
    host = load("gpt2", POINT)
    with pytest.raises(UserError, match=r"own\.jsonl holds no labelled sentence"):
        tagged_concepts(host, write(tmp_path, ["\n"]))
    with pytest.raises(UserError, match="no file or folder of labelled sentences"):
        tagged_concepts(host, tmp_path / "nowhere")
