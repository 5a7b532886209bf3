"""Every format, architecture and normalisation against its equations in float64, on random SAEs in both dtypes."""

from pathlib import Path

import pytest
import torch

from metasae.errors import UserError
from metasae.interop import detect, export, load
from metasae.interop.detection import WRITTEN
from tools import peers
from tools.matrix import NORMALISATIONS, RULES, difference, matrix, outputs, random_sae

CASES = [
    (format, kind, normal)
    for format, kinds in peers.ARCHITECTURES.items()
    for kind in kinds
    for normal in peers.NORMALISATIONS[format]
]
READABLE = [case for case in CASES if case[2] != "constant_norm_rescale"]
EXACT = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("format", "architecture", "normalisation"), READABLE)
def test_what_is_loaded_exported_and_loaded_again_gives_the_same(tmp_path, format, architecture, normalisation, dtype):
    for seed in range(3):
        path = peers.make(format, architecture, normalisation, tmp_path / f"in{seed}", dtype, seed)
        x = peers.inputs(seed + 10)
        theirs = peers.run(format, path, x)
        assert detect(path) == format
        sae = load(path)
        ours = outputs(sae, x)
        assert difference(ours, theirs) < EXACT
        assert torch.equal(ours[0] > 0, theirs[0] > 0) and 0 < (ours[0] > 0).float().mean() < 1
        assert {tensor.dtype for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)} == {
            torch.float32
        }
        if format in WRITTEN:
            out = export(sae, format, tmp_path / f"out{seed}")
            assert difference(ours, peers.run(format, out, x)) < EXACT
            assert difference(outputs(load(out), x), ours) < EXACT
        # and through our own folder, to the bit
        again = load(export(sae, "metasae", tmp_path / f"own{seed}"))
        assert all(torch.equal(a, b) for a, b in zip(outputs(again, x), ours, strict=True))
        assert again.config == sae.config


@pytest.mark.parametrize("normalisation", ["none", "token"])
def test_what_cannot_be_represented_is_refused_with_the_reason(tmp_path, normalisation):
    path = peers.make("saelens", "standard", "constant_norm_rescale", tmp_path / "in")
    with pytest.raises(
        UserError, match="'constant_norm_rescale' cannot be represented: each token is divided by its norm"
    ):
        load(path)
    sae = random_sae("threshold per latent", normalisation)
    with pytest.raises(UserError, match="cannot be written as sparsify: sparsify keeps the k largest"):
        export(sae, "sparsify", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_our_saes_give_the_same_in_every_format_that_takes_them(tmp_path, rule, normalisation):
    taken = {}
    for seed in range(3):
        sae, x = random_sae(rule, normalisation, seed), peers.inputs(seed)
        ours = outputs(sae, x)
        for format in (name for name in WRITTEN if name in peers.ARCHITECTURES):
            out = tmp_path / f"{format}{seed}"
            try:
                export(sae, format, out)
            except UserError as error:
                taken[format] = False
                assert "cannot be written" in str(error) and not out.exists()
                continue
            taken[format] = True
            theirs = peers.run(format, out, x)
            assert torch.equal(theirs[0] > 0, ours[0] > 0)
            assert difference((ours[0], ours[0]), (theirs[0], theirs[0])) < EXACT
            assert difference(ours, theirs) < EXACT + _eps_of_the_normalisation(sae, x, format, ours)
    token = normalisation.startswith("token")
    assert (
        taken["saelens"]
        and taken["dictionary_learning"] is not token
        and taken["sparsify"] is (rule.startswith("topk") and not token)
    )
    assert taken["paper"] is ("no b_enc" in rule or not (rule.startswith("topk") or normalisation == "token_eps"))


def _eps_of_the_normalisation(sae, x, format, ours):
    """What a format adds that undoes the token normalisation with, or without, its eps: 1e-5 of the normalised one."""
    with_eps = format == "paper" and "batchtopk" in _paper_kind(sae)
    if sae.config.normalize == "none" or (sae.config.normalize == "token_eps") == with_eps:
        return 0.0
    _, mean, std = sae.normalise(x)
    return 1.01e-5 * float((((ours[1] - mean) / std).abs() / (1 + ours[1].abs())).max())


def _paper_kind(sae):
    return "jumprelu" if sae.b_enc.any() else "topk" if sae.config.rule == "topk" else "batchtopk"


def test_the_page_names_every_case_and_the_documentation_holds_it(tmp_path):
    page, documented = matrix(tmp_path), (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
    lines, written = table_of(page), table_of(documented[documented.index("## The matrix") :])
    for _, architecture, normalisation in CASES:
        assert any(line[:2] == [architecture, normalisation] for line in lines)
    numbers = [float(cell) for line in lines + written for cell in line[2:] if cell[:1].isdigit()]
    assert len(numbers) > 300 and max(numbers) < 1.2e-5
    # the documented numbers come from the libraries themselves, so only what is refused must be the same
    assert [hidden(line) for line in lines] == [hidden(line) for line in written]
    reasons = [line.strip() for line in page.splitlines() if line.startswith("[")]
    assert len(reasons) == 6 and all(why in documented for why in reasons)


def table_of(page):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]


def hidden(line):
    return [*line[:2], *("number" if cell[:1].isdigit() else cell for cell in line[2:])]
