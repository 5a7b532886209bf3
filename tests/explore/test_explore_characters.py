"""Characters of several tokens on the pages, from a byte-level and a byte-fallback tokenizer."""

import numpy as np
import pytest
from explored import write_arm
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build
from metasae.explore.store.firing_rows import token_texts
from sources import tokenizer_for
from sparse_firings import firings_from

TEXT = "naïve 🧪 漢字 👩‍💻 שלום cat " * 30


def byte_fallback():
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "c", "a", "t", "ca", "cat", "▁cat"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat")]
    vocabulary = {piece: number for number, piece in enumerate(known)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(decoder)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


TOKENIZERS = {"byte level": tokenizer_for("gpt2", True), "byte fallback": byte_fallback()}


@pytest.fixture(params=TOKENIZERS)
def explored(request, tmp_path):
    """(explorer of a run, the ids of its one document, its tokenizer). Latent 3 fires on every token."""
    tokenizer = TOKENIZERS[request.param]
    ids = np.array(tokenizer(TEXT, add_special_tokens=False)["input_ids"], np.int32)
    on = np.random.default_rng(0).random((len(ids), 12)) < 0.2
    on[:, 3] = True
    values = np.random.default_rng(1).uniform(1, 2, on.shape)
    places = np.zeros(len(ids), np.int32), ids, np.arange(len(ids), dtype=np.int32)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "recipe.toml").write_text(f'[model]\npath = "{tmp_path / "model"}"\n')
    for seed, name in enumerate(("solo-s0", "joint-s0")):
        write_arm(tmp_path, name, firings_from(on, values, *places), seed=seed)
    build(tmp_path)
    return Explorer(tmp_path), ids, tokenizer


def test_windows_read_as_the_text_and_every_character_is_whole(explored):
    explorer, ids, tokenizer = explored
    pages = [explorer.latent("solo-s0", latent)["windows"] for latent in (3, 5, 7)]
    compared = explorer.compare_latents(("solo-s0", 3), ("joint-s0", 5))
    windows = [window for page in [*pages, compared["both"], compared["only_a"]] for window in page]
    assert len(windows) > 20
    for window in windows:
        joined = "".join(window["tokens"])
        assert joined in f" {TEXT}" and "\ufffd" not in joined and window["tokens"][-1]
    # each token is still known by what it is alone, on which tables and filters rest
    for window in pages[0]:
        start = window["place"]
        names = [window["names"].get(i, piece) for i, piece in enumerate(window["tokens"])]
        assert names == token_texts(tokenizer, ids[start : start + len(names)])
    assert any(window["names"] for window in pages[0])


def test_a_byte_is_spelled_as_a_byte_and_not_letter_by_letter(explored):
    explorer, _, _ = explored
    named = {entry["token"] for entry in explorer.latent("solo-s0", 3)["tokens"]}
    assert any(name.startswith("<0x") for name in named)
    assert not any("<0x3C>" in name for name in named)
