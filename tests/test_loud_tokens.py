"""Tokens of enormous norm and special tokens inside documents are left out, whatever the model and their place."""

from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AddedToken

from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import ActivationCache
from metasae.data.cache.loud import counting, in_words, limit_of
from metasae.data.cache.stream import Stream
from metasae.data.model.hooks import layers_of
from metasae.data.split import Part, Rows, head, in_text
from metasae.measures.effect.effects import CausalEffect
from metasae.measures.effect.output import output_effect, output_reference
from metasae.measures.firing import store
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.firing.firings import fire, joined
from metasae.measures.firing.store import is_store_of, open_firings, write_firings
from metasae.measures.suite import measure_sae, reference_of
from metasae.progress.progress import Progress
from metasae.recipe import recipe
from metasae.sae.sae import SAE, SAEConfig
from sources import tokenizer_for

POINT = "blocks.1.hook_resid_pre"
TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=500, shard_tokens=700)
TOKENS = {"train": 600, "calibration": 400, "evaluation": 600}
MEASURE = recipe.Measure(
    tokens=2000, calibration_tokens=2000, output_tokens=0, meta_steps=2, critics=1, pursuit_k=0, concepts=0, lift=False
)
CAUSAL = ["gpt2", "llama", "neox", "gemma", "gemma2", "gemma3", "mistral", "qwen2", "qwen3", "phi3", "smollm3"]


class Twin:
    """The obvious way: a cache in memory that holds nothing but the tokens that are no sink."""

    fingerprint = text = "twin"

    def __init__(self, whole: ActivationCache, is_sink):
        self.splits = {}
        for name in TOKENS:
            split = whole.split(name)
            kept = np.flatnonzero(~is_sink(split))
            columns = tuple(np.asarray(getattr(split, column))[kept] for column in ("tokens", "documents", "positions"))
            self.splits[name] = Rows(split.rows(kept), columns)

    def split(self, name):
        return self.splits[name]


def planted(host, where):
    """3,000 in one direction of what leaves block 0 at the tokens where(ids) says; hooks that are to be removed."""
    ids = []

    def read(_module, args):
        ids[:] = args[:1]

    def louder(_module, _args, output):
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[..., 1] += 3000.0 * where(ids[0])
        return (x, *output[1:]) if isinstance(output, tuple) else x

    first = layers_of(host.model, 3)[1][0]
    embeddings = host.model.get_input_embeddings()
    handles = [embeddings.register_forward_pre_hook(read), first.register_forward_hook(louder)]
    return SimpleNamespace(remove=lambda: [handle.remove() for handle in handles])


def sae_of(cache) -> SAE:
    generator = torch.Generator().manual_seed(0)
    sae = SAE(SAEConfig(cache.split("train").rows([0]).shape[1], 40, k=4))
    sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=generator))
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1))
    sae.b_dec.copy_(cache.split("train").mean.float())
    return sae


@pytest.mark.parametrize(
    "family, bos", [*product(CAUSAL, [True, False]), ("bert", True), ("roberta", True), ("xlm-roberta", True)]
)
def test_everything_is_as_without_the_sinks(load, stories, tmp_path, family, bos):
    """Without BOS the first token of a window is the sink, with it (and in encoders) a delimiter is."""
    host = load(family, POINT, bos)
    delimiter = host.tokenizer(",", add_special_tokens=False)["input_ids"][0]
    room = host.frame.room(TEXT.context)
    if bos:
        hook = planted(host, lambda ids: (ids == delimiter).float())
    else:
        hook = planted(host, lambda ids: (torch.arange(ids.shape[1]) == 0).float().expand(ids.shape))

    def is_sink(split):
        return split.tokens == delimiter if bos else split.positions % room == 0

    try:
        cache = harvest(host, TEXT, SPEC, tmp_path / "cache", TOKENS, documents=stories)
    finally:
        hook.remove()
    everything = ActivationCache(tmp_path / "cache")
    twin = Twin(everything, is_sink)
    n_sinks = sum(int(is_sink(everything.split(name)).sum()) for name in TOKENS)
    assert n_sinks > 20 and cache.left_out.startswith(f"{n_sinks:,} tokens")
    sae = sae_of(twin)
    for name in TOKENS:
        ours, theirs = cache.split(name), twin.split(name)
        assert torch.equal(ours.rows(np.arange(ours.n_tokens)), theirs.rows(np.arange(theirs.n_tokens)))
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-6) and ours.mean_square == pytest.approx(
            theirs.mean_square
        )
        with Stream(ours, 32, 0) as a, Stream(theirs, 32, 0) as b:
            assert all(torch.equal(a.next(), b.next()) for _ in range(3))
    calibration = calibrate(sae, head(twin.split("calibration"), 2000), 256)
    measures = [
        measure_sae(
            sae, None, some, MEASURE, calibration=calibration, reference=reference_of(some, MEASURE), folder=folder
        )
        for some, folder in ((cache, tmp_path / "firings"), (twin, None))
    ]
    for part in ("fidelity", "cooccurrence"):
        assert measures[0][part] == measures[1][part]
    assert measures[0]["conditions"]["n_tokens"] == twin.split("evaluation").n_tokens
    # with the sinks, the errors of the others drown
    with_sinks = measure_sae(
        sae, None, everything, MEASURE, calibration=calibration, reference=reference_of(everything, MEASURE)
    )
    assert with_sinks["fidelity"]["fvu"] != pytest.approx(measures[0]["fidelity"]["fvu"], rel=0.2)
    stored = open_firings(tmp_path / "firings")
    evaluation = everything.split("evaluation")
    last = int(np.flatnonzero(~is_sink(evaluation))[-1]) + 1
    assert np.array_equal(stored.tokens, evaluation.tokens[:last])
    assert np.array_equal(stored.left_out, np.flatnonzero(is_sink(evaluation))[: len(stored.left_out)])
    assert not np.diff(stored.indptr)[stored.left_out].any()


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("bos", [True, False])
def test_cross_entropy_is_that_of_the_other_tokens(load, stories, tmp_path, monkeypatch, family, bos):
    """Against a loop over windows: the sinks stay in the text with their own activation, and no average holds them."""
    monkeypatch.setattr(CausalEffect, "check", lambda *_: None)  # random models predict worse than chance
    host = load(family, POINT, bos)
    delimiter = host.tokenizer(",", add_special_tokens=False)["input_ids"][0]
    if bos:
        hook = planted(host, lambda ids: (ids == delimiter).float())
    else:
        hook = planted(host, lambda ids: (torch.arange(ids.shape[1]) == 0).float().expand(ids.shape))
    try:
        cache = harvest(host, TEXT, SPEC, tmp_path / "cache", TOKENS, documents=stories)
        sae = sae_of(cache)
        calibrate(sae, head(cache.split("calibration"), 2000), 256)
        split = cache.split("evaluation")
        reference = output_reference(host, split, 300, TEXT.context, split.mean.float())
        numbers = output_effect(host, sae, reference)
        losses = slow_losses(host, sae, ActivationCache(tmp_path / "cache").split("evaluation"), delimiter, bos)
    finally:
        hook.remove()
    assert numbers["output_tokens"] == len(losses["clean"]) > 50
    for name, values in losses.items():
        assert numbers[f"ce_{name}"] == pytest.approx(np.mean(values), rel=1e-4), name


def slow_losses(host, sae, whole, delimiter, bos):
    """Window by window, token by token, of the first 300 tokens that are no sink."""
    room, losses = host.frame.room(TEXT.context), {"clean": [], "sae": []}
    is_sink = whole.tokens == delimiter if bos else whole.positions % room == 0
    last = int(np.flatnonzero(~is_sink)[299]) + 1
    first = 0
    while first < last:
        end = first + 1
        while end < last and whole.positions[end] == whole.positions[end - 1] + 1 and whole.positions[end] % room:
            end += 1
        ids = torch.tensor([[*host.frame.prefix, *whole.tokens[first:end].tolist()]])
        counted = torch.tensor([[False] * len(host.frame.prefix) + (~is_sink[first:end]).tolist()])

        def change(x, counted=counted):
            x = x.clone()
            x[counted] = sae(x[counted])
            return x

        for name, replacement in {"clean": None, "sae": change}.items():
            logs = host.output(ids, torch.ones_like(ids), replacement)[0].log_softmax(-1)
            for place in range(ids.shape[1] - 1):
                if counted[0, place] and counted[0, place + 1]:
                    losses[name].append(-float(logs[place, ids[0, place + 1]]))
        first = end
    return losses


def test_nothing_changes_where_no_token_is_loud(load, stories, tmp_path):
    cache = harvest(load("llama", POINT), TEXT, SPEC, tmp_path / "cache", TOKENS, documents=stories)
    assert cache.left_out == "" and cache.longest < np.inf
    for name in TOKENS:
        assert cache.split(name).n_tokens == TOKENS[name]
        assert in_text(head(cache.split(name), 300))[1] is None


def test_special_tokens_inside_documents_are_left_out(load, stories, tmp_path, capsys):
    from metasae.data.text.records import TokenIds

    host = load("llama", POINT)
    eos, bos = host.tokenizer.eos_token_id, host.tokenizer.bos_token_id
    ids = [host.tokenizer(story, add_special_tokens=False)["input_ids"] for story in stories]
    documents = [TokenIds(np.array([*some, eos, *some[:3], bos, *some[3:]]), "a record") for some in ids]
    cache = harvest(host, TEXT, SPEC, tmp_path / "cache", TOKENS, Progress(), documents)
    assert "training reads them again" not in capsys.readouterr().err
    whole = ActivationCache(tmp_path / "cache", longest=np.inf)
    for name in TOKENS:
        assert not np.isin(cache.split(name).tokens, [eos, bos]).any()
        assert np.array_equal(cache.split(name).tokens, whole.split(name).tokens)
    assert "special tokens inside documents" in cache.left_out and "longer" not in cache.left_out


def test_special_tokens_of_any_list_are_left_out():
    """transformers keeps some apart from those with a part of their own."""
    from metasae.data.model.host import special_ids

    tokenizer = tokenizer_for("llama", bos=True)
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("word")])
    turn, word = tokenizer.convert_tokens_to_ids(["<turn>", "word"])
    assert {turn, tokenizer.bos_token_id, tokenizer.eos_token_id} <= set(
        special_ids(tokenizer)
    ) and word not in special_ids(tokenizer)


def test_shards_of_an_earlier_release_have_their_norms_worked_out(load, stories, tmp_path):
    from safetensors.torch import load_file, save_file

    cache = harvest(load("gpt2", POINT), TEXT, SPEC, tmp_path / "cache", TOKENS, documents=stories)
    norms, index = cache.split("train").norms, (tmp_path / "cache" / "index.json").read_text()
    for file in (tmp_path / "cache").glob("*-?????.safetensors"):
        tensors = load_file(file)
        size = file.stat().st_size
        del tensors["norms"]
        save_file(tensors, file)
        index = index.replace(f'"bytes": {size}', f'"bytes": {file.stat().st_size}')
    (tmp_path / "cache" / "index.json").write_text(index)
    assert np.allclose(ActivationCache(tmp_path / "cache").split("train").norms, norms)


class Loud(Rows):
    """A split in memory of which some tokens are left out."""

    def __init__(self, kept, n=60, d=6):
        from metasae.data.split import Chosen

        generator = torch.Generator().manual_seed(1)
        documents = np.repeat(np.arange(6), n // 6).astype(np.int32)
        columns = (np.arange(n, dtype=np.int32), documents, np.tile(np.arange(n // 6, dtype=np.int32), 6))
        super().__init__(torch.randn(n, d, generator=generator), columns)
        self.chosen = Chosen(self, np.asarray(kept))


@pytest.mark.parametrize(
    "kept", [range(0, 60, 2), range(1, 60), range(0, 59), [7], [0, 59], [*range(10), *range(40, 60)], range(30, 40)]
)
@pytest.mark.parametrize("cuts", [[], [1], [2, 5], [9, 10]])
def test_stretches_of_parts_tile_the_text(kept, cuts):
    split = Loud(kept).chosen
    bounds = [0, *(cut for cut in cuts if cut < split.n_tokens), split.n_tokens]
    parts = [Part(split, a, b) for a, b in pairwise(bounds)]
    texts, owns = zip(*(in_text(part) for part in parts), strict=True)
    tokens = np.concatenate([text.tokens for text in texts])
    assert np.array_equal(tokens, np.arange(kept[-1] + 1))
    assert np.array_equal(tokens[np.concatenate(owns)], split.tokens)


@pytest.mark.parametrize("kept", [range(0, 60, 2), range(1, 60), [7], [*range(10), *range(40, 60)]])
def test_the_store_holds_the_text_and_the_firings_of_what_counts(tmp_path, kept):
    split = Loud(kept).chosen
    sae = sae_of(type("Cache", (), {"split": lambda *_: split})())
    sae.threshold = torch.full((40,), 0.5)
    stored, plain = write_firings(sae, split, tmp_path / "store", batch=7), fire(sae, split, 7)
    assert is_store_of(tmp_path / "store", sae, split)
    counted = stored.counted
    for name in ("indptr", "indices", "values", "documents", "tokens", "positions"):
        assert np.array_equal(getattr(counted, name), getattr(plain, name)), name
    assert stored.n_tokens == kept[-1] + 1 and np.array_equal(stored.counts(), plain.counts())
    for row, token in enumerate(kept):
        entries = slice(stored.indptr[token], stored.indptr[token + 1])
        theirs = slice(plain.indptr[row], plain.indptr[row + 1])
        assert np.array_equal(stored.indices[entries], plain.indices[theirs])


def test_stores_of_several_ranks_are_joined_to_that_of_one(tmp_path):
    split = Loud([*range(3, 10), *range(12, 41), *range(45, 60)]).chosen
    sae = sae_of(type("Cache", (), {"split": lambda *_: split})())
    sae.threshold = torch.full((40,), 0.5)
    alone = write_firings(sae, split, tmp_path / "alone", batch=7)
    parts = [Part(split, a, b) for a, b in pairwise([0, 14, 28, split.n_tokens])]
    own = [write_firings(sae, part, tmp_path / f"rank{rank}", batch=7) for rank, part in enumerate(parts)]
    together = store._write(sae, split, tmp_path / "together", joined([firings.counted for firings in own]))
    for name in ("indptr", "indices", "values", "documents", "tokens", "positions", "left_out"):
        assert np.array_equal(getattr(together, name), getattr(alone, name)), name


def test_limits():
    norms = np.array([1.0, 2.0, 3.0, np.inf, 100.0], np.float32)
    assert limit_of(norms, 8) == 8 * 2.5 and limit_of(norms, 0) == np.inf and limit_of(norms[3:4], 8) == np.inf
    assert counting(norms, 20.0).tolist() == [True, True, True, False, False]
    assert counting(norms, np.inf).tolist() == [True, True, True, False, True]
    assert limit_of(np.empty(0), 8) == np.inf


def test_what_is_left_out_is_said():
    usual, sinks = np.full(98, 1.0), np.array([500.0, 600.0])
    assert in_words([usual, sinks], 8, 8.0) == ("2 tokens (2%) with activations longer than 8 times the median norm")
    assert in_words([usual], 8, 8.0) == ""
    heavy = np.concatenate([usual, [7.0, 9.0, 20.0]])
    assert "norms have no gap there: 0.99% are above 16 times; harvest.norm_limit=16" in in_words([heavy], 8, 8.0)
    assert in_words([usual, [np.inf]], 0, np.inf) == "1 special tokens inside documents"
