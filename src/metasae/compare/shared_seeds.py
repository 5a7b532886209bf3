"""Which seeds a number of measures.json is of: its own, or two where it takes a second SAE of another seed.

Latents found again take an SAE and that of the next seed. Solo's own splits are those in its next seed, their base
rate, and so are the siblings that sense_intruder asks about. Such numbers share seeds, which their interval must know
(`metasae.intervals.crossed`).
"""

from collections.abc import Sequence

from metasae.arms.folder import split_label
from metasae.compare.catalogue import Quantity

ACROSS = ("seeds", "splits", "merges")
SIBLINGS = ("interp", "scores", "sense_intruder")
# seed -> the seeds whose SAEs its number takes; None where it takes a second SAE and it is not kept which
Behind = dict[int, frozenset[int] | None]


def seeds_behind(measures: dict, quantity: Quantity, seed: int) -> frozenset[int] | None:
    """The seeds whose SAEs a number takes. measures: as comparison has them, of an SAE of this seed.

    None where the number takes a second SAE and it is not kept which.
    """
    labels = []
    if quantity.group in ACROSS:
        labels = [measures[quantity.group].get("with")]
    elif quantity.path[:3] == SIBLINGS:
        score = measures["interp"]["scores"]["sense_intruder"]
        labels = [score.get("parents"), score.get("children")]
    return of_names(seed, labels)


def of_names(seed: int, labels: Sequence[str | None]) -> frozenset[int] | None:
    """This seed and those of the SAEs named (`solo-s1`); None where one has no name."""
    arms = [split_label(label or "") for label in labels]
    return None if None in arms else frozenset({seed, *(other for _, other in arms)})


def of_both(a: Behind, b: Behind) -> Behind:
    """The seeds behind the difference of each seed that both arms have."""
    return {seed: None if None in (a[seed], b[seed]) else a[seed] | b[seed] for seed in sorted(a.keys() & b.keys())}
