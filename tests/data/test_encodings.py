"""Text as people save it: half an emoji, byte order marks, UTF-16, Latin-1; in every kind of file that is read."""

import gzip
import json

import pytest

from metasae import UserError
from metasae.data.senses import read_senses
from metasae.data.tagged import read_tagged
from metasae.data.text.text import documents
from metasae.data.text.windows import Frame, tokenise
from metasae.encodings import readable
from metasae.recipe import recipe
from metasae.recipe.recipe import Recipe
from sources import STORIES, tokenizer_for

HALF = "ends in half \ud83d"
MENDED = "ends in half \ufffd"
SENSE = {"word": "bank", "sense": "river", "before": "the", "target": "bank", "after": "is wet"}


def read(source, **more):
    return list(documents(recipe.Text(source=str(source), **more)))


def written(path, body: bytes):
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.jsonl", b"\n".join(json.dumps({"text": text}).encode() for text in ["one"] * 199 + [HALF])),
        ("x.jsonl", json.dumps({"text": HALF}, ensure_ascii=False).encode("utf-8", "surrogatepass")),
        ("x.json", json.dumps([{"text": HALF}]).encode()),
        ("x.csv", f"text\n{HALF}\n".encode("utf-8", "surrogatepass")),
        ("x.txt", HALF.encode("utf-8", "surrogatepass")),
        ("x.jsonl.gz", json.dumps(HALF).encode()),
    ],
)
def test_half_an_emoji_is_one_unknown_character(tmp_path, name, body):
    texts = read(written(tmp_path / name, body))
    assert texts[-1] == MENDED
    tokenizer = tokenizer_for("gpt2", bos=True)
    ids = [ids for _, _, ids in tokenise(tokenizer, enumerate(texts), Frame.of(tokenizer, True))]
    assert tokenizer.decode(ids[-1]) == MENDED


def test_half_an_emoji_in_chats_and_in_tables_of_others(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    messages = [
        {"role": "user", "content": HALF},
        {"role": "user", "content": [{"text": "\ud83d"}, {"text": "\ude00"}]},
    ]
    (chat,) = read(written(tmp_path / "x.jsonl", json.dumps({"messages": messages}).encode()))
    assert [message["content"] for message in chat.messages] == [MENDED, "\U0001f600"]
    raw = HALF.encode("utf-8", "surrogatepass")
    spoken = pyarrow.array([[{"role": b"user", "content": raw}]])
    kind = pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}))
    for column, name in ((pyarrow.array([b"one", raw]), "text"), (spoken, "messages")):
        unchecked = column.cast(pyarrow.string() if name == "text" else kind, safe=False)
        pyarrow.parquet.write_table(pyarrow.table({name: unchecked}), tmp_path / "x.parquet")
        last = read(tmp_path / "x.parquet")[-1]
        assert (last if name == "text" else last.messages[0]["content"]) == MENDED
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array([b"caf\xe9"]).cast(pyarrow.string(), safe=False)}), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match=r"x\.parquet cannot be read"):
        read(tmp_path / "x.parquet")


def test_half_an_emoji_in_tagged_sentences(tmp_path):
    path = written(tmp_path / "x.jsonl", json.dumps({**SENSE, "sense": "\ud83d", "after": HALF}).encode())
    (occurrence,) = read_senses(path)
    assert occurrence.sense == "\ufffd" and occurrence.sentence == f"the bank {MENDED}"
    assert occurrence.sentence[occurrence.start : occurrence.stop] == "bank"
    (label,) = read_tagged(written(tmp_path / "y.jsonl", json.dumps({**SENSE, "concept": HALF}).encode()), ["concept"])
    assert label["concept"] == MENDED


def test_pairs_are_joined_and_all_else_stays():
    assert readable("\ud83d\ude00 \U0001f600 \u00e9 \ufeff\0") == "\U0001f600 \U0001f600 \u00e9 \ufeff\0"
    assert readable("\ude00\ud83d") == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
        # two marked files put together
        ("x.jsonl", '{"text": "one"}\n\ufeff{"text": "two"}\n'),
        ("x.json", '["one", {"text": "two"}]'),
        ("x.csv", "text\none\ntwo\n"),
        ("x.csv.gz", "text,id\none,1\ntwo,2\n"),
        ("x.txt", "one\n\ufefftwo"),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, body):
    texts = read(written(tmp_path / name, body.encode("utf-8-sig")))
    assert texts == (["one\ntwo"] if name == "x.txt" else ["one", "two"])


def test_marked_recipes_and_sentences(tmp_path):
    path = written(tmp_path / "x.toml", "[train]\r\nlr = 0.5\r\n".encode("utf-8-sig"))
    assert Recipe.load(path).train.lr == 0.5
    line = json.dumps(SENSE)
    for name in ("x.jsonl", "x.jsonl.gz"):
        senses = list(read_senses(written(tmp_path / name, f"{line}\n{line}".encode("utf-8-sig"))))
        assert [sense.word for sense in senses] == ["bank", "bank"]


RECIPE = "[train]\nlr = 0.5\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-16-be marked", "utf-32"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.jsonl", '{"text": "one two"}'),
        ("x.txt", "Снег шёл на гавань и на реку, а чайки спорили о рыбе. " * 3),
        ("x.csv.gz", "text\none two three"),
        ("x.toml", RECIPE),
        ("senses.jsonl", json.dumps(SENSE)),
    ],
)
def test_wide_encodings_are_named(tmp_path, name, body, encoding):
    wide, _, marked = encoding.partition(" ")
    path = written(tmp_path / name, (f"\ufeff{body}" if marked else body).encode(wide))
    reader = {"x.toml": Recipe.load, "senses.jsonl": lambda path: list(read_senses(path))}.get(name, read)
    with pytest.raises(UserError, match=rf"{name} is saved as {wide[:6].upper()}; save it as UTF-8") as refused:
        reader(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt", "x.json", "x.jsonl.gz", "x.toml", "senses.jsonl"])
def test_latin_1_is_one_line_that_names_the_file(tmp_path, name):
    body = f'{{"text": "caf\xe9 {name}"}}\n'.encode("latin-1")
    reader = {"x.toml": Recipe.load, "senses.jsonl": lambda path: list(read_senses(path))}.get(name, read)
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 \(byte 0xe9: Latin-1") as refused:
        reader(written(tmp_path / name, body))
    assert "\n" not in str(refused.value)


def test_a_few_nuls_are_no_utf_16(tmp_path):
    words = [story.encode() for story in STORIES * 3]
    text = b"\0".join(b"\0".join(story.split()) for story in words)
    assert read(written(tmp_path / "x.txt", text)) == [text.replace(b"\0", b"").decode()]
    # at even places alone, as in a table of fixed width
    even = b"".join(word.ljust(-(-len(word) // 2) * 2) + b"\0 " for word in b" ".join(words).split())
    assert read(written(tmp_path / "x.txt", even)) == [even.replace(b"\0", b"").decode()]
