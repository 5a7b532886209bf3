import json
import tracemalloc

import numpy as np
import pytest
from fakes import FakeSplit, random_sae, random_split

from metasae.data.split import head
from metasae.errors import UserError
from metasae.measures.firing.firings import fire
from metasae.measures.firing.store import is_store_of, open_firings, sae_fingerprint, split_fingerprint, write_firings
from metasae.sae.sae import SAE

ARRAYS = ("indptr", "indices", "values", "documents", "tokens", "positions")


def same(stored, expected):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))
        assert getattr(stored, name).dtype == getattr(expected, name).dtype
    assert stored.n_latents == expected.n_latents


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_store_holds_what_fire_returns(normalize, batch, tmp_path):
    sae, split = random_sae(normalize=normalize, threshold=0.4), random_split(61)
    expected = fire(sae, split, batch)
    same(write_firings(sae, split, tmp_path / "f", batch), expected)
    stored = open_firings(tmp_path / "f")
    same(stored, expected)
    assert stored.l0 == expected.l0 and stored.counts().tolist() == expected.counts().tolist()
    np.testing.assert_array_equal(stored.csr.toarray(), expected.csr.toarray())


def test_nothing_is_read_into_memory_and_nothing_can_be_changed(tmp_path):
    stored = write_firings(random_sae(threshold=0.4), random_split(20), tmp_path / "f")
    for name in ARRAYS:
        assert isinstance(getattr(stored, name), np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            getattr(stored, name)[0] = 1


@pytest.mark.parametrize("n_tokens, threshold", [(0, 0.0), (0, 1e9), (1, 0.0), (10, 1e9), (10, float("inf"))])
def test_few_tokens_and_silent_saes(n_tokens, threshold, tmp_path):
    sae, split = random_sae(threshold=threshold), random_split(n_tokens)
    write_firings(sae, split, tmp_path / "f", 4)
    same(open_firings(tmp_path / "f"), fire(sae, split, 4))
    assert is_store_of(tmp_path / "f", sae, split)


def test_the_index_says_what_the_store_is(tmp_path):
    sae, split = random_sae(threshold=0.4), random_split(30)
    stored = write_firings(sae, split, tmp_path / "f")
    index = json.loads((tmp_path / "f" / "index.json").read_text())
    assert (index["n_tokens"], index["n_latents"], index["n_firings"]) == (30, 24, len(stored.values))
    assert index["l0"] == stored.l0
    assert index["sae"] == sae_fingerprint(sae) and index["split"] == split_fingerprint(split)
    assert np.fromfile(tmp_path / "f" / "indices.bin", "<i4").tolist() == stored.indices.tolist()
    assert (
        sum((tmp_path / "f" / f"{name}.bin").stat().st_size for name in ARRAYS) == 8 * len(stored.values) + 20 * 30 + 8
    )


def test_a_store_is_recognised(tmp_path):
    sae, split = random_sae(threshold=0.4), random_split(90)
    assert not is_store_of(tmp_path / "f", sae, split)
    write_firings(sae, split, tmp_path / "f")
    sae.save(tmp_path / "sae")
    assert is_store_of(tmp_path / "f", SAE.load(tmp_path / "sae"), FakeSplit(split.x))
    assert is_store_of(tmp_path / "f", sae, head(split, 90))
    for change in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        other = SAE.load(tmp_path / "sae")
        tensor = getattr(other, change)
        tensor[(1,) * tensor.ndim] += 1e-6
        assert not is_store_of(tmp_path / "f", other, split), change
    other = SAE.load(tmp_path / "sae")
    other.config.normalize = "token"
    assert not is_store_of(tmp_path / "f", other, split)
    for other in (
        head(split, 89),
        FakeSplit(split.x, document_length=8),
        FakeSplit(split.x, tokens=np.zeros(90)),
        FakeSplit(split.x + 1),
    ):
        assert not is_store_of(tmp_path / "f", sae, other)


def test_an_sae_without_threshold_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no threshold"):
        write_firings(random_sae(), random_split(3), tmp_path / "f")
    assert not list(tmp_path.iterdir())


class Stopped(FakeSplit):
    """A split that ends with an interrupt after some blocks."""

    def blocks(self, size):
        for number, block in enumerate(super().blocks(size)):
            if number == 2:
                raise KeyboardInterrupt
            yield block


def test_an_interrupt_leaves_the_store_that_was_there(tmp_path):
    sae, split = random_sae(threshold=0.4), random_split(61)
    with pytest.raises(KeyboardInterrupt):
        write_firings(sae, Stopped(split.x), tmp_path / "f", 7)
    assert not list(tmp_path.iterdir())
    write_firings(sae, split, tmp_path / "f", 7)
    with pytest.raises(KeyboardInterrupt):
        write_firings(sae, Stopped(split.x), tmp_path / "f", 7)
    same(open_firings(tmp_path / "f"), fire(sae, split, 7))


def test_a_store_is_replaced_while_it_is_open(tmp_path):
    sae, split = random_sae(threshold=0.4), random_split(61)
    before = write_firings(sae, split, tmp_path / "f")
    sae.threshold += 1
    after = write_firings(sae, split, tmp_path / "f")
    assert len(after.values) < len(before.values) == len(np.array(before.values))


@pytest.mark.parametrize("change, why", [
    ({"indptr": np.arange(9)}, "do not fit"),
    ({"positions": np.arange(3)}, "do not fit"),
    ({"values": np.zeros(2)}, "do not fit"),
])  # fmt: skip
def test_arrays_that_do_not_fit_each_other(change, why, tmp_path):
    write_firings(random_sae(threshold=0.4), random_split(10), tmp_path / "f")
    index = json.loads((tmp_path / "f" / "index.json").read_text())
    for name, values in change.items():
        values = values.astype(index["arrays"][name]["dtype"])
        values.tofile(tmp_path / "f" / f"{name}.bin")
        index["arrays"][name].update(shape=[len(values)], bytes=values.nbytes)
    (tmp_path / "f" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=why) as error:
        open_firings(tmp_path / "f")
    assert "delete the folder and write it again" in str(error.value)


def test_a_truncated_file(tmp_path):
    write_firings(random_sae(threshold=0.4), random_split(10), tmp_path / "f")
    file = tmp_path / "f" / "values.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(UserError, match=r"values.bin has \d+ bytes instead of"):
        open_firings(tmp_path / "f")


def test_memory_does_not_grow_with_the_text(tmp_path):
    class Repeated:
        """The same rows again and again."""

        def __init__(self, x, times):
            self.x, self.times, self.n_tokens = x, times, len(x) * times
            self.documents = self.tokens = self.positions = np.zeros(self.n_tokens, np.int32)

        def blocks(self, size):
            for _ in range(self.times):
                yield from self.x.split(size)

    sae, x = random_sae(threshold=0.0), random_split(512).x
    peaks = []
    for times in (4, 40):
        split = Repeated(x, times)
        tracemalloc.start()
        stored = write_firings(sae, split, tmp_path / f"{times}", 512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = 8 * len(stored.values) * 36 / 40
    assert grown > 1_000_000 and peaks[1] - peaks[0] < 0.1 * grown
