"""Concepts labelled from a text by rules, against what a reader would say."""

from itertools import chain

import numpy as np
import pytest

from metasae.data.concepts import labels
from metasae.data.concepts.labels import FAMILIES, LabelledText, concept_bank

# _ is the space before a word
SENTENCE = (
    '_The _sky _is _" very _blue " _today . _NASA _saw _( in _2024 ) _it , _and _10 _20 _left . '
    "_Then _` ` x _= _1 ` ` _ran"
)
WORDS = SENTENCE.split()


def text_of(*documents):
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(chain(*documents)))}
    strings = list(vocabulary)
    tokens = np.array([vocabulary[word] for words in documents for word in words])
    numbers = np.concatenate([np.full(len(words), number) for number, words in enumerate(documents)])
    positions = np.concatenate([np.arange(len(words)) for words in documents])
    return LabelledText(tokens, numbers, positions, lambda token: strings[token].replace("_", " "))


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
    on = {name: [word.strip() for word in words_on(text, mask)] for name, mask in surfaces(text).items()}
    assert on["a capitalised word"] == ["The", "Then"] and on["all capitals"] == ["NASA"]
    assert on["a number in one token"] == ["2024", "10", "20", "1"]
    assert on["the first token of a sentence"] == ["The", "NASA", "Then"]
    assert on["the last token of a sentence"] == ["today", "left"]
    assert on["within double quotes"] == ["very", "blue"] and on["within brackets"] == ["in", "2024"]
    assert on["within code"] == ["x", "=", "1"]


def test_places_of_digits(few):
    one, other = "_in 1 9 9 5 _and _12 345 _or _6 _7 8", "9 _x"
    text = text_of(one.split(), other.split())
    on = {name: words_on(text, mask) for name, mask in surfaces(text).items()}
    # the second document's 9 is no part of the number before it; 12 of 12 345 has three digits behind it
    assert on["the first digits of a number"] == ["1", " 12", " 7"]
    assert on["the last digits of a number"] == ["5", "345", "8"]
    assert on["a number in one token"] == [" 6", "9"]
    assert on["a digit in the tens' place"] == ["9", " 7"] and on["a digit in the hundreds' place"] == ["9"]


def test_marks_within_a_token(few):
    sentence = '_he _said _" go _now ." _then _`` x `` _or _``` y `` ` z _(a b _) _c ) _d _( e _))'
    text = text_of(sentence.split())
    on = {name: words_on(text, mask) for name, mask in surfaces(text).items()}
    assert on["within double quotes"] == ["go", " now"] and on["within code"] == ["x", "y"]
    # a closing bracket that nothing opened does not hide the next pair
    assert on["within brackets"] == ["b", "e"]


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
