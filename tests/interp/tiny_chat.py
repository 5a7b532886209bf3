"""Tiny causal models with a chat template, and one whose every token is forced.

Its cache has any name, or none where that is empty.
"""

import re

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
    """Stands for a cache: of each row what it is to say, and what it has said."""

    def __init__(self, rows, said):
        self.rows, self.said = rows, said

    def get_seq_length(self):
        return len(self.rows)


class Forced(torch.nn.Module):
    """Writes what `answer` gives for the question in its prompt, spaces between JSON's own parts left out, then stops:
    every token that goes on with it is likely, those that begin the other one of true and false e^2 less so.
    """

    def __init__(self, judge, answer, cache_name="cache"):
        super().__init__()
        self.cache_name = cache_name
        self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), judge.model.config
        self.tokenizer, self.answer, self.widest = judge.tokenizer, answer, 0
        self.pieces = [judge.tokenizer.decode([token]) for token in range(400)]

    def forward(
        self, input_ids, attention_mask, position_ids=None, use_cache=True, return_dict=True, logits_to_keep=0, **given
    ):
        assert set(given) <= {self.cache_name}
        written = given.get(self.cache_name)
        if written is None:
            self.widest = max(self.widest, len(input_ids))
            rows = [self._row(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
            written = Written(*map(list, zip(*rows, strict=True)))
        else:
            written.said = [said + self.pieces[ids[0]] for said, ids in zip(written.said, input_ids, strict=True)]
        logits = torch.stack([self._logits(*row) for row in zip(written.rows, written.said, strict=True)])[:, None]
        return {"logits": logits} | ({self.cache_name: written} if self.cache_name else {})

    def _logits(self, script, said):
        logits, rest = torch.full((400,), -9.0), script.removeprefix(said)
        other = {"t": "false", "f": "true"}.get(rest.lstrip()[:1])
        for token, piece in enumerate(self.pieces):
            if piece and rest.startswith(piece):
                logits[token] = 4.0
            elif other and piece.strip() and other.startswith(piece.strip()):
                logits[token] = 2.0
        if said == script:
            logits[self.tokenizer.eos_token_id] = 5.0
        return logits

    def _row(self, ids):
        """(what it is to say, what it has begun to say)."""
        _, system, user, begun = self.tokenizer.decode(ids).split("<s>")
        answer = self.answer(Ask(*(part.split("\n", 1)[1].removesuffix("</s>") for part in (system, user)), {}))
        return re.sub(r'(?<=[:,]) (?=["\[\dtf])', "", answer), begun.removeprefix("assistant\n")
