import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae import UserError
from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import ActivationCache
from metasae.data.text.text import split_of
from metasae.data.text.windows import Frame
from metasae.recipe import recipe

TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=500, shard_tokens=700)
TOKENS = {"train": 3000, "calibration": 500, "evaluation": 1000}
POINT = "blocks.1.hook_resid_pre"


@pytest.fixture
def host(load):
    return load("gpt2", POINT)


@pytest.fixture(scope="module")
def harvested(load, stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harvested")
    harvest(load("gpt2", POINT), TEXT, SPEC, folder, TOKENS, documents=stories)
    return folder


@pytest.fixture
def cache(harvested, tmp_path):
    return ActivationCache(shutil.copytree(harvested, tmp_path / "cache"))


def test_every_token_is_where_it_should_be(cache, host, stories):
    room = Frame.of(host.tokenizer, True).room(TEXT.context)
    for name, count in TOKENS.items():
        split = cache.split(name)
        assert split.n_tokens == count == len(split.tokens) == len(split.documents) == len(split.positions)
        assert split.tokens.dtype == split.documents.dtype == split.positions.dtype == np.int32
        rows = split.rows(torch.arange(count))
        for number in np.unique(split.documents)[:6]:
            here = split.documents == number
            assert split_of(stories[number], TEXT) == name
            ids = host.tokenizer(stories[number], add_special_tokens=False)["input_ids"]
            if name == "train" or number != split.documents[-1]:
                assert split.tokens[here].tolist() == ids and split.positions[here].tolist() == list(range(len(ids)))
            window = torch.tensor([[host.bos_id, *ids[room : 2 * room]]])
            if window.shape[1] > 1 and (split.positions[here] >= room).sum() >= window.shape[1] - 1:
                direct = host.activations(window, torch.ones_like(window))[0, 1:]
                assert torch.allclose(rows[torch.from_numpy(here)][room : 2 * room], direct, atol=1e-5)


def test_splits_share_no_document(cache):
    train, calibration, evaluation = (set(cache.split(name).documents.tolist()) for name in TOKENS)
    assert not train & calibration and not train & evaluation and not calibration & evaluation


def test_rows_blocks_and_statistics_agree(cache):
    split = cache.split("train")
    assert len(cache.index["splits"]["train"]["shards"]) == 5
    whole = torch.cat(list(split.blocks(999)))
    assert whole.shape == (3000, 32) and whole.dtype == torch.float32
    indices = torch.randint(0, 3000, (500,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(split.rows(indices), whole[indices])
    assert torch.equal(split.rows(indices.numpy()), whole[indices])
    assert [len(block) for block in split.blocks(1400)] == [1400, 1400, 200]
    assert torch.allclose(split.mean, whole.double().mean(0)) and split.mean_square == pytest.approx(
        whole.double().square().sum(1).mean().item()
    )
    with pytest.raises(IndexError):
        split.rows([3000])


def test_activations_are_memory_mapped(cache):
    split = cache.split("train")
    split.rows([0, 2999])
    with open(f"/proc/{os.getpid()}/maps") as maps:
        assert "train-00000.safetensors" in maps.read()


def test_a_fitting_cache_is_used_as_it_is(cache, host, stories, monkeypatch):
    monkeypatch.setattr(type(host), "activations", lambda *_: pytest.fail("the model ran again"))
    again = harvest(host, TEXT, SPEC, cache.folder, TOKENS, documents=stories)
    assert again.fingerprint == cache.fingerprint and torch.equal(
        again.split("train").rows([5]), cache.split("train").rows([5])
    )
    fewer = harvest(host, TEXT, SPEC, cache.folder, {"train": 1000}, documents=stories).split("train")
    assert fewer.n_tokens == 1000 and torch.allclose(
        fewer.mean, cache.split("train").rows(np.arange(1000)).double().mean(0)
    )
    assert len(fewer.tokens) == 1000 and sum(map(len, fewer.blocks(300))) == 1000


def test_a_smaller_harvest_is_the_beginning_of_a_larger_one(cache, host, stories, tmp_path):
    small = harvest(host, TEXT, SPEC, tmp_path / "small", {"train": 1000}, documents=stories).split("train")
    large = cache.split("train")
    assert np.array_equal(small.tokens, large.tokens[:1000]) and np.array_equal(small.documents, large.documents[:1000])
    assert torch.allclose(small.rows(np.arange(1000)), large.rows(np.arange(1000)), atol=1e-5)


def test_another_harvest_in_the_folder_is_refused_and_named(cache, host, load, stories):
    with pytest.raises(UserError, match="dtype: fp32 there, bf16 here"):
        harvest(host, TEXT, recipe.Harvest(dtype="bf16"), cache.folder, TOKENS, documents=stories)
    with pytest.raises(UserError, match=r"text\.context: 16 there, 20 here"):
        harvest(host, TEXT.model_copy(update={"context": 20}), SPEC, cache.folder, TOKENS, documents=stories)
    with pytest.raises(UserError, match=r"point: blocks\.1\.hook_resid_pre there"):
        harvest(load("gpt2", "blocks.2.hook_resid_pre"), TEXT, SPEC, cache.folder, TOKENS, documents=stories)
    with pytest.raises(UserError, match=r"model: .* there"):
        harvest(load("llama", POINT), TEXT, SPEC, cache.folder, TOKENS, documents=stories)


def test_a_harvest_without_note_or_index_starts_anew(cache, host, stories):
    whole = cache.split("train").rows(np.arange(3000)).clone()
    (cache.folder / "index.json").unlink()
    with pytest.raises(UserError, match=r"no finished harvest .* it starts anew"):
        ActivationCache(cache.folder)
    save_file({"x": torch.zeros(1)}, cache.folder / "train-00099.safetensors")
    again = harvest(host, TEXT, SPEC, cache.folder, TOKENS, documents=stories)
    assert torch.equal(again.split("train").rows(np.arange(3000)), whole)
    assert not (cache.folder / "train-00099.safetensors").exists()


def test_damaged_shards_are_named(cache):
    shard = cache.folder / "train-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"train-00001.safetensors is damaged.*delete the cache folder"):
        ActivationCache(cache.folder)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(UserError, match=r"train-00001.safetensors is damaged"):
        ActivationCache(cache.folder)
    shard.unlink()
    with pytest.raises(UserError, match="it is missing"):
        ActivationCache(cache.folder)
    (cache.folder / "index.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        ActivationCache(cache.folder)


def test_a_nan_in_the_model_is_refused(host, stories, tmp_path):
    with torch.no_grad():
        host.model.transformer.wte.weight[7:].fill_(float("nan"))
    with pytest.raises(UserError, match=r"NaN or inf activations at 'blocks\.1\.hook_resid_pre'"):
        harvest(host, TEXT, SPEC, tmp_path / "nan", TOKENS, documents=stories)
    assert not (tmp_path / "nan" / "index.json").exists()


def test_a_nan_in_a_shard_is_found_by_blocks(cache):
    doctor(cache, "train-00002.safetensors")
    with pytest.raises(UserError, match=r"NaN or inf activation in .*train-00002"):
        list(ActivationCache(cache.folder).split("train").blocks(600))


def doctor(cache, name):
    """Puts a NaN into a shard without changing its size."""
    tensors = {key: value.clone() for key, value in load_file(cache.folder / name).items()}
    tensors["activations"][3, 3] = float("nan")
    save_file(tensors, cache.folder / name)


def test_too_little_text(host, stories, tmp_path):
    class Lines:
        enabled = True

        def __init__(self):
            self.lines = []

        def say(self, line):
            self.lines.append(line)

        def task(self, *args):
            from metasae.progress.progress import SILENT

            return SILENT.task(*args)

    progress = Lines()
    cache = harvest(
        host, TEXT, SPEC, tmp_path / "short", {"train": 10**6, "calibration": 10}, progress, documents=stories
    )
    assert 3000 < cache.split("train").n_tokens < 10**6 and "training reads them again" in progress.lines[0]
    harvest(host, TEXT, SPEC, tmp_path / "short", {"train": 2 * 10**6}, progress, documents=stories)
    assert len(progress.lines) == 2
    with pytest.raises(UserError, match=r"gives [\d,]+ evaluation tokens of the 1,000,000 asked for"):
        harvest(host, TEXT, SPEC, tmp_path / "eval", {"train": 10, "evaluation": 10**6}, documents=stories)
    with pytest.raises(UserError, match=r"set text.context=64"):
        harvest(host, recipe.Text(context=65), SPEC, tmp_path / "long", TOKENS, documents=stories)


@pytest.mark.parametrize(("family", "bos"), [("bert", False), ("llama", True), ("neox", False)])
def test_other_families_and_dtypes(load, stories, tmp_path, family, bos):
    host = load(family, "blocks.1.hook_resid_post", bos)
    spec = recipe.Harvest(dtype="bf16", batch_tokens=300)
    cache = harvest(host, TEXT, spec, tmp_path / "cache", {"train": 1000}, documents=iter(stories))
    rows = cache.split("train").rows(np.arange(10))
    assert rows.dtype == torch.bfloat16 and rows.shape == (10, 32)
    special = {host.tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "[CLS]", "[SEP]", "[PAD]")}
    assert not special & set(cache.split("train").tokens.tolist())
    assert (host.bos_id is None) == (family == "neox")


def test_a_recipes_file_as_source(host, stories, tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in stories))
    text = TEXT.model_copy(update={"source": str(tmp_path / "x.jsonl")})
    cache = harvest(host, text, SPEC, tmp_path / "cache", TOKENS)
    direct = harvest(host, TEXT, SPEC, tmp_path / "direct", TOKENS, documents=stories)
    assert torch.equal(cache.split("train").rows(np.arange(100)), direct.split("train").rows(np.arange(100)))
    assert cache.index["documents_blake2b"] == direct.index["documents_blake2b"]
