"""The text of single tokens."""

from collections.abc import Callable
from functools import cache


def text_of_token(tokenizer) -> Callable[[int], str]:
    """A token's id -> its text as the tokenizer writes it after another word, leading space included."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = tokenizer.decode(anchor)

    @cache
    def text_of(number: int) -> str:
        both = tokenizer.decode([*anchor, number])
        return both[len(before) :] if both.startswith(before) else tokenizer.decode([number])

    return text_of
