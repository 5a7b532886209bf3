import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasae import UserError
from metasae.data.cache.stream import Prefetch, Stream, indices_of


class Rows:
    """A split in memory: row i holds i. `documents` int32 [T]."""

    name, folder = "train", "memory"

    def __init__(self, n_tokens, documents=None):
        self.n_tokens, self.documents = n_tokens, documents

    def rows(self, indices):
        return indices.to(torch.bfloat16 if self.n_tokens <= 256 else torch.float32)[:, None]

    def refuse_bad(self, indices, block):
        raise UserError("a NaN or inf activation in shard x")


def numbers(stream, batches):
    return torch.cat([stream.next()[:, 0] for _ in range(batches)]).tolist()


def test_every_epoch_gives_every_token_once_and_nothing_is_dropped():
    with Stream(Rows(100), batch=7, seed=3) as stream:
        rows = numbers(stream, 43)
    first, second = rows[:100], rows[100:200]
    assert sorted(first) == sorted(second) == list(range(100)) and first != second


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 120), st.integers(0, 9), st.integers(0, 20))
def test_seeking_equals_going_there(n_tokens, batch, seed, position):
    going, jumping = indices_of(n_tokens, batch, seed, 0), indices_of(n_tokens, batch, seed, position)
    for _ in range(position):
        next(going)
    assert all(torch.equal(next(going), next(jumping)) for _ in range(3))
    counts = Counter(torch.cat([next(indices_of(n_tokens, batch, seed, p)) for p in range(n_tokens)]).tolist())
    assert set(counts.values()) == {batch}


def test_position_and_seek():
    stream, other = Stream(Rows(100), batch=9, seed=1, scale=2.0), Stream(Rows(100), batch=9, seed=1, scale=2.0)
    whole = [stream.next() for _ in range(30)]
    assert stream.position == 30 and whole[0].dtype == torch.float32
    other.seek(17)
    assert torch.equal(other.next(), whole[17]) and other.position == 18
    stream.seek(4)
    assert torch.equal(stream.next(), whole[4])
    stream.close()
    assert torch.equal(stream.next(), whole[5])
    assert not torch.equal(Stream(Rows(100), batch=9, seed=2, scale=2.0).next(), whole[0])
    assert max(batch.max() for batch in whole) == 198


def test_batches_mix_documents():
    lengths = torch.randint(50, 4000, (400,), generator=torch.Generator().manual_seed(0)).numpy()
    documents = np.repeat(np.arange(400), lengths)
    indices = indices_of(len(documents), 512, seed=0, position=0)
    assert min(len(np.unique(documents[next(indices).numpy()])) for _ in range(50)) >= 64


def test_a_nan_in_a_batch_is_refused():
    class Bad(Rows):
        def rows(self, indices):
            return torch.full((len(indices), 2), float("inf"))

    stream = Stream(Bad(10), batch=3, seed=0)
    with pytest.raises(UserError, match="shard x"):
        stream.next()


def test_working_ahead_gives_the_same_batches():
    plain = Stream(Rows(100), batch=9, seed=1)
    with Stream(Rows(100), batch=9, seed=1, ahead=True) as ahead:
        for stream in (plain, ahead):
            stream.seek(3)
        assert all(torch.equal(plain.next(), ahead.next()) for _ in range(20))


def test_no_thread_is_left():
    before = threading.active_count()
    with Stream(Rows(1000), batch=10, seed=0, ahead=True) as stream:
        stream.next()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    forgotten = Stream(Rows(1000), batch=10, seed=0, ahead=True)
    forgotten.next()
    del forgotten
    assert threading.active_count() == before


def test_prefetch_passes_items_and_errors_on_in_order():
    def source():
        yield 1
        yield 2
        raise KeyError("broken")

    ahead = Prefetch(source())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert list(Prefetch(range(5))) == [0, 1, 2, 3, 4]


def test_a_real_cache(load, stories, tmp_path):
    from metasae.data.cache.activations import harvest
    from metasae.recipe import recipe

    from .test_activations import SPEC, doctor

    text = recipe.Text(source="stories", context=16)
    cache = harvest(load("gpt2", "blocks.1.hook_resid_pre"), text, SPEC, tmp_path, {"train": 3000}, documents=stories)
    split = cache.split("train")
    with Stream(split, batch=256, seed=0, scale=0.5) as stream:
        x_BD = stream.next()
    order = next(indices_of(3000, 256, 0, 0))
    assert torch.equal(x_BD, split.rows(order) * 0.5)
    assert len(np.unique(split.documents[order.numpy()])) > 0.9 * len(np.unique(split.documents))
    doctor(cache, "train-00001.safetensors")
    from metasae.data.cache.cache import ActivationCache

    with (
        Stream(ActivationCache(tmp_path).split("train"), batch=1500, seed=0) as stream,
        pytest.raises(UserError, match="train-00001"),
    ):
        for _ in range(2):
            stream.next()
