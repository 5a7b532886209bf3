"""The text of single tokens as the pages show it: as after another word, and the bytes of a token that is a part of a character."""

import numpy as np

from metasae.explore.store.stored_text import readable
from metasae.interp.windows import token_strings

UNREADABLE = "\ufffd"


def token_texts(tokenizer, ids) -> list[str]:
    """ids: int [m], of the vocabulary -> the text of each, leading space included. Part of a character is shown as its bytes: `<0xE2><0x80>`."""
    ids = np.asarray(ids, np.int64)
    decoded = token_strings(tokenizer, ids)(np.arange(len(ids)))
    letters = _byte_of_letter()
    return [
        readable(_bytes(tokenizer, int(i), letters) if UNREADABLE in text else text)
        for i, text in zip(ids, decoded, strict=True)
    ]


def _bytes(tokenizer, number: int, letters: dict[str, int]) -> str:
    piece = tokenizer.convert_ids_to_tokens(number)
    if all(letter in letters for letter in piece):
        return "".join(f"<0x{letters[letter]:02X}>" for letter in piece)
    # sentencepiece writes the byte itself in this way
    return piece


def _byte_of_letter() -> dict[str, int]:
    """Byte-level tokenizers write a byte as a letter: printable Latin-1 as itself, the others in order from U+0100 on (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
