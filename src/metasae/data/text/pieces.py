"""Cuts the text of token ids into pieces, one for each token, which joined are the text.

A token of a byte-level or byte-fallback tokenizer may hold a part of a character. Such a character is the piece of the
token that holds its last byte; the tokens with its other bytes have an empty piece, or what they hold before it. A
character is one code point, so an accent that combines, and the joiner within an emoji, have pieces of their own. Bytes
that are no character are U+FFFD, as the tokenizer writes them.

Text is decoded as if it followed another word. Then ` cat` keeps its leading space, which some tokenizers drop from the
first word that they decode, and `cat` has none.
"""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from metasae.data.text.token_text import decoder_of, text_of_token

BROKEN = "\ufffd"
# A character has four bytes at most, so a character that a window cuts ends within this many tokens of the window.
REACH = 3
# Tokens that are compared with the tokenizer's own text at once.
BLOCK = 64
# How sentencepiece writes a byte that has no token of its own.
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_EACH, _SPELLED = "metasae.each_byte", "metasae.spelled_bytes"

codecs.register_error(_EACH, lambda error: (BROKEN * (error.end - error.start), error.end))
codecs.register_error(
    _SPELLED,
    lambda error: ("".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end),
)


class Pieces:
    """The pieces of one tokenizer's tokens."""

    def __init__(self, tokenizer):
        self._tokenizer, self._text_of, self._decode = tokenizer, text_of_token(tokenizer), decoder_of(tokenizer)
        self._letters, self._known = byte_of_letter(), {}
        # whether a byte that is no part of a character is written alone, as byte-fallback tokenizers do
        self._errors = "replace"

    def of(self, ids: Sequence[int]) -> list[str]:
        """The piece of each token of one text, int [m]; joined they are its text."""
        pieces, block = [], []
        for number in map(int, ids):
            if len(block) >= BLOCK and not self.is_partial(number):
                pieces += self._of_block(block)
                block = []
            block.append(number)
        return pieces + self._of_block(block)

    def window(self, ids: Sequence[int], start: int, end: int) -> list[str]:
        """The pieces of tokens start to end - 1 of one text. A character that begins before the window or ends after
        it is shown whole.

        ids: int, of the text or of the window with REACH tokens on either side. Where a character ends after the
        window, it belongs to the window's last token.
        """
        low, high = start, end
        while low > max(start - REACH, 0) and self.is_partial(int(ids[low - 1])):
            low -= 1
        if end > start and self._is_open(ids[low:end]):
            high = min(end + REACH, len(ids))
        pieces = self.of(ids[low:high])
        inside, after = pieces[start - low : end - low], pieces[end - low :]
        if after:
            inside[-1] += next((piece[0] for piece in after if piece), "")
        return inside

    def name(self, number: int) -> str:
        """A token alone: its text after another word, and bytes that are no whole character as `<0xE2><0x80>`."""
        return self._bytes(number)[0].decode("utf-8", _SPELLED)

    def is_partial(self, number: int) -> bool:
        """Whether a token holds bytes that are no whole characters."""
        return self._bytes(number)[1]

    def _of_block(self, ids: list[int]) -> list[str]:
        if not any(map(self.is_partial, ids)):
            pieces = [self._text_of(number) for number in ids]
            whole = self._decode(ids)
            return pieces if "".join(pieces) == whole else self._cut(ids, whole)
        read = self._decoder()
        pieces = []
        for number in ids:
            text, partial = self._bytes(number)
            if pieces and not partial:
                # the bytes that are left of the tokens before do not form a character
                pieces[-1] += read.decode(b"", final=True)
            pieces.append(read.decode(text))
        pieces[-1] += read.decode(b"", final=True)
        return pieces

    def _cut(self, ids: list[int], whole: str) -> list[str]:
        """The pieces of a tokenizer whose tokens decode differently together: each token's piece is what it adds to the
        text.
        """
        cuts = [0]
        for count in range(1, len(ids)):
            begun = self._decode(ids[:count])
            alike = next((i for i, (a, b) in enumerate(zip(begun, whole, strict=False)) if a != b), len(begun))
            cuts.append(min(max(alike, cuts[-1]), len(whole)))
        return [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)]

    def _is_open(self, ids: Sequence[int]) -> bool:
        """Whether the text ends in the middle of a character."""
        last = int(ids[-1])
        if not self.is_partial(last):
            return False
        read = self._decoder()
        for number in ids[-REACH - 1 :]:
            read.decode(self._bytes(int(number))[0])
        return bool(read.getstate()[0])

    def _decoder(self):
        return codecs.getincrementaldecoder("utf-8")(self._errors)

    def _bytes(self, number: int) -> tuple[bytes, bool]:
        """(a token's bytes, whether they are not whole characters)."""
        if number not in self._known:
            self._known[number] = self._read_bytes(number)
        return self._known[number]

    def _read_bytes(self, number: int) -> tuple[bytes, bool]:
        text = self._text_of(number)
        plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")
        if BROKEN not in text:
            return plain, False
        piece = self._tokenizer.convert_ids_to_tokens(number)
        fallback = _FALLBACK.fullmatch(piece)
        if fallback:
            self._errors = _EACH
            return bytes([int(fallback[1], 16)]), True
        if not all(letter in self._letters for letter in piece):
            # the character U+FFFD itself
            return plain, False
        own = bytes(self._letters[letter] for letter in piece)
        return own, not _is_whole(own)


def _is_whole(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1)
def byte_of_letter() -> dict[str, int]:
    """Letter -> byte, as in GPT-2's table.

    Byte-level tokenizers write printable Latin-1 as itself, the other bytes in order as the letters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
