"""The store of replies: what makes two questions the same, and what survives."""

import sqlite3
from dataclasses import replace
from threading import Thread

import pytest
from worlds import count_of

from metasae.errors import UserError
from metasae.interp.replies import Ask, Reply, ReplyStore

ASK = Ask("be brief", "what is it?", {"type": "object"})


def test_a_reply_is_found_again_by_all_that_changes_it(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        reply = Reply('{"a": 1}', 12, 3, (("{", {"{": -0.1, "[": -2.5}),))
        store.put("m", ASK, reply)
        assert store.get(ASK.key("m")) == reply and count_of(store) == 1
        changed = [
            {"system": "x"},
            {"user": "x"},
            {"schema": {"type": "array"}},
            {"max_tokens": 5},
            {"repeat": 1},
        ]
        assert (
            all(store.get(replace(ASK, **change).key("m")) is None for change in changed)
            and store.get(ASK.key("other")) is None
        )
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        assert store.get(ASK.key("m")) == reply


def test_the_first_reply_stays_and_empty_or_odd_text_is_kept(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        store.put("m", ASK, Reply(""))
        store.put("m", ASK, Reply("later"))
        assert store.get(ASK.key("m")) == Reply("")
        odd = replace(ASK, user="naïve \ud800 \0 — 雪")
        store.put("m", odd, Reply("naïve \ud800 雪"))
        assert store.get(odd.key("m")).text == "naïve ? 雪"


def test_it_knows_whose_replies_it_holds(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        assert store.models() == []
        for model in ("b", "a", "b logprobs=5"):
            store.put(model, ASK, Reply("x"))
        assert store.models() == ["a", "b", "b logprobs=5"]


def test_many_threads_write_at_once(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        asks = [replace(ASK, user=str(number)) for number in range(60)]
        threads = [
            Thread(target=lambda part=part: [store.put("m", ask, Reply(ask.user)) for ask in asks[part::4]])
            for part in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count_of(store) == 60 and all(store.get(ask.key("m")).text == ask.user for ask in asks)


def test_a_file_that_is_no_store_is_one_line_and_untouched(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to be read as a header of one " * 20)
    before = text.read_text()
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE replies (something TEXT)")
    for path in (text, other, tmp_path):
        with pytest.raises(UserError, match="store of replies"):
            ReplyStore(path)
    assert text.read_text() == before
