"""The Triton kernels against the plain ones. Run by test_triton_kernels.py: on a GPU where there is one, else in
Triton's interpreter.

The interpreter takes about a millisecond per operation of a program, so shapes are small, and odd: no multiple of any
block.
"""

import pytest
import torch
from test_kernels import CASES, pre_activations

from metasae.recipe.recipe import Recipe
from metasae.sae.architectures import Options
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.gradients import Arithmetic
from metasae.sae.kernels import kernels, reference
from metasae.sae.kernels.kept import Kept
from metasae.sae.kernels.triton import decoding, encoding, segments, selection, toprows
from metasae.sae.optimiser import UnitRowAdam
from metasae.sae.sae import TOKEN_EPS, token_normalise
from metasae.sae.weights import Weights
from metasae.train.penalties.decomposability import decomposability, probe
from metasae.train.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = kernels("triton")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """On the CPU: tiles that small shapes fill more than one of."""
    if DEVICE.type == "cpu":
        small = encoding.Tiles(32, 64, 16, 4, 1, 2)
        monkeypatch.setattr(encoding, "TILES", {torch.bfloat16: small, torch.float32: small})
        monkeypatch.setattr(selection, "_BLOCK", 1024)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def pre_of(case, B, dtype=torch.float32):
    return pre_activations(case, B=B, dtype=dtype).to(DEVICE)


def same(one: Kept, other: Kept):
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("rows", "latents", "values", "offsets")
    )


def close(ours, wanted, tolerance=1e-5):
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_select(case, dtype):
    pre = pre_of(case, 33, dtype)
    for keep, cut in ((1, 0.0), (200, 0.3), (40, 100.0), (5000, 0.3)):
        expected, _ = reference.select(pre, keep)
        kept, next_cut = TRITON.select(pre, keep, cut)
        assert same(kept, expected)
        assert next_cut <= (float(kept.values.min()) if kept.values.numel() else 0.0)


def test_select_repeats_until_it_is_exact(monkeypatch):
    pre, searches = pre_of("random", 33), []
    whole = selection._search
    monkeypatch.setattr(selection, "_search", lambda *given: (searches.append(float(given[3])), whole(*given)))
    expected, _ = reference.select(pre, 100)
    low = float(expected.values.min())
    for cut, wanted in ((low * 0.99, 1), (low * 1.05, 2), (low * 0.3, 2)):
        searches.clear()
        assert same(TRITON.select(pre, 100, cut)[0], expected)
        # in turn: enough at once; too few, so a lower cut; more than there was room for, so more room
        assert len(searches) == wanted


def test_a_proposal_says_whether_it_was_enough():
    x, W = normal(9, 24), normal(70, 24, seed=1)
    pre = encoding.encode_tiles(x, W, None, torch.float32)
    expected, _ = reference.select(pre, 40)
    for cut, enough in ((float(expected.values.min()) * 0.95, True), (1e9, False), (0.0, False)):
        proposal = TRITON.encode_propose(x, W, None, 40, torch.full((1,), cut, device=DEVICE), torch.float32)
        assert int(proposal.n_above) == int((pre > cut).sum())
        assert (40 <= int(proposal.n_above) <= proposal.capacity) == enough
        if enough:
            assert same(proposal.kept, expected)
        # whatever was found, what is built on it stays within the matrices
        assert (
            int(proposal.kept.rows.max()) < 9
            and int(proposal.kept.latents.max()) < 70
            and int(proposal.kept.rows.min()) >= 0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("B", "n", "d"), [(33, 70, 24), (1, 17, 16)])
def test_encode_select_keeps_what_its_own_matrix_holds(B, n, d, bias, dtype):
    x, W, b = normal(B, d), normal(n, d, seed=1), normal(n, seed=2) if bias else None
    pre = encoding.encode_tiles(x, W, b, dtype)
    exact = reference.encode(x.double(), W.double(), None if b is None else b.double(), torch.float64).float()
    close(pre.float(), exact, 1e-4 if dtype == torch.float32 else 0.15)
    for keep, cut in ((2 * B, 0.0), (2 * B, 1000.0)):
        kept, _ = TRITON.encode_select(x, W, b, keep, cut, dtype)
        assert same(kept, reference.select(pre, keep)[0])


def test_encode_select_with_nothing_above_zero():
    x, W = normal(3, 8).abs(), -normal(5, 8, seed=1).abs()
    kept, cut = TRITON.encode_select(x, W, None, 6, 0.5, torch.float32)
    assert kept.values.numel() == 0 and kept.offsets.tolist() == [0] * 4 and cut == 0


@pytest.mark.parametrize("case", CASES)
def test_products_equal_the_dense_ones(case):
    pre = pre_of(case, 5)
    kept, _ = reference.select(pre, 23)
    x, W = normal(pre.shape[0], 20), normal(pre.shape[1], 20, seed=1)
    close(TRITON.decode(kept, W), reference.decode(kept, W))
    dots = reference.entry_dots(kept, x, W)
    close(TRITON.entry_dots(kept, x, W), dots)
    given = (kept, (kept.values, dots), (x, x))
    for one, other in zip(TRITON.latent_rows(*given), reference.latent_rows(*given), strict=True):
        close(one, other)


def test_products_of_bf16_tables():
    kept, _ = reference.select(pre_of("random", 4), 11)
    x, W = normal(4, 130).bfloat16(), normal(48, 130, seed=1).bfloat16()
    close(TRITON.decode(kept, W), reference.decode(kept, W.float()))
    close(TRITON.entry_dots(kept, x, W), reference.entry_dots(kept, x.float(), W.float()), 1e-4)
    (one,) = TRITON.latent_rows(kept, (kept.values,), (x,))
    close(one, reference.latent_rows(kept, (kept.values,), (x.float(),))[0])


@pytest.mark.parametrize("least", [-1, 6])
def test_long_segments_are_cut_and_added(least):
    """One latent fires everywhere, one token fires everything, some fire nothing."""
    pre = pre_of("random", 12).clamp(max=0)
    pre[:, 7], pre[4] = 2.0, 1.0
    kept = Kept.where(pre, pre > 0)
    table = normal(48, 20)
    out = torch.full((12, 20), 7.0, device=DEVICE)
    cut = segments.chunks(kept.offsets, kept.values.numel(), size=5, least=least)
    assert int(cut.end[-1]) <= cut.owner.numel() and int(cut.slot_end[-1]) <= cut.slot_owner.numel()
    segments.segment_sums(cut, kept.latents, None, (kept.values,), (table,), (out,))
    wanted = reference.decode(kept, table)
    if least >= 0:
        # segments of few entries are left as they are
        wanted[kept.offsets.diff() <= least] = 7.0
    close(out, wanted)


@pytest.mark.parametrize("long", [1024, 6])
@pytest.mark.parametrize("case", ["random", "one hot latent", "few positive", "one row"])
def test_residual(case, long, monkeypatch):
    monkeypatch.setattr(decoding, "LONG", long)
    pre = pre_of(case, 5)
    kept, _ = reference.select(pre, 31)
    W, xc = normal(48, 20), normal(pre.shape[0], 20, seed=1)
    r, squares, dots = TRITON.residual(kept, W, xc)
    wanted = xc - reference.decode(kept, W)
    close(r, wanted)
    close(squares, wanted.square().sum(1), 1e-4)
    close(dots, reference.entry_dots(kept, wanted, W), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_rows_keep_the_same_entries(case, dtype, monkeypatch):
    # two blocks per row, so that ties are counted across them
    monkeypatch.setattr(toprows, "_BLOCK", 32)
    pre = pre_of(case, 2, dtype)
    for keep in (3, 60):
        assert torch.equal(TRITON.keep_rows(pre, keep), reference.keep_rows(pre, keep))


def test_select_rows_and_columns():
    pre = pre_of("ties", 3)
    assert same(TRITON.select_rows(pre, 5), reference.select_rows(pre, 5))
    columns = torch.tensor([0, 3, 47], device=DEVICE)
    assert torch.equal(TRITON.take_columns(pre, columns), pre[:, columns])
    assert TRITON.keep_rows(TRITON.take_columns(pre, columns[:0]), 4).shape == (3, 0)


@pytest.mark.parametrize("renormalise", ["after", "before"])
def test_row_adam_steps_like_torchs(renormalise):
    def fresh():
        return Weights(
            normal(5, 20),
            torch.nn.functional.normalize(normal(5, 20, seed=1), dim=1),
            normal(20, seed=2),
            normal(5, seed=3),
        )

    settings = ((0.9, 0.999), 1e-8, 1.0, renormalise)
    plain, ours = fresh(), fresh()
    one, other = UnitRowAdam(plain, *settings), TRITON.RowAdam(ours, *settings)
    for step in range(4):
        # clipped and unclipped in turn
        gradients = [
            normal(*tensor.shape, seed=step) * (3.0 if step % 2 else 0.01) for tensor in plain.tensors().values()
        ]
        if step == 2:
            # a state that was saved and loaded goes on
            other = TRITON.RowAdam(ours, *settings)
            other.load_state({name: value.clone() for name, value in one.state().items()})
        one.step(Weights(*(tensor.clone() for tensor in gradients)), 1e-2)
        other.step(Weights(*(tensor.clone() for tensor in gradients)), 1e-2)
        for name, tensor in plain.tensors().items():
            close(getattr(ours, name), tensor, 1e-6)
    assert set(one.state()) == set(other.state())
    for name, value in one.state().items():
        close(other.state()[name], value, 1e-6)


@pytest.mark.parametrize("mode", ["token", "raw"])
@pytest.mark.parametrize("shared", [True, False])
def test_penalty_and_its_gradient(mode, shared):
    W = torch.nn.functional.normalize(normal(9, 20), dim=1)
    V = torch.nn.functional.normalize(normal(4, 20, seed=1), dim=1)
    # a row that the meta SAE holds as it is
    W[2] = V[1]
    meta = Weights(V.clone(), V, normal(20, seed=2) * 0.1)
    view = probe(W, meta, BatchTopK(Options(2)), 2, 0.0, mode, Arithmetic(reference, torch.float32))
    share = normal(9, seed=4).abs() if shared else None
    value, factor = decomposability(view, 1.3, share)
    rows, mean, std = TRITON.normalised(W, meta.b_dec_D, TOKEN_EPS, torch.float32)
    plain = token_normalise(W)
    close(rows, plain[0] - meta.b_dec_D)
    close(mean, plain[1][:, 0])
    close(std, plain[2][:, 0])
    into = normal(9, 20, seed=5)
    wanted = into + 0.7 * factor[:, None] * view.difference_ND
    token = mode == "token"
    e, p = TRITON.penalise(
        W, view.kept, V, meta.b_dec_D, mean if token else None, std if token else None, 1.3, 0.7, share, into
    )
    close(e, view.e_N)
    close(p.mean(), value)
    close(into, wanted)
    # all of it at once, the meta SAE's own selection too
    whole = normal(9, 20, seed=5)
    P, cut = TRITON.add_penalty(W, meta, 2, 0.0, token, torch.float32, 1.3, 0.7, share, whole)
    close(P, value)
    close(whole, wanted)
    assert cut > 0


JOINT = {
    "paper": ({}, {}),
    "options": ({"b_enc": True}, {"aux_residual": "attached", "balanced": True, "renormalise": "before"}),
    "matryoshka": ({"architecture": "matryoshka", "prefixes": [0.25, 1.0]}, {"adaptive_sigma": True}),
    "jumprelu": ({"architecture": "jumprelu"}, {"meta_gradient": "full"}),
    "atomic": ({"b_enc": True}, {"margin": 0.3}),
    "margin": ({}, {"nest": {"weight": 0.0}, "margin": 0.3}),
}


@pytest.mark.parametrize("case", JOINT)
def test_joint_steps_equal_the_plain_ones(case):
    def losses(name):
        sae, train = JOINT[case]
        train = {
            "tokens": 64,
            "batch": 8,
            "dtype": "fp32",
            "n_primary_steps": 1,
            "n_meta_steps": 1,
            "dead_after": 8,
            "k_aux": 3,
        } | train
        recipe = Recipe.load(
            {"sae": {"n": 24, "k": 3} | sae, "meta": {"n": 5, "k": 2}, "train": train | {"kernels": name}}
        )
        arm = "atomic-joint" if case in ("atomic", "margin") else "joint"
        trainer, out = Trainer(recipe, arm, 0, torch.zeros(12), str(DEVICE)), []
        for step in range(2 if arm == "joint" else 4):
            losses, _ = trainer.primary_step(normal(8, 12, seed=step))
            out += [losses.l2, losses.aux, losses.penalty, trainer.meta_step().total]
        return torch.stack(out)

    plain = losses("reference")
    assert float(plain[5]) > 0, "no dead latent: the auxiliary term was not looked at"
    close(losses("triton"), plain)


def test_results_are_the_same_from_run_to_run():
    x, W = normal(33, 24), normal(70, 24, seed=1)
    one, other = (TRITON.encode_select(x, W, None, 300, 0.1, torch.float32)[0] for _ in range(2))
    assert same(one, other)
    sums = [TRITON.latent_rows(one, (one.values, one.values), (x, x)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))
