import gzip
import json
import time

import pytest

from metasae import UserError
from metasae.data.text.text import documents, identity, split_of
from metasae.recipe import recipe


def read(source, **more):
    return list(documents(recipe.Text(source=str(source), **more)))


def test_text_files_are_one_document_each_in_order_of_name(tmp_path):
    for name, words in (("b.txt", "second"), ("a.txt", "first\0"), ("c.txt", " \n")):
        (tmp_path / name).write_text(words)
    assert read(tmp_path) == ["first", "second"]
    assert read(tmp_path / "b.txt") == ["second"]


def test_a_long_text_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path):
    whole = "".join(f"Paragraph {number} goes on for a while and then it ends.\r\n\n" for number in range(2000))
    (tmp_path / "book.txt").write_text(whole, newline="")
    parts = read(tmp_path / "book.txt")
    assert len(parts) > 5 and "".join(parts) == whole
    assert all(part.endswith("\n\n") for part in parts)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json"])
def test_json(tmp_path, name):
    records = [{"text": "one", "id": 1}, {"text": None}, {"text": "two\nlines"}]
    body = json.dumps(records) if name.endswith(".json") else "\n".join(map(json.dumps, records)) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(body.encode()) if name.endswith(".gz") else body.encode())
    assert read(tmp_path / name) == ["one", "two\nlines"]


def test_parquet_and_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"body": ["one", "", "two"], "n": [1, 2, 3]})
    data.to_parquet(tmp_path / "x.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "x.parquet", column="body") == ["one", "two"]
    assert read(tmp_path / "saved", column="body") == ["one", "two"]
    assert read(tmp_path / "splits", column="body", split="test") == ["one", "two"]
    for source in ("x.parquet", "saved"):
        with pytest.raises(UserError, match=r"no column 'bodi'; did you mean 'body'"):
            read(tmp_path / source, column="bodi")
    with pytest.raises(UserError, match=r"no split 'train'.*test"):
        read(tmp_path / "splits", column="body")
    with pytest.raises(UserError, match="holds int, not text"):
        read(tmp_path / "x.parquet", column="n")


def test_wrong_columns_and_files_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"content": "hello"}\n')
    with pytest.raises(UserError, match="no column 'contents'; did you mean 'content'"):
        read(tmp_path / "x.jsonl", column="contents")
    with pytest.raises(UserError, match=r"no file or folder; did you mean 'x\.jsonl'"):
        read(tmp_path / "y.jsonl")
    with pytest.raises(UserError, match="no file or folder"):
        read("./nowhere/at/all")
    (tmp_path / "x.doc").write_text("?")
    with pytest.raises(UserError, match=r"known: \.txt"):
        read(tmp_path / "x.doc")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl cannot be read"):
        read(tmp_path / "bad.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no text"):
        read(tmp_path / "empty")


def test_a_dataset_without_the_hub_is_one_line_and_quick(monkeypatch):
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    start = time.perf_counter()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"someone/something.*HF_HUB_OFFLINE is set") as refused:
        read("someone/something")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached"):
        read("someone/something")
    assert "\n" not in str(refused.value) and time.perf_counter() - start < 30


def test_splits_are_fixed_by_the_words_and_have_their_shares():
    text = recipe.Text(calibration_share=0.1, evaluation_share=0.2)
    splits = [split_of(f"document {number}", text) for number in range(5000)]
    assert splits == [split_of(f"document {number}", text) for number in range(5000)]
    assert abs(splits.count("calibration") / 5000 - 0.1) < 0.02 and abs(splits.count("evaluation") / 5000 - 0.2) < 0.02


def test_identity_follows_the_bytes_not_the_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("hello")
    first = identity(recipe.Text(source=str(tmp_path / "a" / "x.txt")))
    assert first == identity(recipe.Text(source=str(tmp_path / "b" / "x.txt")))
    (tmp_path / "b" / "x.txt").write_text("hullo")
    assert first != identity(recipe.Text(source=str(tmp_path / "b" / "x.txt")))
