"""Tiny random models with a byte-level tokenizer, built on the spot and saved like any Hugging Face model."""

import os

import pytest
import torch

import sources
from sources import STORIES, tokenizer_for

WIDTH, LAYERS = 32, 3


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices here are tiny: threads would only wait for each other. Child processes inherit the variable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """build(family, bos=True) -> folder of a tiny random model of that family."""
    import transformers as hf

    small = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 400}
    llama_like = {**small, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    families = {
        "gpt2": (hf.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, vocab_size=400), hf.GPT2LMHeadModel),
        "llama": (hf.LlamaConfig(**llama_like), hf.LlamaForCausalLM),
        "neox": (hf.GPTNeoXConfig(**small, max_position_embeddings=64), hf.GPTNeoXForCausalLM),
        "gemma2": (hf.Gemma2Config(**llama_like, query_pre_attn_scalar=8), hf.Gemma2ForCausalLM),
        "bert": (hf.BertConfig(**small, max_position_embeddings=64), hf.BertModel),
    }
    root = tmp_path_factory.mktemp("models")

    def make(family: str, bos: bool = True):
        folder = root / f"{family}{'' if bos else '-nobos'}"
        if not folder.is_dir():
            config, kind = families[family]
            torch.manual_seed(0)
            kind(config).save_pretrained(folder)
            tokenizer_for(family, bos).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def load(build):
    """load(family, point, bos=True) -> Host in fp32."""
    from metasae import recipe
    from metasae.data.host import Host

    def make(family: str, point: str, bos: bool = True) -> Host:
        return Host.load(recipe.Model(path=str(build(family, bos)), dtype="fp32"), point)

    return make


@pytest.fixture(scope="session")
def stories():
    """400 short documents, no two alike."""
    generator = torch.Generator().manual_seed(5)
    words = " ".join(STORIES).split()
    lengths = torch.randint(3, 90, (400,), generator=generator).tolist()
    return [f"{number} " + " ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator)) for number, n in enumerate(lengths)]


@pytest.fixture
def batches():
    """A class of batch sources over planted directions, d = 16, 64 tokens a batch."""
    return sources.Batches


@pytest.fixture
def small_recipe():
    """small_recipe(**train) -> Recipe that trains in a second on `batches`."""
    return sources.small_recipe
