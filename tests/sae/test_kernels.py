"""Fast kernels against the plain ones: the same entries kept, the same sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasae.sae.kernels import fast, reference
from metasae.sae.kernels.kept import Kept, _segment_sums


def pre_activations(case, B=33, N=48, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    pre = torch.randn(B, N, generator=generator)
    if case == "ties":
        pre = (pre * 2).round() / 2
    if case == "all zero":
        pre = torch.zeros(B, N)
    if case == "all negative":
        pre = -pre.abs() - 1
    if case == "few positive":
        pre = torch.where(torch.rand(B, N, generator=generator) < 0.01, pre.abs(), -pre.abs())
    if case == "one hot latent":
        pre[:, 7] = 50 + pre[:, 7]
    if case == "constant":
        pre = torch.full((B, N), 1.5)
    if case == "minus zero":
        pre = torch.where(pre > 1, pre, -0.0)
    if case == "one row":
        pre = pre[:1]
    return pre.to(dtype)


CASES = [
    "random",
    "ties",
    "all zero",
    "all negative",
    "few positive",
    "one hot latent",
    "constant",
    "minus zero",
    "one row",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("keep", [1, 40, 200, 5000])
@pytest.mark.parametrize("cut", [0.0, 0.3, 100.0])
def test_select_keeps_the_same_entries(case, dtype, keep, cut):
    pre = pre_activations(case, dtype=dtype)
    expected, _ = reference.select(pre, keep)
    kept, _ = fast.select(pre, keep, cut)
    assert torch.equal(kept.rows, expected.rows)
    assert torch.equal(kept.latents, expected.latents)
    assert torch.equal(kept.values, expected.values)
    assert torch.equal(kept.offsets, expected.offsets)
    assert kept.values.numel() == min(keep, int((pre > 0).sum()))


def test_select_by_hand():
    pre = torch.tensor([[3.0, -1.0, 2.0], [2.0, 0.0, 5.0]])
    kept, _ = fast.select(pre, 3)
    # 5, 3, and of the two 2s the one with the lower flat index
    assert kept.rows.tolist() == [0, 0, 1]
    assert kept.latents.tolist() == [0, 2, 2]
    assert kept.values.tolist() == [3.0, 2.0, 5.0]
    assert kept.offsets.tolist() == [0, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 50), st.floats(0, 4))
def test_select_any_input(values, keep, cut):
    pre = torch.tensor([values], dtype=torch.float32)
    expected, _ = reference.select(pre, keep)
    kept, _ = fast.select(pre, keep, cut)
    assert torch.equal(kept.latents, expected.latents)


def test_warm_cut_is_carried():
    pre = pre_activations("random")
    _, cut = fast.select(pre, 100)
    again, _ = fast.select(pre, 100, cut)
    assert 0 < cut < float(again.values.min())


@pytest.mark.parametrize("case", CASES)
def test_products_equal_the_dense_ones(case):
    pre = pre_activations(case)
    B, N, D = *pre.shape, 20
    generator = torch.Generator().manual_seed(9)
    x, W = torch.randn(B, D, generator=generator), torch.randn(N, D, generator=generator)
    kept, _ = reference.select(pre, 90)
    torch.testing.assert_close(fast.decode(kept, W), reference.decode(kept, W), rtol=1e-5, atol=1e-5)
    dots = reference.entry_dots(kept, x, W)
    torch.testing.assert_close(fast.entry_dots(kept, x, W), dots, rtol=1e-5, atol=1e-5)
    ours = fast.latent_rows(kept, (kept.values, dots), (x, x))
    wanted = reference.latent_rows(kept, (kept.values, dots), (x, x))
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_encode(bias):
    generator = torch.Generator().manual_seed(1)
    x, W, b = (
        torch.randn(9, 8, generator=generator),
        torch.randn(12, 8, generator=generator),
        torch.randn(12, generator=generator),
    )
    b = b if bias else None
    expected = reference.encode(x.double(), W.double(), None if b is None else b.double(), torch.float64)
    torch.testing.assert_close(fast.encode(x, W, b, torch.float32), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.encode(x, W, b, torch.bfloat16).float(), expected.float(), rtol=3e-2, atol=6e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("keep", [1, 5, 47, 48, 60])
def test_rows_keep_the_same_entries(case, dtype, keep):
    pre = pre_activations(case, dtype=dtype)
    expected, kept = reference.select_rows(pre, keep), fast.select_rows(pre, keep)
    assert torch.equal(fast.keep_rows(pre, keep), reference.keep_rows(pre, keep))
    assert torch.equal(kept.latents, expected.latents)
    assert torch.equal(kept.values, expected.values)
    assert torch.equal(kept.values.new_tensor(kept.offsets.diff().tolist()), (pre > 0).sum(1).clamp(max=keep).float())


def test_rows_of_many_parts(monkeypatch):
    monkeypatch.setattr(fast, "_PART", 100)
    pre = pre_activations("ties", dtype=torch.bfloat16)
    assert torch.equal(fast.keep_rows(pre, 5), reference.keep_rows(pre, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns(dtype):
    pre, columns = pre_activations("random", dtype=dtype), torch.tensor([0, 3, 4, 47])
    assert torch.equal(fast.take_columns(pre, columns), pre[:, columns])


def test_row_topk_keeps_per_row():
    pre = pre_activations("ties")
    kept = reference.select_rows(pre, 4)
    dense = kept.dense()
    for row, out in zip(pre, dense, strict=True):
        assert (out > 0).sum() == min(4, int((row > 0).sum()))
        assert torch.equal(out[out > 0].sort().values, row[row > 0].sort(descending=True).values[:4].sort().values)


def test_kept_round_trip():
    pre = pre_activations("random")
    kept, _ = reference.select(pre, 77)
    assert isinstance(kept, Kept) and kept.dense().count_nonzero() == 77
    assert torch.equal(kept.fired(), kept.dense().any(0))
    torch.testing.assert_close(kept.latent_sums(kept.values), kept.dense().sum(0))


@pytest.mark.parametrize("case", CASES)
def test_latent_sums_on_a_gpu_are_the_same_sums(case):
    kept, _ = reference.select(pre_activations(case), 90)
    torch.testing.assert_close(_segment_sums(kept.latents, kept.values, kept.n_latents), kept.latent_sums(kept.values))
