"""The text of single tokens. `pieces.py` has that of tokens which stand together."""

from collections.abc import Callable, Sequence
from functools import cache


def text_of_token(tokenizer) -> Callable[[int], str]:
    """A token's id -> its text as the tokenizer writes it after another word, leading space included."""
    decode = decoder_of(tokenizer)
    return cache(lambda number: decode([number]))


def decoder_of(tokenizer) -> Callable[[Sequence[int]], str]:
    """Token ids -> their text as the tokenizer writes it after another word.

    A tokenizer's clean-up of spaces is off: ` .` and `.` are two tokens and are decoded differently.
    """
    tidies = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    options = {"clean_up_tokenization_spaces": False} if tidies else {}
    anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"][-1:])
    before = tokenizer.decode(anchor, **options)

    def decode(ids: Sequence[int]) -> str:
        both = tokenizer.decode([*anchor, *ids], **options)
        return both[len(before) :] if both.startswith(before) else tokenizer.decode(list(ids), **options)

    return decode
