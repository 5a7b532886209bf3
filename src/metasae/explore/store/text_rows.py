"""The evaluation text, written into the store: its tokens' strings, and where documents begin."""

import json
import sqlite3
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metasae.arms.source import Source
from metasae.data.model.loading import load_tokenizer
from metasae.errors import UserError
from metasae.explore.store.stored_text import CHUNK, StringsOf, folded, readable, stretches_of
from metasae.explore.store.window_blobs import Cells
from metasae.interp.windows import planted_strings, token_strings
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT
from metasae.recipe.recipe import Recipe


@dataclass(frozen=True)
class Strings:
    """The text of a split's tokens. shown: on the pages. asked: as auto-interp shows it to judges.

    per_token: tokens of one id read differently.
    """

    shown: StringsOf
    asked: StringsOf
    per_token: bool = False


@dataclass(frozen=True)
class SplitText:
    """One evaluation text. entries: int64 [T], of the vocabulary. ids, counts: int64 [V], of each entry.

    stretches: as `stretches_of`. strings: of the vocabulary's entries [V]. own: of every token, where tokens of one id
    read differently.
    """

    entries: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    stretches: np.ndarray
    strings: list[str]
    own: list[str] | None

    @property
    def n_tokens(self) -> int:
        return len(self.entries)

    @cached_property
    def cells(self) -> Cells:
        return Cells.of(self.entries, self.stretches[0])


def text_of(firings: Firings, strings: Strings) -> SplitText:
    """The evaluation text of some firings.

    Where tokens of one id read differently, as in a planted world, the vocabulary has what stands before the first `/`.
    """
    ids, first, entries, counts = np.unique(
        np.asarray(firings.tokens), return_index=True, return_inverse=True, return_counts=True
    )
    named, own = [readable(string) for string in strings.shown(first)], None
    if strings.per_token:
        named = [string.split("/")[0] for string in named]
        own = [readable(string) for string in strings.shown(np.arange(firings.n_tokens))]
    stretches = stretches_of(np.asarray(firings.documents), np.asarray(firings.positions))
    return SplitText(
        entries.reshape(-1).astype(np.int64), ids.astype(np.int64), counts.astype(np.int64), stretches, named, own
    )


def write_text(store: sqlite3.Connection, digest: str, text: SplitText) -> None:
    packed = zlib.compress(np.ascontiguousarray(text.stretches, "<i8").tobytes(), 6)
    row = (digest, text.n_tokens, packed)
    number = store.execute("INSERT INTO texts (digest, n_tokens, stretches) VALUES (?, ?, ?)", row).lastrowid
    columns = (text.ids.tolist(), text.counts.tolist(), text.strings)
    rows = (
        (number, entry, token, count, string, folded(string))
        for entry, (token, count, string) in enumerate(zip(*columns, strict=True))
    )
    store.executemany("INSERT INTO vocabulary VALUES (?, ?, ?, ?, ?, ?)", rows)
    for chunk, start in enumerate(range(0, text.n_tokens, CHUNK)):
        entries = zlib.compress(text.entries[start : start + CHUNK].astype("<u4").tobytes(), 1)
        own = None if text.own is None else zlib.compress(json.dumps(text.own[start : start + CHUNK]).encode(), 1)
        store.execute("INSERT INTO text_chunks VALUES (?, ?, ?, ?)", (number, chunk, entries, own))


def strings_of_run(run_folder: Path, firings: Firings) -> Strings:
    """Of the run's evaluation split. Raises UserError without a recipe, and where the tokenizer cannot be had."""
    if not (run_folder / "recipe.toml").is_file():
        raise UserError(
            f"{run_folder} is not a run folder: it has no recipe.toml; give the --out folder of `metasae run`"
        )
    recipe = Recipe.load(run_folder / "recipe.toml")
    if recipe.text.source == "planted":
        source = Source(recipe, run_folder, "cpu", SILENT)
        planted = planted_strings(source.open({"evaluation": firings.n_tokens}).split("evaluation"))
        return Strings(planted, planted, per_token=True)
    tokenizer, tokens = load_tokenizer(recipe.model), np.asarray(firings.tokens)
    return Strings(lambda places: token_texts(tokenizer, tokens[places]), token_strings(tokenizer, tokens))


def token_texts(tokenizer, ids) -> list[str]:
    """ids: int [m], of the vocabulary -> the text of each as after another word, leading space included.

    A token that is a part of a character is shown as its bytes: `<0xE2><0x80>`.
    """
    ids = np.asarray(ids, np.int64)
    decoded = token_strings(tokenizer, ids)(np.arange(len(ids)))
    bytes_of = _byte_of_letter()
    return [
        readable(_bytes(tokenizer.convert_ids_to_tokens(number), bytes_of) if "\ufffd" in text else text)
        for number, text in zip(ids.tolist(), decoded, strict=True)
    ]


def _bytes(piece: str, bytes_of: dict[str, int]) -> str:
    if all(letter in bytes_of for letter in piece):
        return "".join(f"<0x{bytes_of[letter]:02X}>" for letter in piece)
    # sentencepiece writes the byte itself in this way
    return piece


def _byte_of_letter() -> dict[str, int]:
    """Letter -> byte, as in GPT-2's table.

    Byte-level tokenizers write printable Latin-1 as itself, the other bytes in order as the letters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
