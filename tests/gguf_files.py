"""Small GGUF files: a Llama of two layers, its matrices in Q4_1, a byte-level tokenizer."""

import json
from pathlib import Path

import numpy as np

from sources import tokenizer_for

D, LAYERS, HEADS, INNER = 64, 2, 2, 96


def write_gguf(path: Path, seed: int = 0, layers: int = LAYERS, architecture: str = "llama") -> Path:
    """The file at `path`, whatever it is called."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_license("mit")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_1))
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // HEADS)
    writer.add_rope_freq_base(10000.0)
    n_vocabulary = _add_tokenizer(writer)
    writer.add_vocab_size(n_vocabulary)
    _add_tensors(writer, np.random.default_rng(seed), layers, n_vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer) -> int:
    """The tokenizer of tests/sources.py; returns the size of its vocabulary."""
    import gguf

    tokenizer = tokenizer_for("llama", bos=True)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    special = {"[PAD]", "<s>", "</s>", "[CLS]", "[SEP]"}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(vocabulary.index("<s>"))
    writer.add_eos_token_id(vocabulary.index("</s>"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))
    return len(vocabulary)


def _add_tensors(writer, generator: np.random.Generator, layers: int, n_vocabulary: int) -> None:
    import gguf

    q4_1 = gguf.GGMLQuantizationType.Q4_1

    def matrix(name: str, rows: int, columns: int) -> None:
        numbers = generator.normal(size=(rows, columns), scale=columns**-0.5).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(numbers, q4_1), raw_dtype=q4_1)

    def vector(name: str) -> None:
        writer.add_tensor(name, generator.uniform(0.5, 1.5, size=D).astype(np.float32))

    matrix("token_embd.weight", n_vocabulary, D)
    for layer in range(layers):
        vector(f"blk.{layer}.attn_norm.weight")
        vector(f"blk.{layer}.ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", D, D)
        matrix(f"blk.{layer}.ffn_gate.weight", INNER, D)
        matrix(f"blk.{layer}.ffn_up.weight", INNER, D)
        matrix(f"blk.{layer}.ffn_down.weight", D, INNER)
    vector("output_norm.weight")
    matrix("output.weight", n_vocabulary, D)
