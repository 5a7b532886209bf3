"""The selection over ranks beside the plain one on the whole matrix: ties, zeros, too few, wide ranges, uneven."""

import pytest
import torch
from threads import on_threads

from metasae.ranks.ranks import span_of
from metasae.sae.kernels import fast, reference
from metasae.train.sharded.step import LatentKernels
from metasae.train.sharded.threshold import select

B, N = 12, 23


def matrix(case: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    pre = torch.randn(B, N, generator=generator)
    return {
        "random": pre,
        "ties": (pre * 2).round() / 2,
        "all equal": torch.ones(B, N),
        "none positive": -pre.abs(),
        "zeros": torch.zeros(B, N),
        "few positive": torch.where(torch.rand(B, N, generator=generator) < 0.02, pre.abs() + 0.1, -1.0),
        "wide": pre.sign() * 10.0 ** torch.empty(B, N).uniform_(-38, 38, generator=generator),
        "tiny": pre * 1e-42,
        "one rank has all": torch.where(torch.arange(N) < 5, pre.abs() + 1, -1.0),
        "infinite": torch.where(pre > 1.5, torch.inf, pre),
    }[case]


CASES = [
    "random",
    "ties",
    "all equal",
    "none positive",
    "zeros",
    "few positive",
    "wide",
    "tiny",
    "one rank has all",
    "infinite",
]


def entries(kept, row_start=0, latent_start=0):
    return [
        (r + row_start, j + latent_start, v)
        for r, j, v in zip(kept.rows.tolist(), kept.latents.tolist(), kept.values.tolist(), strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_entries_as_one_process(case, dtype):
    pre = matrix(case).to(dtype)
    positive = pre[pre > 0].float()
    middle = float(positive.median()) if len(positive) else 1e-4
    tried = [
        (rows_spread, *counts)
        for rows_spread in (False, True)
        for counts in ((1, 0.0), (2 * B, middle), (3 * B, 1e30), (B * N, middle))
    ]
    told = on_threads(3, lambda ranks: [selected(pre, *case, ranks) for case in tried])
    for asked, parts in zip(tried, zip(*told, strict=True), strict=True):
        chosen = sorted(entry for part, _ in parts for entry in part)
        assert chosen == entries(reference.select(pre, asked[1])[0]), asked
        assert len({after for _, after in parts}) == 1, "the next cut must be the same on all ranks"


def selected(pre, rows_spread, keep, cut, ranks):
    own = span_of(B if rows_spread else N, ranks.size, ranks.rank)
    mine = (pre[own.start : own.stop] if rows_spread else pre[:, own.start : own.stop]).contiguous()
    kept, after = select(mine, keep, cut, ranks, pre.numel(), rows_spread)
    return entries(kept, **{"row_start" if rows_spread else "latent_start": own.start}), after


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("module", [reference, fast])
def test_largest_of_every_row(case, module):
    pre = matrix(case)
    # the last rank has no column at all, as with dead latents that all lie elsewhere
    parts = [pre[:, :5].contiguous(), pre[:, 5:].contiguous(), pre[:, :0].contiguous()]
    keeps = (1, 4, N - 1, N, N + 5)
    told = on_threads(
        3, lambda ranks: [LatentKernels(module, ranks, N).keep_rows(parts[ranks.rank], keep) for keep in keeps]
    )
    for keep, pieces in zip(keeps, zip(*told, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces, dim=1), reference.keep_rows(pre, keep)), keep


def test_spans_hold_everything_once():
    for n in range(1, 40):
        for size in range(1, 9):
            parts = [span_of(n, size, rank) for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n))
            assert [len(part) for part in parts if part] == [len(chunk) for chunk in torch.arange(n).chunk(size)]
