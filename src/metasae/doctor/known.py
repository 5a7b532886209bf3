"""Configurations of the language models that shipped recipes name, and their sisters: a plan needs neither the hub nor the weights.

From each model's public config.json; what is not said here is the family's default in transformers.
"""

_GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
_GEMMA2 = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 256, "vocab_size": 256_000}

KNOWN = {
    "openai-community/gpt2": _GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "openai-community/gpt2-medium": _GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-large": _GPT2 | {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "openai-community/gpt2-xl": _GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "google/gemma-2-2b": _GEMMA2
    | {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "google/gemma-2-9b": _GEMMA2
    | {
        "hidden_size": 3584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
}
# Names without their owner, as the hub takes them too.
SHORT = {name.partition("/")[2]: name for name in KNOWN if name.startswith("openai-community/")}


def config_of(name: str):
    """The transformers configuration of a model known by its name on the hub, or None."""
    facts = KNOWN.get(SHORT.get(name, name))
    if facts is None:
        return None
    import transformers

    return transformers.AutoConfig.for_model(**facts)
