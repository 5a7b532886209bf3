"""A bank of concepts whose labels come from the text itself by plain rules, never from an SAE.

Families. A seed draws some concepts of each among those that are frequent enough:

    token       one token type
    bigram      one token type right after another
    surface     capitalised, all capitals, a digit's place, first or last of a sentence, within quotes, brackets or code
    topic       all tokens of the documents that hold one word
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, hstack

FAMILIES = ("token", "bigram", "surface", "topic")
# The least number of tokens (documents for a topic) on which a concept is on, and the largest share of all.
LEAST, MOST = 40, 0.25
_ENDS, _OPENERS, _CLOSERS, _QUOTES = ".!?", "([{", ")]}", '"“”'


@dataclass(frozen=True)
class Concept:
    """name: in plain words. family: of FAMILIES, or a name that a user's file gives."""

    name: str
    family: str


@dataclass(frozen=True)
class Bank:
    """labels: csr float32 of zeros and ones [T, C], a column for each concept."""

    concepts: list[Concept]
    labels: csr_array


class LabelledText:
    """T tokens in their order.

    tokens, documents, positions: int [T]. string_of: a token id -> its text as after another word, so that a leading
    space tells where a word begins.
    """

    def __init__(
        self, tokens: np.ndarray, documents: np.ndarray, positions: np.ndarray, string_of: Callable[[int], str]
    ):
        self.tokens, self.documents, self.positions = (np.asarray(c, np.int64) for c in (tokens, documents, positions))
        self.types, self.type_of = np.unique(self.tokens, return_inverse=True)
        self.strings = [string_of(int(token)) for token in self.types]
        self.counts = np.bincount(self.type_of, minlength=len(self.types))
        # whether a token follows the one before it in the same document
        self.follows = np.zeros(len(self.tokens), bool)
        self.follows[1:] = (np.diff(self.documents) == 0) & (np.diff(self.positions) == 1)

    def __len__(self) -> int:
        return len(self.tokens)

    def where(self, is_one: Callable[[str], bool]) -> np.ndarray:
        """bool [T]: tokens whose text is one."""
        return np.array([is_one(text.strip()) for text in self.strings], bool)[self.type_of]

    def number(self, of: Callable[[str], int]) -> np.ndarray:
        """int [T]: a number of each token's text, spaces included."""
        return np.array([of(text) for text in self.strings], np.int64)[self.type_of]

    def before_in_stretch(self, change: np.ndarray) -> np.ndarray:
        """int [T]: the sum of `change` over the tokens before each one, from where its stretch of text begins."""
        before = np.cumsum(change) - change
        first = np.flatnonzero(~self.follows)
        return before - before[first][self.stretch] if len(self) else before

    @property
    def stretch(self) -> np.ndarray:
        """int [T]: the number of the stretch of text without a gap that a token is in."""
        return np.cumsum(~self.follows) - 1


def concept_bank(text: LabelledText, per_family: int = 50, seed: int = 0) -> Bank:
    """At most `per_family` concepts of each family."""
    concepts, columns = [], []
    for family, make in _MAKERS.items():
        rng = np.random.default_rng([seed, FAMILIES.index(family)])
        for name, on in make(text, per_family, rng):
            concepts.append(Concept(name, family))
            columns.append(csr_array(on[:, None], dtype=np.float32))
    labels = hstack(columns, format="csr") if columns else csr_array((len(text), 0), dtype=np.float32)
    return Bank(concepts, labels)


Labels = Iterator[tuple[str, np.ndarray]]


def _tokens(text: LabelledText, count: int, rng: np.random.Generator) -> Labels:
    worded = np.array([any(letter.isalnum() for letter in string) for string in text.strings], bool)
    for number in _drawn(np.where(worded, text.counts, 0), len(text), count, rng):
        yield f"the token {text.strings[number]!r}", text.type_of == number


def _bigrams(text: LabelledText, count: int, rng: np.random.Generator) -> Labels:
    before = np.roll(text.type_of, 1)
    pair = np.where(text.follows, before * len(text.types) + text.type_of, -1)
    pairs, counts = np.unique(pair[pair >= 0], return_counts=True)
    for place in _drawn(counts, len(text), count, rng):
        one, other = divmod(int(pairs[place]), len(text.types))
        yield f"{text.strings[other]!r} right after {text.strings[one]!r}", pair == pairs[place]


def _surfaces(text: LabelledText, count: int, rng: np.random.Generator) -> Labels:
    capitals = text.where(lambda s: s.isalpha() and s.isupper() and len(s) > 1)
    ends = text.where(lambda s: s in tuple(_ENDS))
    after_end = np.zeros(len(text), bool)
    after_end[1:] = ends[:-1]
    before_end = np.zeros(len(text), bool)
    before_end[:-1] = ends[1:] & text.follows[1:]
    surfaces = {
        "a capitalised word": text.where(lambda s: s[:1].isupper() and s[1:].islower()),
        "all capitals": capitals,
        **_digits(text),
        "the first token of a sentence": (after_end & text.follows) | (text.positions == 0),
        "the last token of a sentence": before_end,
        "punctuation": text.where(lambda s: bool(s) and not any(letter.isalnum() for letter in s)),
        "within double quotes": _between(text, text.number(lambda s: sum(map(s.count, _QUOTES)))),
        "within code": _between(text, _code_marks(text)),
        "within brackets": _nested(text),
    }
    for name, on in list(surfaces.items())[:count]:
        if LEAST <= on.sum() <= MOST * len(text):
            yield name, on


def _topics(text: LabelledText, count: int, rng: np.random.Generator) -> Labels:
    documents, number = np.unique(text.documents, return_inverse=True)
    there = csr_array((np.ones(len(text), np.float32), (number, text.type_of)), shape=(len(documents), len(text.types)))
    spread = np.diff((there > 0).tocsc().indptr)
    words = np.array([string.strip().isalpha() and len(string.strip()) > 3 for string in text.strings], bool)
    for place in _drawn(np.where(words, spread, 0), len(documents), count, rng, least=min(LEAST, len(documents) // 50)):
        holds = there[:, [place]].toarray()[:, 0] > 0
        yield f"a document with {text.strings[place].strip()!r}", holds[number]


_MAKERS = {"token": _tokens, "bigram": _bigrams, "surface": _surfaces, "topic": _topics}


def _drawn(counts: np.ndarray, total: int, count: int, rng: np.random.Generator, least: int = LEAST) -> np.ndarray:
    """Places of entries that are frequent enough, spread evenly over the logarithm of their frequency."""
    fitting = np.flatnonzero((counts >= max(least, 2)) & (counts <= MOST * total))
    by_count = fitting[np.argsort(counts[fitting], kind="stable")]
    logs = np.log(counts[by_count])
    if len(by_count) <= count:
        return by_count
    targets = rng.uniform(logs[0], logs[-1], 4 * count)
    chosen = dict.fromkeys(int(by_count[min(np.searchsorted(logs, target), len(logs) - 1)]) for target in targets)
    return np.array(list(chosen)[:count], np.int64)


def _digits(text: LabelledText) -> dict[str, np.ndarray]:
    """bool [T] for each kind of place within a number, which is a row of digit tokens without a space in it. Where the
    tokenizer makes one token of a number of any length, only the first kind occurs.
    """
    digit = text.where(str.isdigit)
    goes_on = np.zeros(len(text), bool)
    goes_on[1:] = digit[1:] & digit[:-1] & text.follows[1:] & (text.number(lambda s: s[:1].isspace()) == 0)[1:]
    ends = digit.copy()
    ends[:-1] &= ~goes_on[1:]
    # digits of the number after each token: those up to the number's last token, less those up to this one
    upto = np.cumsum(text.number(lambda s: len(s.strip())) * digit)
    last = np.flatnonzero(ends)
    behind = np.full(len(text), -1)
    behind[digit] = upto[last[np.searchsorted(last, np.flatnonzero(digit))]] - upto[digit]
    return {
        "a number in one token": digit & ~goes_on & ends,
        "the first digits of a number": digit & ~goes_on & ~ends,
        "the last digits of a number": goes_on & ends,
        "a digit in the tens' place": behind == 1,
        "a digit in the hundreds' place": behind == 2,
    }


def _code_marks(text: LabelledText) -> np.ndarray:
    """int [T]: how many rows of backticks, of any length, begin in each token. Code lies between two such rows."""
    marks = text.number(lambda s: len(re.findall("`+", s)))
    goes_on = (text.number(lambda s: s.startswith("`"))[1:] > 0) & (text.number(lambda s: s.endswith("`"))[:-1] > 0)
    marks[1:] -= goes_on & text.follows[1:]
    return marks


def _between(text: LabelledText, marks: np.ndarray) -> np.ndarray:
    """bool [T]: tokens without marks between the first and the second mark of a stretch, the third and the fourth, ...

    marks: int [T], how many stand in each token.
    """
    # a token that continues a mark has no mark of its own and does not count as text
    letters = text.number(lambda s: any(letter not in '`"“” ' for letter in s)) > 0
    return (text.before_in_stretch(marks) % 2 == 1) & (marks == 0) & letters


def _nested(text: LabelledText) -> np.ndarray:
    """bool [T]: tokens after more opening than closing brackets. A closing bracket without an opening one does not
    count.
    """
    change = text.number(lambda s: sum(map(s.count, _OPENERS)) - sum(map(s.count, _CLOSERS)))
    depth = text.before_in_stretch(change)
    if not len(text):
        return depth > 0
    # the lowest depth so far in the stretch: every later stretch is shifted below all earlier ones
    shift = text.stretch * (int(np.abs(depth).max()) + 1) * 2
    lowest = np.minimum.accumulate(depth - shift) + shift
    return (depth > lowest) & (change == 0)
