"""What tests draw on: a small source of batches with a cursor, small recipes, a few stories and their tokenizer."""

import torch

from metasae.recipe.recipe import Recipe

STORIES = [
    "The river ran past the old mill, and the miller counted sacks of flour until dusk.",
    "A function returns the first element that satisfies the predicate, or nothing at all.",
    "Snow fell on the harbour; naïve gulls — dozens of them — argued over 3 fish.",
]


class Batches:
    """Sparse non-negative combinations of fixed directions, a fresh batch per position."""

    def __init__(self, batch=64, d=16, seed=0):
        self.batch, self.d, self.seed, self.position = batch, d, seed, 0
        self.directions = torch.randn(24, d, generator=torch.Generator().manual_seed(99))

    def next(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.position)
        self.position += 1
        codes = torch.rand(self.batch, 24, generator=generator)
        return (codes * (codes > 0.85)) @ self.directions + 0.3

    def seek(self, position):
        self.position = position


class Planted:
    """Independent planted features: 64 unit directions in 32 dimensions, each on with probability 3/64, with strengths
    of 1 to 2, and noise of so much in every dimension.
    """

    def __init__(self, batch=256, noise=0.0):
        directions = torch.randn(64, 32, generator=torch.Generator().manual_seed(7))
        self.directions, self.batch, self.position = directions / directions.norm(dim=1, keepdim=True), batch, 0
        self.noise = noise

    def next(self):
        generator = torch.Generator().manual_seed(self.position)
        self.position += 1
        on = torch.rand(self.batch, 64, generator=generator) < 3 / 64
        x = (on * (1 + torch.rand(self.batch, 64, generator=generator))) @ self.directions
        return x + self.noise * torch.randn(self.batch, 32, generator=generator) if self.noise else x

    def seek(self, position):
        self.position = position


def small_recipe(**train) -> Recipe:
    values = {
        "tokens": 64 * 40,
        "batch": 64,
        "n_primary_steps": 4,
        "n_meta_steps": 3,
        "dead_after": 500,
        "k_aux": 4,
        "checkpoint_every": 7,
    }
    return Recipe.load({"sae": {"n": 48, "k": 3}, "meta": {"n": 8, "k": 2}, "train": {**values, **train}})


def tokenizer_for(family: str, bos: bool):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "<s>", "</s>", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        STORIES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if family == "bert":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
        )
    marks = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="</s>", **marks)


# Writes BOS itself, as many do, and takes chats that a user begins.
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}\
{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""
