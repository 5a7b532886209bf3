import math

import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae
from torch import nn

from metasae.data.model.readout import WholeLogits
from metasae.data.split import Chosen, Rows
from metasae.data.text.windows import Frame, cut
from metasae.errors import UserError
from metasae.measures.effect import output
from metasae.measures.effect.output import output_effect, output_reference, windows_of

D, VOCABULARY, CONTEXT = 8, 11, 6


class FakeHost:
    """An embedding, the hook point, a mixing of neighbours, and a read-out; prefix and suffix are special tokens."""

    def __init__(self, causal, seed=0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.causal, self.pad_id = causal, 0
        self.frame = Frame((9,), () if causal else (10,))
        self.embedding = torch.randn(VOCABULARY, D, generator=generator)
        self.last = scale * torch.randn(D, VOCABULARY if causal else 5, generator=generator)
        self.readout = WholeLogits(VOCABULARY)
        self.seen = []

    def output(self, ids, mask, replace=None):
        x = self.embedding[ids]
        x = x if replace is None else replace(x)
        self.seen.append((ids, mask, x))
        past = torch.cat([torch.zeros(len(x), 1, D), x[:, :-1]], 1)
        return (x + 0.5 * past) @ self.last

    before_readout = output


def split_for(lengths, context, host, seed=0):
    """A split of documents as the data room would harvest it, with the tokens that went in."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(1, 9, length).astype(np.int32) for length in lengths]
    split = FakeSplit(
        torch.cat([host.embedding[torch.from_numpy(t).long()] for t in tokens]), tokens=np.concatenate(tokens)
    )
    split.documents = np.concatenate([np.full(len(t), number * 3, np.int32) for number, t in enumerate(tokens)])
    split.positions = np.concatenate([np.arange(len(t), dtype=np.int32) for t in tokens])
    return split, tokens


def effect(host, sae, split, n_tokens, mean):
    return output_effect(host, sae, output_reference(host, split, n_tokens, CONTEXT, mean))


def test_windows_are_those_of_the_harvest():
    host = FakeHost(causal=False)
    split, tokens = split_for([3, 9, 4, 1, 8], CONTEXT, host)
    expected = [window for number, t in enumerate(tokens) for window in cut(t, number * 3, 4)]
    numbers = windows_of(split, split.n_tokens, 4)
    assert [(w.document, w.start, w.tokens.tolist()) for w in numbers] == [
        (w.document, w.start, w.tokens.tolist()) for w in expected
    ]
    assert sum(len(w) for w in windows_of(split, 10, 4)) == 10 and windows_of(split, 0, 4) == []


def test_encoder_against_the_definition():
    host, sae = FakeHost(causal=False), random_sae(D, 20, threshold=0.3)
    split, tokens = split_for([3, 9, 4], CONTEXT, host)
    mean = split.x.mean(0)
    numbers = effect(host, sae, split, 100, mean)
    per_token, pooled = {"sae": [], "mean": [], "zero": []}, {"sae": [], "mean": [], "zero": []}
    for t in tokens:
        for start in range(0, len(t), 4):
            ids = torch.tensor([[9, *t[start : start + 4], 10]])
            clean = host.output(ids, torch.ones_like(ids))[0]
            own = slice(1, ids.shape[1] - 1)
            for name, change in {"sae": sae, "mean": lambda x: mean.expand_as(x), "zero": torch.zeros_like}.items():

                def only_own(x, change=change, own=own):
                    x = x.clone()
                    x[:, own] = change(x[:, own])
                    return x

                changed = host.output(ids, torch.ones_like(ids), only_own)[0]
                per_token[name] += (1 - nn.functional.cosine_similarity(clean, changed, dim=-1))[own].tolist()
                pooled[name].append(float(1 - nn.functional.cosine_similarity(clean.mean(0), changed.mean(0), dim=0)))
    assert numbers["output_tokens"] == 16 and numbers["output_windows"] == len(pooled["sae"])
    for name, ending in (("sae", ""), ("mean", "_mean_ablated"), ("zero", "_zero_ablated")):
        assert numbers[f"output_cosine_distance{ending}"] == pytest.approx(np.mean(per_token[name]), abs=1e-5)
        assert numbers[f"output_cosine_distance_pooled{ending}"] == pytest.approx(np.mean(pooled[name]), abs=1e-5)


def test_special_positions_keep_their_activation():
    host, sae = FakeHost(causal=False), random_sae(D, 20, threshold=0.3)
    split, _ = split_for([4, 3], CONTEXT, host)
    effect(host, sae, split, 100, split.x.mean(0))
    for ids, mask, x in host.seen:
        special = (ids >= 9) | (mask == 0)
        assert torch.equal(x[special], host.embedding[ids[special]])
    ablated = [x[ids < 9] for ids, mask, x in host.seen if bool((x[(ids < 9) & (mask == 1)] == 0).all())]
    assert len(ablated) == 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("room", [0, 2**20])
def test_a_reference_serves_many_saes(causal, room, monkeypatch):
    monkeypatch.setattr(output, "KEPT_NUMBERS", room)
    host, saes = FakeHost(causal, scale=0.1), [random_sae(D, 20, seed=seed, threshold=0.3) for seed in (0, 1)]
    split, _ = split_for([3, 9, 4, 1], CONTEXT, host)
    alone = [effect(host, sae, split, 100, split.x.mean(0)) for sae in saes]
    reference = output_reference(host, split, 100, CONTEXT, split.x.mean(0))
    before = len(host.seen)
    assert [output_effect(host, sae, reference) for sae in saes] == alone and alone[0] != alone[1]
    assert len(host.seen) - before == 2 * len(reference.batches) * (2 if room == 0 else 1)


def test_causal_against_the_definition():
    host, sae = FakeHost(causal=True, scale=0.1), random_sae(D, 20, threshold=0.3)
    split, tokens = split_for([3, 9, 4, 1], CONTEXT, host)
    mean = split.x.mean(0)
    numbers = effect(host, sae, split, 100, mean)
    losses, divergences = {"clean": [], "sae": [], "mean": [], "zero": []}, []
    for t in tokens:
        for start in range(0, len(t), 5):
            own = t[start : start + 5]
            ids = torch.tensor([[9, *own]])
            changes = {"clean": lambda x: x, "sae": sae, "mean": lambda x: mean.expand_as(x), "zero": torch.zeros_like}
            logs = {}
            for name, change in changes.items():
                logits = host.output(
                    ids, torch.ones_like(ids), lambda x, change=change: torch.cat([x[:, :1], change(x[:, 1:])], 1)
                )[0]
                logs[name] = logits.log_softmax(-1)
                losses[name] += [-float(logs[name][place, ids[0, place + 1]]) for place in range(1, len(own))]
            divergences += (logs["clean"].exp() * (logs["clean"] - logs["sae"])).sum(-1)[1 : len(own)].tolist()
    ce = {name: np.mean(values) for name, values in losses.items()}
    assert numbers["output_tokens"] == len(divergences)
    for name in ce:
        assert numbers[f"ce_{name}"] == pytest.approx(ce[name], rel=1e-5)
    assert numbers["ce_delta"] == pytest.approx(ce["sae"] - ce["clean"], abs=1e-6)
    assert numbers["ce_delta_percent"] == pytest.approx(100 * (ce["sae"] - ce["clean"]) / ce["clean"], abs=1e-4)
    assert numbers["ce_recovered"] == pytest.approx((ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]), rel=1e-3)
    assert numbers["kl"] == pytest.approx(np.mean(divergences), rel=1e-4)


def test_tokens_that_are_left_out_stand_in_the_text_and_in_no_average():
    host, sae = FakeHost(causal=True, scale=0.1), random_sae(D, 20, threshold=0.3)
    plain, tokens = split_for([3, 9, 4, 1], CONTEXT, host)
    left_out = [0, 5, 6, 13]
    whole = Rows(plain.x, (plain.tokens, plain.documents, plain.positions))
    split = Chosen(whole, np.delete(np.arange(whole.n_tokens), left_out))
    numbers = effect(host, sae, split, 100, plain.x.mean(0))
    losses, first = {"clean": [], "sae": []}, 0
    for t in tokens:
        for start in range(0, len(t), 5):
            own = t[start : start + 5]
            counted = [False, *(first + start + place not in left_out for place in range(len(own)))]
            ids = torch.tensor([[9, *own]])

            def change(x, counted=counted):
                x = x.clone()
                x[:, counted] = sae(x[:, counted])
                return x

            for name, replacement in {"clean": None, "sae": change}.items():
                logs = host.output(ids, torch.ones_like(ids), replacement)[0].log_softmax(-1)
                scored = [place for place in range(1, len(own)) if counted[place] and counted[place + 1]]
                losses[name] += [-float(logs[place, ids[0, place + 1]]) for place in scored]
        first += len(t)
    assert numbers["output_tokens"] == len(losses["clean"]) > 3
    for name, values in losses.items():
        assert numbers[f"ce_{name}"] == pytest.approx(np.mean(values), rel=1e-5)


def test_a_model_worse_than_guessing_is_refused():
    host = FakeHost(causal=True, scale=30.0)
    split, _ = split_for([6, 6, 6], CONTEXT, host)
    with pytest.raises(UserError, match=f"worse than guessing \\({math.log(VOCABULARY):.2f}\\)"):
        effect(host, random_sae(D, 20, threshold=0.3), split, 100, split.x.mean(0))


@pytest.mark.parametrize("causal", [True, False])
def test_no_tokens(causal):
    host = FakeHost(causal)
    split, _ = split_for([1], CONTEXT, host)
    numbers = effect(host, random_sae(D, 20, threshold=0.3), split, 0, torch.zeros(D))
    assert numbers["output_tokens"] == 0 and "ce_sae" not in numbers
