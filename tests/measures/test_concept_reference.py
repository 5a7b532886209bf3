"""Several sets of labelled tokens: how their sentences are dealt to halves, and what their scores add up to."""

import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae
from scipy.sparse import csr_array
from test_concepts import bank_of

from metasae.data.concepts.tagged_concepts import TaggedConcepts
from metasae.data.senses import SenseActivations
from metasae.data.split import head
from metasae.measures.firing.firings import document_blocks, fire
from metasae.measures.truth.concept_reference import concept_reference, measure_concepts, numbered_by_concept
from metasae.measures.truth.concepts import score_concepts
from metasae.measures.truth.probe import halves_of


def text_of(tokens):
    return f" {'abcdefghij'[tokens % 10]}word"


@pytest.fixture(scope="module")
def scene():
    """(sae, evaluation split, a word with two senses, labelled sentences), the words with activations of their own."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    split = head(FakeSplit(torch.randn(1600, 8, generator=generator), tokens=rng.zipf(1.5, 1600) % 10), 1600)
    sense = np.arange(60) % 2
    x = torch.randn(60, 8, generator=generator) + 3 * torch.from_numpy(sense)[:, None]
    word = SenseActivations("bank", ("money", "river"), x, sense, np.arange(60), {}, {}, "here")
    on = (np.arange(80) % 4 == 0)[:, None]
    tagged = TaggedConcepts(bank_of(on, ["yours"]), torch.randn(80, 8, generator=generator), np.arange(80) // 4)
    return random_sae(threshold=0.5), split, word, tagged


def test_sentences_of_one_concept_are_dealt_evenly():
    """Also where they take turns in the file."""
    sense = np.arange(48) % 3
    numbers = numbered_by_concept(bank_of(sense[:, None] == np.arange(3)), np.arange(48), 0)
    assert sorted(numbers) == list(range(48))
    for one in range(3):
        assert halves_of(numbers)[sense == one].sum() == 8
        assert np.bincount(numbers[sense == one] // 2 % 4, minlength=4).tolist() == [4, 4, 4, 4]
    repeated = numbered_by_concept(bank_of((np.arange(6) == 5)[:, None]), np.array([0, 0, 1, 1, 2, 2]), 0)
    # the sentence with the concept comes first, and tokens of a sentence keep together
    assert repeated[4:].tolist() == [0, 0] and repeated[0] == repeated[1] != repeated[2] == repeated[3]


def test_scores_of_all_sets_together(scene):
    sae, split, word, tagged = scene
    firings = fire(sae, split)
    blocks = document_blocks(split.documents)
    alone = measure_concepts(sae, firings, blocks, concept_reference(split, text_of, 5, 0))
    reference = concept_reference(split, text_of, 5, 0, [word], tagged)
    together = measure_concepts(sae, firings, blocks, reference)
    for family, scores in alone["by_family"].items():
        assert together["by_family"][family] == scores
    n, of_family = together["n"], together["by_family"]
    assert n == alone["n"] + 3 and of_family["sense"]["n"] == 2 and of_family["yours"]["n"] == 1
    for key in ("best_f1", "best_recall", "best_precision", "probe5_f1", "ceiling_f1"):
        parts = [scores[key] * scores["n"] for scores in of_family.values()]
        assert together[key] == pytest.approx(sum(parts) / n), key
    assert all(len(values) == 8 for values in together["leave_one_out"].values())
    # two senses are two concepts among the occurrences of their word, and say nothing of blends
    senses_alone = measure_concepts(sae, firings, blocks, concept_reference(split, text_of, 5, 0, [word]))
    assert senses_alone["blended"] == alone["blended"]
    labels = csr_array(np.eye(2, dtype=np.float32)[word.sense])
    by_hand = score_concepts(
        bank_of(labels.toarray(), ["sense"] * 2), fire(sae, reference[1].rows).csr, reference[1].documents
    )
    assert of_family["sense"]["best_f1"] == by_hand["best_f1"] and of_family["sense"]["ceiling_f1"] > 0.8


def test_one_document_leaves_nothing_out(scene):
    sae, split, word, _ = scene
    firings = fire(sae, split)
    scores = measure_concepts(sae, firings, None, concept_reference(split, text_of, 5, 0, [word]))
    assert set(map(len, scores["leave_one_out"].values())) == {0} and scores["n"] > 0
