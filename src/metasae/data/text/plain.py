"""Special tokens that a text names, such as `<|endoftext|>` in an article about tokenizers, read as plain text.

A tokenizer mistakes such names for real special tokens. A text in which it did so is read again by a copy of the
tokenizer in which every special token is called MARK and its name; MARK is in no text. All other texts keep the ids
that the tokenizer gives.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

from metasae.encodings import readable
from metasae.errors import UserError

MARK = "\0"
_OFF = ("add_special_tokens", "truncation", "padding", "verbose", "return_attention_mask", "return_token_type_ids")
# How a tokenizer is called for the ids of whole texts, with nothing added.
OPTIONS = dict.fromkeys(_OFF, False)
_MOST_NAMES = 4
# Of a text its ids, and the characters (start, stop) that each token holds.
Placed = tuple[list[int], list[tuple[int, int]]]


def special_tokens(tokenizer) -> dict[str, int]:
    """name -> id of a tokenizer's special tokens, from every list that it has of them."""
    names, numbers = (getattr(tokenizer, key, ()) for key in ("all_special_tokens", "all_special_ids"))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    listed = dict(zip(names, numbers, strict=True))
    return listed | {str(token): number for number, token in added.items() if token.special}


class Plain:
    """The ids of texts, with special tokens only where a text has MARK before their name.

    named: special token -> the number of texts in which its name was read as plain text.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.named = tokenizer, Counter()
        self._listed = special_tokens(tokenizer)
        # an unknown letter also gets the id of a special token
        self._unknown = getattr(tokenizer, "unk_token", None) or MARK
        self._suspect = set(self._listed.values()) - {getattr(tokenizer, "unk_token_id", None)}

    @cached_property
    def specials(self) -> dict[str, int]:
        """name -> id of all special tokens, except those that are also ordinary pieces of text: a single letter, or a
        result of merges.
        """
        pieces = _ordinary(self._state["model"]) if self.tokenizer.is_fast else set()
        return {name: number for name, number in self._listed.items() if len(name) > 1 and name not in pieces}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens except the marked ones. Raises UserError for a tokenizer
        that makes special tokens of plain text all the same.
        """
        texts = [readable(text) for text in texts]
        encoded = self.tokenizer([text.replace(MARK, "") for text in texts], **OPTIONS)["input_ids"] if texts else []
        return [
            self._again(text)[0] if self._misread(text, ids) else ids for text, ids in zip(texts, encoded, strict=True)
        ]

    def placed(self, texts: Sequence[str]) -> list[Placed]:
        """As `ids`, with the place of every token, of texts without MARK and a fast tokenizer."""
        texts = [readable(text) for text in texts]
        if not texts:
            return []
        encoded = self.tokenizer(texts, return_offsets_mapping=True, **OPTIONS)
        rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [self._again(text) if self._misread(text, ids) else (ids, places) for text, ids, places in rows]

    def shielded(self, text: str) -> str:
        """A text with MARK within every special token's name, so that it differs from the template's own."""
        while self._name.search(text):
            text = self._name.sub(lambda match: match[0][0] + MARK + match[0][1:], text)
        return text

    def marked(self, text: str) -> str:
        """The template's output for shielded texts, with MARK before the template's own special tokens and nowhere
        else.
        """
        return re.sub(f"{MARK}|{self._name.pattern}", lambda match: "" if match[0] == MARK else MARK + match[0], text)

    def _misread(self, text: str, ids: Sequence[int]) -> bool:
        if MARK not in text and self._suspect.isdisjoint(ids) and self._unknown not in text:
            return False
        return bool(self._named_in(text)) or not self._as_marked(text, ids)

    def _again(self, text: str) -> Placed:
        """Reads a text again that the tokenizer misread."""
        names = set(self._named_in(text))
        self.named.update(names)
        if self.tokenizer.is_fast:
            encoded = self._twin.encode(text, add_special_tokens=False)
            ids, places = encoded.ids, encoded.offsets
        else:
            ids, places = self.tokenizer(text, split_special_tokens=True, **OPTIONS)["input_ids"], []
        if not self._as_marked(text, ids):
            which = ", ".join(sorted(names)) or "a special token"
            raise UserError(f"the model's tokenizer cannot read {which} as plain text; leave out texts that hold it")
        return ids, places

    def _as_marked(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the special tokens among the ids are those marked, in their order."""
        never = set(self.specials.values()) & self._suspect
        marked = [self.specials[name] for name in re.findall(f"{MARK}({self._name.pattern})", text)]
        return [number for number in ids if number in never] == [number for number in marked if number in never]

    def _named_in(self, text: str) -> list[str]:
        """The names of special tokens in a text without MARK before them."""
        return self._name.findall(re.sub(f"{MARK}(?:{self._name.pattern})", MARK, text))

    @cached_property
    def _name(self) -> re.Pattern:
        names = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) if names else "(?!)")

    @property
    def said(self) -> str:
        """A sentence on what was read as plain text; empty where no text contained the name of a special token."""
        names = ", ".join(name for name, _ in self.named.most_common(_MOST_NAMES))
        many = "" if len(self.named) <= _MOST_NAMES else ", ..."
        said = f"texts contain special tokens of the model ({names}{many}); they are read as plain text"
        return said if self.named else ""

    @property
    def _state(self) -> dict:
        return json.loads(self.tokenizer.backend_tokenizer.to_str())

    @cached_property
    def _twin(self):
        state = {**self._state, "truncation": None, "padding": None}
        for token in state["added_tokens"]:
            if token["content"] in self.specials:
                token |= {"content": MARK + token["content"], "normalized": False}
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._renamed(name): number for name, number in model["vocab"].items()}
        else:
            model["vocab"] = [[self._renamed(name), score] for name, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = self._renamed(model["unk_token"])
        return type(self.tokenizer.backend_tokenizer).from_str(json.dumps(state))

    def _renamed(self, name: str) -> str:
        return MARK + name if name in self.specials else name


def _ordinary(model: dict) -> set[str]:
    """The pieces that a model's merges are made of and make."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    return {*chain.from_iterable(pairs), *("".join(pair) for pair in pairs)}
