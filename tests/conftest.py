"""Tiny random models with a byte-level tokenizer, built on the spot and saved like any Hugging Face model."""

import gc
import os
import signal

import pytest
import torch

import sources
from drawing import undrawn
from sources import STORIES, tokenizer_for

WIDTH, LAYERS = 32, 3


# Collecting the tests imports some thousand modules and leaves hardly any garbage.
gc.disable()


def pytest_collection_finish():
    """What is imported by now stays until the end: looking through it for garbage took a twentieth of the suite."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices here are tiny: threads would only wait for each other. Child processes inherit the variable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard():
    """A suite that was started in the background has SIGINT ignored, and so would have every process it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 400,
}
LLAMA_LIKE = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
# pad, bos and eos as the tokenizer numbers them
MARKED = {
    **SMALL,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA_3 = {**MARKED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
# as many blocks for images as for text, so that one is easily taken for the other
SIGHT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
SEES = {"text_config": GEMMA_3, "vision_config": SIGHT, "mm_tokens_per_image": 4, "image_token_index": 399}
# family -> (configuration class of transformers, model class, values)
MODELS = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "vocab_size": 400},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA_LIKE),
    "neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, "max_position_embeddings": 64}),
    "neox-sequential": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**SMALL, "max_position_embeddings": 64, "use_parallel_residual": False},
    ),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**LLAMA_LIKE, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA_3),
    "gemma3-sees": ("Gemma3Config", "Gemma3ForConditionalGeneration", SEES),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**MARKED, "head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**MARKED, "head_dim": 8, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", MARKED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**MARKED, "head_dim": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", MARKED),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", MARKED),
    "bert": ("BertConfig", "BertModel", {**SMALL, "max_position_embeddings": 64}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {**SMALL, "max_position_embeddings": 66, "pad_token_id": 0}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {**SMALL, "max_position_embeddings": 66, "pad_token_id": 0}),
}


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """build(family, bos=True) -> folder of a tiny random model of that family."""
    import transformers as hf

    root = tmp_path_factory.mktemp("models")

    def make(family: str, bos: bool = True):
        folder = root / f"{family}{'' if bos else '-nobos'}"
        if not folder.is_dir():
            config, kind, values = MODELS[family]
            if not hasattr(hf, kind):
                pytest.skip(f"this transformers has no {kind}")
            torch.manual_seed(0)
            getattr(hf, kind)(getattr(hf, config)(**values)).save_pretrained(folder)
            tokenizer_for("bert" if "bert" in family else family, bos).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def load(build):
    """load(family, point, bos=True) -> Host in fp32."""
    from metasae.data.model.host import Host
    from metasae.recipe import recipe

    def make(family: str, point: str, bos: bool = True) -> Host:
        return Host.load(recipe.Model(path=str(build(family, bos)), dtype="fp32"), point)

    return make


@pytest.fixture(scope="session")
def stories():
    """400 short documents, no two alike."""
    generator = torch.Generator().manual_seed(5)
    words = " ".join(STORIES).split()
    lengths = torch.randint(3, 90, (400,), generator=generator).tolist()
    return [
        f"{number} " + " ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator))
        for number, n in enumerate(lengths)
    ]


@pytest.fixture
def batches():
    """A class of batch sources over planted directions, d = 16, 64 tokens a batch."""
    return sources.Batches


@pytest.fixture
def small_recipe():
    """small_recipe(**train) -> Recipe that trains in a second on `batches`."""
    return sources.small_recipe


@pytest.fixture
def no_drawing(request):
    """Runs and sweeps of this test draw no figures, unless it is marked `drawn`. What a fixture of a wider scope runs
    is drawn.
    """
    if request.node.get_closest_marker("drawn"):
        yield
        return
    with undrawn():
        yield
