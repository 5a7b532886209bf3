"""Token ids as pieces of text, with tokenizers of three kinds and every script."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metasae.data.text.pieces import BLOCK, Pieces
from metasae.interp.excerpts import token_strings

TEXTS = {
    "plain": "the cat sat",
    "emoji": "so 😀😀 it is 🧪",
    "joined emoji": "a 👩‍💻 and 🏳️‍🌈 at work",
    "combining": "cafe\u0301 nai\u0308ve, Zu\u0308rich",
    "accents": "café naïve Zürich",
    "CJK": "猫は座る。고양이 漢字",
    "right to left": "שלום עולם, مرحبا",
    "devanagari": "नमस्ते दुनिया",
    "white space": "a  b\n\n\tc\u00a0d\u3000e",
    "the character itself": "a \ufffd b",
    "spelled": "a <0xC3> b",
    "long": "漢字 " * 60,
}


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "ð"), ("Ġð", "Ł"), ("ĺ", "Ģ")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # as Llama 3's tokenizer says of itself
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=True)


def byte_fallback(metaspace):
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "c", "a", "t", "ca", "cat", "▁cat", "▁a", "."]
    vocabulary = {piece: number for number, piece in enumerate(known)}
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "a")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        # as Llama 2's
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(decoder)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def word_piece():
    letters = sorted({letter for text in TEXTS.values() for letter in text if not letter.isspace()})
    known = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), "cat", "##cat", "the"]
    backend = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(known)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


KINDS = {
    "byte level": byte_level(),
    "byte fallback": byte_fallback(False),
    "byte fallback, Metaspace": byte_fallback(True),
    "WordPiece": word_piece(),
}


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def number_of(tokenizer, *pieces):
    return tokenizer.convert_tokens_to_ids(list(pieces))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS)
def test_pieces_joined_are_the_text(kind, name):
    tokenizer, text = KINDS[kind], TEXTS[name]
    ids = ids_of(tokenizer, text)
    pieces = Pieces(tokenizer).of(ids)
    assert len(pieces) == len(ids) and (len(ids) > BLOCK or name != "long" or kind == "WordPiece")
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(pieces).removeprefix("" if kind == "byte level" else " ") == whole
    if kind != "WordPiece":
        # byte for byte: nothing is lost on the way
        assert whole == text
    # a character belongs to one token
    assert text.count("\ufffd") == "".join(pieces).count("\ufffd") or kind == "WordPiece"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "byte fallback, Metaspace"])
@pytest.mark.parametrize("name", [name for name in TEXTS if "\ufffd" not in TEXTS[name] and name != "long"])
def test_no_window_has_half_a_character(kind, name):
    tokenizer, text = KINDS[kind], TEXTS[name]
    ids = np.array(ids_of(tokenizer, text))
    documents = np.zeros(len(ids), np.int32)
    strings, whole = token_strings(tokenizer, ids, documents, np.arange(len(ids))), f" {text}"
    for length in (1, 2, 3, 5, 8):
        for start in range(len(ids) - length + 1):
            window = strings(np.arange(start, start + length))
            assert len(window) == length and "\ufffd" not in "".join(window) and "".join(window) in whole
            # whatever a latent fires on can be seen, the last token too
            assert window[-1]


def test_a_character_is_not_made_of_two_documents():
    """The last token of one document and the first of the next would be a character together."""
    tokenizer = KINDS["byte level"]
    ids = np.array(number_of(tokenizer, "a", "Ã", "©", "b"))
    documents, positions = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert token_strings(tokenizer, ids, documents, positions)(np.arange(4)) == ["a", "\ufffd", "\ufffd", "b"]
    # nor of tokens between which some are missing
    assert token_strings(tokenizer, ids, np.zeros(4), np.array([0, 1, 5, 6]))(np.arange(4))[1:3] == ["\ufffd"] * 2
    assert token_strings(tokenizer, ids, np.zeros(4), np.arange(4))(np.arange(4)) == ["a", "", "é", "b"]
    assert token_strings(tokenizer, ids, np.zeros(4), np.arange(4))(np.array([], int)) == []


def test_a_part_of_a_character_stands_with_its_last_token_and_text_before_it_stays():
    tokenizer = KINDS["byte level"]
    ids = number_of(tokenizer, "Ġcat", "ĠðŁ", "ĺĢ", "cat")
    pieces = Pieces(tokenizer)
    assert pieces.of(ids) == [" cat", " ", "😀", "cat"]
    assert list(map(pieces.name, ids)) == [" cat", " <0xF0><0x9F>", "<0x98><0x80>", "cat"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_with_a_space_before_it_reads_differently(kind):
    tokenizer = KINDS[kind]
    spaced, bare = {"byte level": ("Ġcat", "cat"), "WordPiece": ("cat", "##cat")}.get(kind, ("▁cat", "cat"))
    pieces, ids = Pieces(tokenizer), number_of(tokenizer, spaced, bare)
    assert pieces.of(ids) == [" cat", "cat"] and pieces.of(ids[:1]) == [" cat"] and pieces.of(ids[1:]) == ["cat"]
    assert list(map(pieces.name, ids)) == [" cat", "cat"]


def test_a_space_before_a_full_stop_is_not_tidied_up():
    tokenizer = KINDS["byte level"]
    assert Pieces(tokenizer).of(ids_of(tokenizer, "a .")) == ["a", " ", "."]


def test_a_byte_of_sentencepiece_is_named_as_it_is():
    tokenizer = KINDS["byte fallback"]
    assert list(map(Pieces(tokenizer).name, number_of(tokenizer, "<0xC3>", "<0xA9>"))) == ["<0xC3>", "<0xA9>"]


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("byte level", ("a", "Ã", "b")),
        ("byte level", ("a", "©", "b")),
        ("byte level", ("a", "â", "Ģ", "b", "ð", "Ł")),
        ("byte level", ("ÿ", "Ã")),
        ("byte fallback", ("▁a", "<0xC3>", "▁cat")),
        ("byte fallback", ("▁a", "<0xE2>", "<0x80>", "▁cat", "<0xFF>")),
        ("byte fallback, Metaspace", ("▁a", "<0xA9>", "cat", "<0xF0>", "<0x9F>")),
    ],
)
def test_bytes_that_are_no_character_are_what_the_tokenizer_makes_of_them(kind, tokens):
    tokenizer = KINDS[kind]
    ids = number_of(tokenizer, *tokens)
    assert "".join(Pieces(tokenizer).of(ids)).strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_byte_too_many_takes_no_other_character_with_it():
    """sentencepiece's own decoding gives five signs for these five bytes."""
    tokenizer = KINDS["byte fallback"]
    ids = number_of(tokenizer, "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xC3>")
    assert Pieces(tokenizer).of(ids) == ["", "", "", "😀", "\ufffd"]


def test_tokens_that_read_differently_together_are_cut_out_of_their_text():
    class Capital:
        """Writes a word after a full stop with a capital letter."""

        words = ("a", " the", " cat", ".")

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [0]}

        def decode(self, ids):
            words = [self.words[number] for number in ids]
            pairs = zip([""] + words, words, strict=False)
            return "".join(word.title() if before == "." else word for before, word in pairs)

    assert Pieces(Capital()).of([1, 2, 3, 1, 2]) == [" the", " cat", ".", " The", " cat"]
