"""Cross-entropy with a real model of every family against a float64 re-computation, the identity SAE, and memory with a
large vocabulary."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae

from metasae.data.model.readout import LinearReadOut
from metasae.data.text.windows import pad
from metasae.measures.effect.output import output_effect, output_reference, windows_of
from metasae.sae.sae import SAE, SAEConfig

FAMILIES = ["gpt2", "llama", "gemma2", "neox"]
CONTEXT, POINT = 16, "blocks.1.hook_resid_pre"


def a_split(host, lengths=(20, 7, 1, 33, 12)):
    """Documents drawn from the model itself, so that it predicts them better than chance."""
    generator = torch.Generator().manual_seed(0)
    tokens = []
    for length in lengths:
        document = torch.randint(3, 380, (1, 1), generator=generator)
        while document.shape[1] < length:
            last = host.output(document[:, -CONTEXT:], torch.ones_like(document[:, -CONTEXT:]))[0, -1]
            document = torch.cat(
                [document, torch.multinomial((20 * last[3:380]).softmax(0), 1, generator=generator)[None] + 3], 1
            )
        tokens += document[0].tolist()
    tokens = np.array(tokens, dtype=np.int32)
    split = FakeSplit(torch.zeros(len(tokens), host.d), tokens=tokens)
    split.documents = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    split.positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return split


def in_float64(host, sae, split):
    """Mean cross-entropies by one whole float64 model run per window, one window at a time."""
    model = host.model.double()
    sums = {name: [] for name in ("clean", "sae", "zero")}
    sae = sae.double()
    changes = {"clean": lambda x: x, "sae": sae, "zero": torch.zeros_like}
    for window in windows_of(split, split.n_tokens, host.frame.room(CONTEXT)):
        ids, mask, own = pad([window], host.frame, host.pad_id)
        for name, change in changes.items():

            def only_own(x, change=change, own=own):
                return torch.where(own[..., None], change(x), x)

            log_p = host.output(ids, mask, only_own)[0].log_softmax(-1)
            assert log_p.dtype == torch.float64
            sums[name] += [
                -float(log_p[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1) if own[0, t] and own[0, t + 1]
            ]
    model.float()
    sae.float()
    return {name: np.mean(values) for name, values in sums.items()}, len(sums["clean"])


@pytest.mark.parametrize("family", FAMILIES)
def test_against_float64(family, load):
    host = load(family, POINT)
    assert isinstance(host.readout, LinearReadOut)
    sae, split = random_sae(host.d, 60, threshold=0.4), a_split(host)
    mean = torch.zeros(host.d)
    output = output_effect(host, sae, output_reference(host, split, 1000, CONTEXT, mean))
    wanted, n_tokens = in_float64(host, sae, split)
    assert output["output_tokens"] == n_tokens
    for name, value in wanted.items():
        assert output[f"ce_{name}"] == pytest.approx(value, abs=1e-5), name
    # the mean is zero here, so both ablations are the same
    assert output["ce_mean"] == output["ce_zero"] and output["kl_mean"] == output["kl_zero"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_sae_that_returns_its_input_changes_nothing(family, load):
    host = load(family, POINT)
    identity = SAE(SAEConfig(host.d, 2 * host.d, k=host.d))
    identity.W_enc.copy_(torch.cat([torch.eye(host.d), -torch.eye(host.d)], 1))
    identity.W_dec.copy_(identity.W_enc.t())
    identity.threshold = torch.zeros(2 * host.d)
    output = output_effect(host, identity, output_reference(host, a_split(host), 1000, CONTEXT, torch.zeros(host.d)))
    assert output["ce_delta"] == 0.0 and output["kl"] == 0.0 and output["ce_recovered"] == 1.0
    assert all(value == 0.0 for value in output["leave_one_out"]["ce_delta"])


def test_blocks_leave_out_whole_documents(load):
    host = load("gpt2", POINT)
    sae, split = random_sae(host.d, 60, threshold=0.4), a_split(host, (20, 20, 20, 20))
    output = output_effect(host, sae, output_reference(host, split, 1000, CONTEXT, torch.zeros(host.d)))
    one_left = a_split(host, (20, 20, 20, 20))
    keep = one_left.documents != 2
    for name in ("tokens", "documents", "positions", "x"):
        setattr(one_left, name, getattr(one_left, name)[keep])
    without = output_effect(host, sae, output_reference(host, one_left, 1000, CONTEXT, torch.zeros(host.d)))
    assert output["leave_one_out"]["ce_sae"][2] == pytest.approx(without["ce_sae"], rel=1e-6)
    assert output["leave_one_out"]["kl"][2] == pytest.approx(without["kl"], rel=1e-6)


def test_batch_topk_is_a_named_alternative(load):
    host = load("gpt2", POINT)
    sae, split = random_sae(host.d, 60, k=5, threshold=0.4), a_split(host)
    reference = output_reference(host, split, 1000, CONTEXT, torch.zeros(host.d), batch_tokens=10**6)
    output = output_effect(host, sae, reference, batch_topk=True)
    # with the whole text in one batch, BatchTopK is a global threshold: that of its smallest kept pre-activation
    ids, mask, own = (getattr(reference.batches[0], name) for name in ("ids", "mask", "own"))
    assert len(reference.batches) == 1
    pre = sae.pre_activations(host.activations(ids, mask)[own]).clamp(min=0).flatten().sort(descending=True).values
    sae.threshold = torch.full([60], float((pre[5 * int(own.sum()) - 1] + pre[5 * int(own.sum())]) / 2))
    fixed = output_effect(host, sae, reference)
    assert output["ce_delta_batch_topk"] == pytest.approx(fixed["ce_delta"], rel=1e-5)
    assert "ce_delta_batch_topk" not in fixed


def test_padding_and_batches_change_nothing(load):
    host = load("llama", POINT)
    sae, split = random_sae(host.d, 60, threshold=0.4), a_split(host)
    alone, together = (
        output_effect(host, sae, output_reference(host, split, 1000, CONTEXT, torch.zeros(host.d), batch_tokens=size))
        for size in (1, 10_000)
    )
    assert alone["ce_sae"] == pytest.approx(together["ce_sae"], rel=1e-6) and alone["kl"] == pytest.approx(
        together["kl"], rel=1e-4
    )


def status(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    return next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is only set back on Linux")
def test_memory_stays_flat_with_a_vocabulary_of_256k():
    """8 windows of 128 tokens, Gemma's vocabulary: below 2 GB beyond the model."""
    from metasae.measures.effect.effects import predictions

    d, vocabulary, tokens = 512, 256_000, 8 * 128
    readout = LinearReadOut(torch.randn(vocabulary, d).mul_(0.02), None, 30.0)
    hidden = {name: torch.randn(tokens, d) for name in ("clean", "mean", "zero")}
    next_ids = torch.randint(vocabulary, (tokens,))
    # the peak so far is that of loading; it is set back, so that what follows shows
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    predictions(readout, hidden, next_ids)
    beyond = status("VmHWM") - before
    print(f"{beyond / 1e9:.2f} GB beyond the model")
    assert 1e6 < beyond < 2e9
