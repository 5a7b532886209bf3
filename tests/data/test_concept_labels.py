"""Concepts labelled from a text by rules, against what a reader would say."""

from itertools import chain

import numpy as np
import pytest

from metasae.data.concepts import labels
from metasae.data.concepts.labels import FAMILIES, LabelledText, concept_bank

SENTENCE = 'The sky is " very blue " today . NASA saw ( in 2024 ) it , and 10 20 left . Then `` x = 1 `` ran'
WORDS = SENTENCE.split()


def text_of(*documents):
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(chain(*documents)))}
    strings = list(vocabulary)
    tokens = np.array([vocabulary[word] for words in documents for word in words])
    numbers = np.concatenate([np.full(len(words), number) for number, words in enumerate(documents)])
    positions = np.concatenate([np.arange(len(words)) for words in documents])
    return LabelledText(tokens, numbers, positions, lambda token: strings[token])


@pytest.fixture
def few(monkeypatch):
    """Concepts that are on once are enough."""
    monkeypatch.setattr(labels, "LEAST", 1)
    monkeypatch.setattr(labels, "MOST", 1.0)


def surfaces(text):
    bank = concept_bank(text)
    places = [place for place, concept in enumerate(bank.concepts) if concept.family == "surface"]
    return {bank.concepts[place].name: bank.labels[:, [place]].toarray()[:, 0] > 0 for place in places}


def words_on(text, on):
    return [text.strings[number] for number in text.type_of[on]]


def test_surfaces_as_one_reads_them(few):
    text = text_of(WORDS)
    on = {name: words_on(text, mask) for name, mask in surfaces(text).items()}
    assert on["a capitalised word"] == ["The", "Then"] and on["all capitals"] == ["NASA"]
    assert on["the first number in a row"] == ["2024", "10", "1"] and on["a later number in a row"] == ["20"]
    assert on["the first token of a sentence"] == ["The", "NASA", "Then"]
    assert on["the last token of a sentence"] == ["today", "left"]
    assert on["within double quotes"] == ["very", "blue"] and on["within brackets"] == ["in", "2024"]
    assert on["within backticks"] == ["x", "=", "1"]


def test_marks_of_one_document_do_not_reach_into_the_next(few):
    text = text_of(["a", '"', "b", "("], ["c", "d", '"', "e", ")"])
    on = surfaces(text)
    assert words_on(text, on["within double quotes"]) == ["b", "(", "e", ")"]
    # the document begins outside of brackets, whatever the one before it opened
    assert "within brackets" not in on or not words_on(text, on["within brackets"])


def test_tokens_bigrams_and_topics_against_a_loop():
    rng = np.random.default_rng(0)
    vocabulary = [f"word{chr(97 + i)}" for i in range(26)]
    documents = [[vocabulary[number] for number in rng.zipf(1.4, 8) % 26] for _ in range(400)]
    text = text_of(*documents)
    bank = concept_bank(text, per_family=9)
    families = [concept.family for concept in bank.concepts]
    assert set(families) <= set(FAMILIES) and {"token", "bigram", "topic"} <= set(families)
    dense, words = bank.labels.toarray() > 0, words_on(text, np.ones(len(text), bool))
    for place, concept in enumerate(bank.concepts):
        if concept.family == "surface":
            continue
        quoted = concept.name.split("'")[1::2]
        for t, word in enumerate(words):
            before = words[t - 1] if text.follows[t] else None
            whole = documents[text.documents[t]]
            wanted = {
                "token": word == quoted[0],
                "bigram": len(quoted) > 1 and (word, before) == tuple(quoted),
                "topic": quoted[0] in whole,
            }
            assert dense[t, place] == wanted[concept.family], (concept, t)


def test_a_bank_is_the_same_every_time_and_empty_of_an_empty_text():
    rng = np.random.default_rng(1)
    text = text_of(*[[f"w{number}" for number in rng.integers(0, 30, 50)] for _ in range(40)])
    one, other = concept_bank(text, 5), concept_bank(text, 5)
    assert one.concepts == other.concepts and (one.labels != other.labels).nnz == 0
    nothing = LabelledText(np.zeros(0), np.zeros(0), np.zeros(0), str)
    assert concept_bank(nothing).concepts == []
