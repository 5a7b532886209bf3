"""The logit lens: the largest and smallest logits of a decoder row, against the whole product."""

import pytest
import torch
from explored import random_firings, sae_of, write_arm

from metasae.data.model.readout import readout_of
from metasae.explore.pages.queries import Explorer
from metasae.explore.store import logits
from metasae.explore.store.build import build as build_store
from metasae.explore.store.firing_rows import token_texts
from metasae.sae.sae import SAE

POINT = "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_lens_equals_the_whole_product(load, family):
    host = load(family, POINT)
    norm = logits.last_norm(host)
    assert norm is not None
    rows = torch.randn(7, host.d, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # another shift and other gains than a new model's
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        weight = host.model.get_output_embeddings().weight
        whole = (norm(rows) - norm(torch.zeros(1, host.d))) @ weight.T
    whole -= whole.mean(1, keepdim=True)
    up, down = (
        logits.lens(rows, readout_of(host.model), norm)
        if family != "gemma2"
        else logits.lens(rows, logits.LinearReadOut(weight, None, None), norm)
    )
    for (ids, values), largest in ((up, True), (down, False)):
        expected = whole.topk(10, dim=1, largest=largest)
        assert torch.allclose(values, expected.values, atol=1e-5)
        assert torch.allclose(whole.gather(1, ids), expected.values, atol=1e-5)


def test_slices_and_tiles_change_nothing(load, monkeypatch):
    host = load("gpt2", POINT)
    rows = torch.randn(9, host.d, generator=torch.Generator().manual_seed(0))
    whole = logits.lens(rows, readout_of(host.model), None)
    monkeypatch.setattr("metasae.data.model.readout.SLICE", 7)
    monkeypatch.setattr(logits, "ROWS", 2)
    for side, same in zip(logits.lens(rows, readout_of(host.model), None), whole, strict=True):
        assert torch.equal(side[0], same[0])
        assert torch.allclose(side[1], same[1], atol=1e-6)


def test_the_pages_of_a_causal_run_have_it(build, tmp_path):
    folder = build("llama")
    (tmp_path / "recipe.toml").write_text(f'[model]\npath = "{folder}"\ndtype = "fp32"\n[hook]\npoint = "{POINT}"\n')
    write_arm(tmp_path, "solo-s0", random_firings())
    sae = sae_of(12, d=32)
    sae.save(tmp_path / "arms" / "solo-s0" / "primary")
    build_store(tmp_path)
    explorer = Explorer(tmp_path)
    assert explorer.overview()["causal"]
    from metasae.data.model.host import Host
    from metasae.recipe import recipe

    host = Host.load(recipe.Model(path=str(folder), dtype="fp32"), POINT)
    row = SAE.load(tmp_path / "arms" / "solo-s0" / "primary").W_dec[3:4]
    up, down = logits.lens(row, readout_of(host.model), logits.last_norm(host))
    shown = explorer.latent("solo-s0", 3)["logits"]
    assert [token for token, _ in shown["up"]] == token_texts(host.tokenizer, up[0][0])
    assert [value for _, value in shown["down"]] == pytest.approx(down[1][0].tolist(), rel=1e-3)
    assert explorer.latent("solo-s0", 3)["windows"][0]["tokens"]
