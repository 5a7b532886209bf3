"""A pair of arms, as an object. Only JSON and text hold it as a string."""

from typing import NamedTuple


class Pair(NamedTuple):
    """An arm held against the baseline. Its differences are arm - baseline: `a` and `b` in compare.json."""

    arm: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.arm} vs {self.baseline}"

    @classmethod
    def parse(cls, text: str) -> "Pair":
        """From the key of `pairs` in compare.json or interp.json: `joint vs solo`."""
        return cls(*text.split(" vs "))


def by_pair(pairs: dict[str, dict]) -> dict[Pair, dict]:
    """The `pairs` of compare.json or interp.json, with objects for keys."""
    return {Pair.parse(name): entries for name, entries in pairs.items()}
