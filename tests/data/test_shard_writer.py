import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metasae import UserError
from metasae.data.cache import cache_writer
from metasae.data.cache.cache import COLUMNS
from metasae.data.cache.cache_writer import ShardWriter

ROWS = 20


def rows_and_columns(d, dtype=torch.float32):
    rows = torch.randn(ROWS, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    return rows, {name: np.arange(ROWS, dtype=np.int32) * 3 + number for number, name in enumerate(COLUMNS)}


def write(writer, rows, columns, start, stop):
    writer.write(start, rows[start:stop])
    writer.write_columns(start, {name: column[start:stop] for name, column in columns.items()})


def by_library(path, rows, columns, start, stop):
    tensors = {name: torch.from_numpy(column[start:stop].copy()) for name, column in columns.items()}
    norms = rows[start:stop].float().norm(dim=1)
    save_file({"activations": rows[start:stop].contiguous(), "norms": norms, **tensors}, path)
    return path.read_bytes()


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("train-*.safetensors"))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("d", [1, 5, 32])
def test_shards_are_what_the_library_writes_whatever_the_order_of_the_rows(tmp_path, d, dtype):
    rows, columns = rows_and_columns(d, dtype)
    writer = ShardWriter(tmp_path, "train", d, dtype, 7, ROWS)
    for start, stop in ((18, 20), (5, 10), (0, 5), (13, 18), (9, 13)):
        write(writer, rows, columns, start, stop)
    record, statistics = writer.finish(ROWS)
    files = files_of(tmp_path)
    assert list(files) == [f"train-{number:05d}.safetensors" for number in range(3)]
    for number, content in enumerate(files.values()):
        assert content == by_library(tmp_path / "reference", rows, columns, 7 * number, min(7 * number + 7, ROWS))
    assert [entry["tokens"] for entry in record["shards"]] == [7, 7, 6] and not record["exhausted"]
    assert torch.allclose(statistics["train.sum"].sum(0), rows.double().sum(0))
    assert torch.allclose(statistics["train.sum_sq"].sum(), rows.double().square().sum())


@pytest.mark.parametrize("count", [0, 3, 7, 17])
def test_a_text_that_ends_early(tmp_path, count):
    rows, columns = rows_and_columns(4)
    writer = ShardWriter(tmp_path, "train", 4, torch.float32, 7, ROWS)
    if count:
        write(writer, rows, columns, 0, count)
    record, statistics = writer.finish(count)
    entries = record["shards"]
    assert [entry["tokens"] for entry in entries] == [min(7, count - start) for start in range(0, count, 7)]
    assert record == {"tokens": count, "exhausted": True, "shards": entries}
    for number, content in enumerate(files_of(tmp_path).values()):
        assert content == by_library(tmp_path / "reference", rows, columns, 7 * number, min(7 * number + 7, count))
    assert statistics["train.sum"].shape == (len(entries), 4) and statistics["train.sum_sq"].shape == (len(entries),)


@pytest.mark.parametrize("stopped", range(0, ROWS + 1, 3))
def test_another_writer_goes_on(tmp_path, stopped):
    rows, columns = rows_and_columns(4)
    first = ShardWriter(tmp_path, "train", 4, torch.float32, 7, ROWS)
    # rows behind the place where it goes on may be there already, or be half written
    write(first, rows, columns, 0, min(stopped + 2, ROWS))
    first.sync()
    second = ShardWriter(tmp_path, "train", 4, torch.float32, 7, ROWS)
    assert second.is_whole(stopped)
    if stopped < ROWS:
        write(second, rows, columns, stopped, ROWS)
    record, statistics = second.finish(ROWS)
    whole = ShardWriter(tmp_path / "whole", "train", 4, torch.float32, 7, ROWS)
    (tmp_path / "whole").mkdir()
    write(whole, rows, columns, 0, ROWS)
    record_of_whole, statistics_of_whole = whole.finish(ROWS)
    assert files_of(tmp_path) == files_of(tmp_path / "whole") and record == record_of_whole
    assert all(torch.equal(statistics[name], table) for name, table in statistics_of_whole.items())


def test_shards_that_are_gone_or_cut_are_seen(tmp_path):
    rows, columns = rows_and_columns(4)
    writer = ShardWriter(tmp_path, "train", 4, torch.float32, 7, ROWS)
    write(writer, rows, columns, 0, 10)
    assert writer.is_whole(10) and writer.is_whole(0) and not writer.is_whole(15)
    shard = tmp_path / "train-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert writer.is_whole(7) and not writer.is_whole(10)
    (tmp_path / "train-00000.safetensors").unlink()
    assert not writer.is_whole(7)


def test_a_shard_takes_no_more_than_its_share(tmp_path):
    assert (
        ShardWriter(tmp_path, "train", 4096, torch.bfloat16, 10**9, 10**9).capacity
        == cache_writer.MAX_SHARD_BYTES // 8192
    )
    assert ShardWriter(tmp_path, "train", 4, torch.float32, 100, 30).capacity == 30


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    rows, columns = rows_and_columns(4)
    writer = ShardWriter(tmp_path, "train", 4, torch.float32, 7, ROWS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match=r"cannot write .*train-00000.*No space left.*free some space"):
        write(writer, rows, columns, 0, 5)
    with pytest.raises(UserError, match="cannot write"):
        ShardWriter(tmp_path / "nowhere", "train", 4, torch.float32, 7, ROWS).write(0, rows)
