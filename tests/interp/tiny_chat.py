"""Tiny causal models with a chat template, and one whose every token is forced.

Its cache has any name, or none where that is empty.
"""

import torch

from metasae.interp.replies import Ask
from sources import tokenizer_for

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
PLACES = 4096
# Families whose layers see a window of the last tokens alone, all of them or some.
WINDOWED = {"mistral": "MistralConfig", "gemma3": "Gemma3TextConfig"}


def save_model(folder, family="llama", template=TEMPLATE, seed=0, places=PLACES):
    import transformers as hf

    torch.manual_seed(seed)
    if family == "llama":
        config = hf.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
            vocab_size=400, max_position_embeddings=places, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            initializer_range=0.4,
        )  # fmt: skip
        model = hf.LlamaForCausalLM(config)
    elif family in WINDOWED:
        config = getattr(hf, WINDOWED[family])(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
            vocab_size=400, max_position_embeddings=places, pad_token_id=0, bos_token_id=1, eos_token_id=2, head_dim=8,
            initializer_range=0.4, sliding_window=6,
        )  # fmt: skip
        model = hf.AutoModelForCausalLM.from_config(config)
    else:
        config = hf.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=places, vocab_size=400, initializer_range=0.4, eos_token_id=2
        )
        model = hf.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer = tokenizer_for(family, True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


class Written:
    """Stands for a cache: the tokens of each row, and how many steps of them are written."""

    def __init__(self, rows):
        self.rows, self.steps = rows, 0

    def get_seq_length(self):
        return self.steps


class Forced(torch.nn.Module):
    """Writes what `answer` gives for the question in its prompt, then stops.

    `t` and `f` are each the other's alternative, e^2 less likely.
    """

    def __init__(self, judge, answer, cache_name="cache"):
        super().__init__()
        self.cache_name = cache_name
        self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), judge.model.config
        self.tokenizer, self.answer, self.widest = judge.tokenizer, answer, 0
        known = judge.tokenizer.get_vocab()
        self.sides = {known[a]: known[b] for a, b in (("t", "f"), ("f", "t"), ("Ġt", "f"), ("Ġf", "t")) if a in known}

    def forward(self, input_ids, attention_mask, position_ids=None, use_cache=True, return_dict=True, **given):
        assert set(given) <= {self.cache_name}
        written = given.get(self.cache_name)
        if written is None:
            self.widest = max(self.widest, len(input_ids))
            written = Written(
                [self._script(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
            )
        logits = torch.full((len(written.rows), input_ids.shape[1], 400), -9.0)
        for row, script in enumerate(written.rows):
            token = script[min(written.steps, len(script) - 1)]
            logits[row, -1, token] = 4.0
            if token in self.sides:
                logits[row, -1, self.sides[token]] = 2.0
        written.steps += 1
        return {"logits": logits} | ({self.cache_name: written} if self.cache_name else {})

    def _script(self, ids):
        _, system, user, _ = self.tokenizer.decode(ids).split("<s>")
        ask = Ask(*(part.split("\n", 1)[1].removesuffix("</s>") for part in (system, user)), {})
        return [*self.tokenizer(self.answer(ask), add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
