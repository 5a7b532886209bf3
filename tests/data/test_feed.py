import json
from dataclasses import asdict

import numpy as np
import pytest

from metasae import UserError
from metasae.data.cache.stream import Prefetch
from metasae.data.text import windows
from metasae.data.text.text import split_of
from metasae.data.text.windows import Cursor, Feed, Frame
from metasae.recipe import recipe

TEXT = recipe.Text(source="lines", context=6, calibration_share=0.2, evaluation_share=0.3)
FRAME = Frame(prefix=(1,))
WANTED = {"train": 300, "calibration": 61, "evaluation": 90}


def tokenizer(texts, **_):
    """A token for each letter, so that a document can have none."""
    return {"input_ids": [[ord(letter) for letter in text if letter.isalpha()] for text in texts]}


def lines(count=200):
    """Documents of 0 to 40 letters; many are longer than a window, and some have no token at all."""
    rng = np.random.default_rng(4)
    return [
        f"{number} " + "".join(rng.choice(list("abcdef"), rng.integers(0, 41))) if number % 7 else str(number)
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def small_tokenizer_batches(monkeypatch):
    monkeypatch.setattr(windows, "BATCH_CHARACTERS", 150)


def feed(start=None, wanted=WANTED):
    return Feed(tokenizer, FRAME, TEXT, wanted, start)


def as_tuples(pools):
    return [
        (split, window.document, window.start, window.tokens.tolist()) for pool, _ in pools for split, window, _ in pool
    ]


def slow_twin(documents, wanted):
    """The same windows, written down without batches, cursors or looking ahead."""
    counts, out, room = dict.fromkeys(wanted, 0), [], FRAME.room(TEXT.context)
    for number, document in enumerate(documents):
        split = split_of(document, TEXT)
        ids = tokenizer([document])["input_ids"][0][: max(wanted.get(split, 0) - counts.get(split, 0), 0)]
        for start in range(0, len(ids), room):
            out.append((split, number, start, ids[start : start + room]))
            counts[split] += len(out[-1][3])
    return out


@pytest.mark.parametrize("wanted", [WANTED, {"train": 10**6}, {"evaluation": 1}, {"train": 5, "calibration": 10**6}])
def test_windows_are_those_of_the_slow_twin(wanted):
    whole = feed(wanted=wanted)
    pools = list(whole.pools(lines(), 40))
    assert as_tuples(pools) == slow_twin(lines(), wanted)
    rows = dict.fromkeys(wanted, 0)
    for split, window, row in (entry for pool, _ in pools for entry in pool):
        assert row == rows[split]
        rows[split] += len(window)
    assert all(whole.found[split] <= count for split, count in wanted.items())
    assert set(whole.filled) == {split for split, count in wanted.items() if whole.found[split] == count}


@pytest.mark.parametrize("wanted", [WANTED, {"train": 10**6, "calibration": 3}])
def test_a_feed_goes_on_from_any_cursor(wanted):
    whole = feed(wanted=wanted)
    pools = list(whole.pools(lines(), 17))
    assert len(pools) > 20
    for number, (_, cursor) in enumerate(pools):
        again = feed(Cursor(**json.loads(json.dumps(asdict(cursor)))), wanted)
        assert as_tuples(again.pools(lines(), 17)) == as_tuples(pools[number + 1 :])
        assert again.cursor == whole.cursor and again.kinds == whole.kinds


def test_a_thread_that_reads_ahead_changes_no_cursor():
    with Prefetch(feed().pools(lines(), 17), depth=2) as ahead:
        assert [(len(pool), cursor) for pool, cursor in ahead] == [
            (len(pool), cursor) for pool, cursor in feed().pools(lines(), 17)
        ]


def test_cursors_fall_inside_documents_too():
    cursors = [cursor for _, cursor in feed().pools(lines(), 17)]
    lengths = [len(ids) for ids in tokenizer(lines())["input_ids"]]
    assert any(0 < cursor.given < lengths[cursor.document] for cursor in cursors)
    assert any(cursor.filled for cursor in cursors) and not all(cursor.filled for cursor in cursors)


def test_other_documents_are_refused():
    cursor = [cursor for _, cursor in feed().pools(lines(), 17)][12]
    changed = [*lines()]
    changed[2] += "x"
    for documents in (changed, lines()[: cursor.document], lines()[1:]):
        with pytest.raises(UserError, match=r"has changed since the harvest was interrupted; delete its cache folder"):
            list(feed(cursor).pools(documents, 17))
    longer = [*lines(), "new words"]
    assert as_tuples(feed(cursor).pools(longer, 17))


def test_an_empty_source():
    empty = feed()
    assert (
        list(empty.pools([], 17)) == []
        and empty.cursor.found == dict.fromkeys(WANTED, 0)
        and empty.cursor.document == -1
    )
