"""Which seeds a number of measures.json is of: its own, or two where it takes a second SAE of another seed.

Latents found again take an SAE and that of the next seed; solo's own splits are those in its next seed, their base rate, and so are the
siblings that sense_intruder asks about. Such numbers share seeds, which their interval must know (`metasae.intervals.crossed`).
"""

import re

from metasae.compare.catalogue import Quantity

SEED = re.compile(r".+-s(?P<seed>\d+)")
ACROSS = ("seeds", "splits", "merges")
SIBLINGS = ("interp", "scores", "sense_intruder")


def seeds_behind(measures: dict, quantity: Quantity, seed: int) -> frozenset[int] | None:
    """The seeds whose SAEs a number takes. measures: as comparison has them, of an SAE of this seed.

    None where the number takes a second SAE and it is not kept which.
    """
    if quantity.group in ACROSS:
        names = [measures[quantity.group].get("with")]
    elif quantity.path[:3] == SIBLINGS:
        score = measures["interp"]["scores"]["sense_intruder"]
        names = [score.get("parents"), score.get("children")]
    else:
        return frozenset({seed})
    return of_names(seed, names)


def of_names(seed: int, names: list[str | None]) -> frozenset[int] | None:
    """This seed and those of the SAEs named (`solo-s1`); None where one has no name."""
    found = [SEED.fullmatch(name or "") for name in names]
    return None if None in found else frozenset({seed, *(int(name["seed"]) for name in found)})


def of_both(
    a: dict[int, frozenset[int] | None], b: dict[int, frozenset[int] | None]
) -> dict[int, frozenset[int] | None]:
    """The seeds behind the difference of each seed that both arms have. a, b: seed -> as `seeds_behind`."""
    return {seed: None if None in (a[seed], b[seed]) else a[seed] | b[seed] for seed in sorted(a.keys() & b.keys())}
