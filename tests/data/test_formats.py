"""Tables with commas, chats and token ids as sources of text, well made and not."""

import gzip
import json

import pytest

from metasae import UserError
from metasae.data.text.records import Chat, TokenIds
from metasae.data.text.text import documents, identity, in_words, split_of
from metasae.recipe import recipe

HELLO = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
SHARED = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
IDS = [5, 6, 7]


def read(source, **more):
    return list(documents(recipe.Text(source=str(source), **more)))


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(source, what, **more):
    with pytest.raises(UserError, match=what) as error:
        read(source, **more)
    assert "\n" not in str(error.value)


TABLE = 'id,text\r\n1,"one, with a ""quote"""\r\n2,"two\nlines"\r\n\r\n3,\r\n'


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_with_commas(tmp_path, mark):
    (tmp_path / "x.csv").write_bytes((mark + TABLE).encode())
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress((mark + TABLE).encode()))
    texts = ['one, with a "quote"', "two\nlines"]
    assert read(tmp_path / "x.csv") == read(tmp_path / "y.csv.gz") == texts
    assert read(tmp_path) == texts * 2
    assert read(tmp_path / "x.csv", column="id") == ["1", "2", "3"]


def test_a_field_may_be_long_and_the_first_column_marked(tmp_path):
    (tmp_path / "x.csv").write_text("\ufefftext\n" + "word " * 50_000 + "\n")
    assert len(read(tmp_path / "x.csv")[0]) == 250_000


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", r"x\.csv names no columns; write their names"),
        ("id,txet\n", r"x\.csv has no column 'text'; did you mean 'txet'"),
        ("id,text\n1,a\n2,b,c\n", r"record 2 of .*x\.csv has 3 fields and the first line 2"),
        ("id,text\n1\n", "record 1 of .* has 1 fields"),
        ('id,text\n1,"open\n', "cannot be read as .csv text"),
        ("id,messages\n1,[]\n", "column 'messages' of record 1 .* holds text, not messages or ids"),
    ],
)
def test_tables_that_are_refused(tmp_path, body, what):
    (tmp_path / "x.csv").write_text(body)
    refused(tmp_path / "x.csv", what)


def test_a_table_of_a_header_alone_and_an_empty_file_have_no_documents(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n")
    (tmp_path / "x.jsonl").write_text("")
    assert read(tmp_path) == []
    (tmp_path / "x.jsonl").write_text('\ufeff{"text": "marked"}\n')
    assert read(tmp_path) == ["marked"]


def test_the_value_decides_what_a_record_is(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"a": "words"}, {"a": HELLO}, {"a": IDS}, {"a": None}, {"a": []})
    text, chat, ids = read(path, column="a")
    assert text == "words" and chat == Chat(tuple(HELLO), "") and ids.ids.tolist() == IDS
    assert chat.where == f"record 2 of {path}"


@pytest.mark.parametrize(("name", "value"), [("messages", HELLO), ("conversations", SHARED), ("input_ids", IDS)])
def test_a_column_of_another_kind_stands_in_for_the_default(tmp_path, name, value):
    path = lines(tmp_path / "x.jsonl", {"id": 3, name: value})
    (document,) = read(path)
    assert document.content == read(path, column=name)[0].content
    refused(path, f"no column 'body'; known: id, {name}", column="body")
    assert read(lines(path, {"text": "words", name: value})) == ["words"]
    refused(lines(path, {name: value, "messages": [], "input_ids": []}), "set one of: text.column=messages, ")
    refused(lines(path, {name: "words"}), f"holds text, not messages or ids; set text.column={name}")


def test_layouts_of_chats_are_one_document_in_one_split(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "image"}, "lo?"]}, HELLO[1]]
    path = lines(tmp_path / "x.jsonl", {"messages": HELLO}, {"messages": SHARED}, {"messages": parts})
    first, *others = read(path)
    assert all(document == first and document.content == first.content for document in others)
    text = recipe.Text(calibration_share=0.3, evaluation_share=0.3)
    swapped = Chat(tuple(dict(reversed(message.items())) for message in HELLO), "elsewhere")
    assert split_of(swapped, text) == split_of(first, text)
    chats = [Chat(({"role": "user", "content": str(number)},), "") for number in range(200)]
    assert {split_of(chat, text) for chat in chats} == {"train", "calibration", "evaluation"}
    # a fixed function of the content: these may never move
    (ids,) = read(lines(path, {"a": IDS}), column="a")
    assert [split_of(document, text) for document in (first, ids)] == ["calibration"] * 2


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"messages": [{"role": "user"}]}, "message 1 of record 2 of .* has no content"),
        ({"messages": [HELLO[0], {"role": "assistant", "content": None}]}, "message 2 of record 2 of .* no content"),
        ({"messages": [{"content": "?"}]}, "message 1 of record 2 of .* has no role"),
        ({"messages": [HELLO]}, "record 2 of .* holds several sequences"),
        ({"input_ids": [IDS, IDS]}, "record 2 of .* holds several sequences"),
        ({"input_ids": [1, -3]}, "record 2 of .* holds -3, which is no token id"),
        ({"input_ids": [1, 2.0]}, "record 2 of .* holds 2.0, which is no token id"),
        ({"input_ids": [1, None]}, "record 2 of .* holds None, which is no token id"),
        ({"input_ids": [1, 1 << 40]}, "which is no token id"),
        ({"input_ids": [True]}, "holds True, which is no token id"),
        ({"text": ["one", "two"]}, "holds list, not text, messages or token ids"),
        ({"text": [HELLO[0], 3]}, "holds list, not text"),
        ({"text": 3, "body": "x"}, "holds int, not text, messages or token ids; set text.column to one of: body"),
        (3, "record 2 of .* is a int, not a string or a table"),
    ],
)
def test_records_that_are_refused(tmp_path, record, what):
    refused(lines(tmp_path / "x.jsonl", {"text": "fine"}, record), what)


def test_an_empty_chat_is_left_out(tmp_path):
    empty = [{"role": "user", "content": " "}, {"role": "assistant", "content": ""}]
    assert read(lines(tmp_path / "x.jsonl", {"messages": empty}, {"messages": []}, {"input_ids": []})) == []


@pytest.mark.parametrize(("name", "value"), [("messages", HELLO), ("input_ids", IDS)])
def test_datasets_and_parquet(tmp_path, name, value):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"id": [1, 2], name: [value, value]})
    data.to_parquet(tmp_path / "x.parquet")
    data.with_format("numpy").save_to_disk(str(tmp_path / "saved"))
    for source in ("x.parquet", "saved"):
        one, other = read(tmp_path / source)
        assert one.content == other.content == read(lines(tmp_path / "x.jsonl", {name: value}))[0].content
        assert "record 2 of " in other.where
    data.rename_column(name, "body").to_parquet(tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet", column="body")[0].content == one.content
    refused(tmp_path / "y.parquet", "no column 'text'")


def test_a_dataset_on_the_hub_is_read_the_same_way(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("metasae.data.text.hub.unreachable", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"messages": HELLO}, {"input_ids": IDS}]))
    chat, ids = read("someone/something")
    assert isinstance(chat, Chat) and isinstance(ids, TokenIds)
    assert ids.where == "record 2 of the dataset 'someone/something'"


def test_the_text_in_words(tmp_path):
    def words(*kinds, **values):
        return in_words(identity(recipe.Text(**values)), kinds)

    path = str(lines(tmp_path / "x.jsonl", {"text": "one"}))
    assert words("text", source="docs") == "the documentation on this machine (technical English)"
    assert words("text", source=path) == words(source=path) == "x.jsonl"
    assert words("text", source=path, column="body") == "x.jsonl, column body"
    assert words("chats", source=path) == "x.jsonl: chats, read with the model's chat template"
    assert words("token ids", source="a/b", name="c") == "the dataset a/b c, split train: token ids as given"
    assert words("text", "chats", source=path).startswith("x.jsonl: text and chats, ")
