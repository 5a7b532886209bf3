"""How often a comparison claims a difference where there is none: solo SAEs of one run against solo SAEs of that run.

    python -m tools.null_claims RUN [--groups 200] [--draw 0] [--sizes 4,5]

RUN holds twelve trained and measured solo SAEs of different seeds (`metasae run planted --arms solo --seeds 12`). Each
draw takes two disjoint groups of four of them, every other draw of five. The first group is presented as `solo`, the
second as `joint`, each with seeds 0, 1, 2 ..., in a run folder of links. The product brings across.json of that folder
up to date and compares its arms; what takes two SAEs is worked out once for each two and given to the product as known.

Both groups were trained alike, so no difference is true and every claim is false. The table counts the claims, with
Wilson's 95% interval. Draws share the twelve SAEs, so they are not independent and the interval is somewhat too narrow.

A direction is named only where training was long enough (`metasae.compare.trained`). The direction is therefore counted
twice: as the comparison has it, and as the verdict has it with that gate taken as passed, which tests the statistics.
"""

import argparse
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from metasae import files
from metasae.arms.folder import Arm, RunFolder
from metasae.compare.across import PARTS, _pairs, measure_across
from metasae.compare.catalogue import CATALOGUE, Pair, by_pair, is_established, named_side, value_of
from metasae.compare.compare import compare
from metasae.compare.verdict import verdict_of
from metasae.errors import UserError
from metasae.intervals.statistics import leaves_out_zero
from metasae.recipe.registry import BASELINE, SUBJECT

SIZES = (4, 5)
# The rows that name a direction or a cost, and those that describe: the latter are not corrected for their number.
IN_WORDS = tuple(q for q in CATALOGUE if q.in_words)
DESCRIBED = tuple(q for q in CATALOGUE if q.main and q.kind == "description")
_DIRECTION = re.compile(r"its latents are (more|less) atomic")

Groups = tuple[tuple[Arm, ...], tuple[Arm, ...]]


@dataclass(frozen=True)
class Claims:
    """What one comparison claims.

    enough: whether the arms count as trained enough. direction: `more`, `less` or "". passed: the same with the gate
    taken as passed. outside: keys whose 95% interval leaves out 0. established: those clear after Holm. named: those
    that are also large enough to matter, with the gate taken as passed. known: all keys that have an interval.
    """

    enough: bool | None
    direction: str
    passed: str
    outside: frozenset[str]
    established: frozenset[str]
    named: frozenset[str]
    known: frozenset[str]


def solos(run: Path) -> list[Arm]:
    """The run's measured solo SAEs."""
    return [arm for arm in RunFolder(run).arms() if arm.name == BASELINE and arm.is_measured]


def draw_groups(arms: Sequence[Arm], count: int, draw: int = 0, sizes: Sequence[int] = SIZES) -> Iterator[Groups]:
    """`count` times two disjoint groups, whose sizes take turns. Raises UserError for too few arms."""
    if len(arms) < 2 * max(sizes):
        raise UserError(f"{len(arms)} measured {BASELINE} SAEs; two groups of {max(sizes)} take {2 * max(sizes)}")
    generator = np.random.default_rng(draw)
    for number in range(count):
        size = sizes[number % len(sizes)]
        chosen = [arms[place] for place in generator.permutation(len(arms))[: 2 * size]]
        yield tuple(chosen[:size]), tuple(chosen[size:])


def present(run: Path, groups: Groups, folder: Path) -> list[Arm]:
    """A run folder of links to the arms of both groups, under the names and seeds of a run of solo and joint."""
    (folder / "arms").mkdir(parents=True)
    for name in ("recipe.toml", "run.json"):
        if (run / name).is_file():
            (folder / name).symlink_to((run / name).resolve())
    for name, group in zip((BASELINE, SUBJECT), groups, strict=True):
        for seed, arm in enumerate(group):
            RunFolder(folder).arm(name, seed).folder.symlink_to(arm.folder.resolve())
    return RunFolder(folder).arms()


class Across:
    """What takes two SAEs, worked out once for each two."""

    def __init__(self):
        self._of: dict[tuple[Callable, str, str], dict] = {}

    def bring_up_to_date(self, folder: Path, arms: Sequence[Arm]) -> None:
        """Writes across.json as the product does; no file for arms without firings."""
        if all(arm.has_firings for arm in arms):
            files.write_json(folder / "across.json", measure_across(arms, self._known(arms)))

    def _known(self, arms: Sequence[Arm]) -> dict:
        """An across.json with every part of these arms, under their labels here."""
        weights = {arm.label: arm.measures()["conditions"]["sae"] for arm in arms}
        known: dict[str, dict] = {arm.label: {} for arm in arms}
        for arm in arms:
            for part, one, other, second in _pairs(arm, arms, steering=False):
                of = [weights[one.label], weights[other.label]]
                entry = self._worked_out(PARTS[part], one, other, of)
                names = {"parents": one.label, "children": other.label}
                labels = {key: label for key, label in names.items() if key in entry}
                known[arm.label][part] = {"with": second.label, "of": of, **entry, **labels}
        return known

    def _worked_out(self, function: Callable, one: Arm, other: Arm, of: list[str]) -> dict:
        key = (function, *of)
        if key not in self._of:
            self._of[key] = files.json_safe(function(one, other))
        return self._of[key]


def claims_of(comparison: dict) -> Claims:
    """comparison: what `compare` returns for a folder of solo and joint."""
    entries = by_pair(comparison["pairs"])[Pair(SUBJECT, BASELINE)]
    rows = {
        q.key: (q, entries[q.key]) for q in (*IN_WORDS, *DESCRIBED) if entries.get(q.key, {}).get("ci95") is not None
    }
    gate = comparison["trained"]
    return Claims(
        enough=gate["enough"],
        direction=direction_in(comparison["verdict"]),
        passed=direction_in(verdict_of({**comparison, "trained": {**gate, "enough": True}})),
        outside=frozenset(key for key, (_, entry) in rows.items() if leaves_out_zero(entry)),
        established=frozenset(key for key, (_, entry) in rows.items() if is_established(entry)),
        named=frozenset(key for key, (q, entry) in rows.items() if named_side(q, entry, enough=True)),
        known=frozenset(rows),
    )


def direction_in(verdict: Sequence[dict[str, str]]) -> str:
    """`more` or `less` where the verdict names a direction, else ""."""
    matches = [_DIRECTION.search(line["text"]) for line in verdict if line["kind"] == "truth"]
    return next((match[1] for match in matches if match), "")


def all_claims(run: Path, count: int, draw: int = 0, sizes: Sequence[int] = SIZES) -> list[Claims]:
    """The claims of `count` comparisons of groups drawn from the run's measured solo SAEs."""
    across, claims = Across(), []
    with tempfile.TemporaryDirectory() as temporary:
        for number, groups in enumerate(draw_groups(solos(run), count, draw, sizes)):
            folder = Path(temporary) / str(number)
            across.bring_up_to_date(folder, present(run, groups, folder))
            claims.append(claims_of(compare(folder)))
    return claims


def wilson(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z = 1.959964
    share, shrunk = count / of, 1 + z**2 / of
    middle = (share + z**2 / (2 * of)) / shrunk
    half = z / shrunk * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def as_table(claims: Sequence[Claims]) -> str:
    """Markdown: how many comparisons claim something."""
    words = {q.key for q in IN_WORDS}
    truth, fidelity = ({q.key for q in IN_WORDS if q.kind == kind} for kind in ("truth", "fidelity"))
    lines = {
        "trained enough": lambda one: one.enough is True,
        "name a direction": lambda one: one.direction,
        "name a direction, the gate taken as passed": lambda one: one.passed,
        "say that known features differ, the gate taken as passed": lambda one: one.named & truth,
        "say that fidelity differs": lambda one: one.named & fidelity,
        "a row in words clear before Holm": lambda one: one.outside & words,
        "a row in words clear after Holm": lambda one: one.established,
    }
    counted = [(name, sum(bool(holds(one)) for one in claims)) for name, holds in lines.items()]
    rows = [f"| {name} | {_shares(count, len(claims))} |" for name, count in counted]
    return "\n".join([f"| of {len(claims)} comparisons | count | share | 95% interval |", "|---|---:|---:|---|", *rows])


def by_row(claims: Sequence[Claims], run: Path) -> str:
    """Markdown: how often each row's interval leaves out 0, which should be 5% at most, and what Holm leaves."""
    outside, after, known = (
        Counter(key for one in claims for key in getattr(one, name)) for name in ("outside", "established", "known")
    )
    spread = spreads(run)
    rows = [
        f"| {_cell(q.label)} | {q.kind} | {spread.get(q.key, '-')} | {_shares(outside[q.key], known[q.key])} | "
        f"{after[q.key] if q.in_words else '-'} |"
        for q in (*IN_WORDS, *DESCRIBED)
        if known[q.key]
    ]
    titles = "| row | kind | over all SAEs: mean, sd | leaves out 0 | share | 95% interval | clear after Holm |"
    return "\n".join([titles, "|---|---|---|---:|---:|---|---:|", *rows])


def spreads(run: Path) -> dict[str, str]:
    """Key -> mean and standard deviation over the run's solo SAEs, of what takes one SAE."""
    measures = [arm.measures() for arm in solos(run)]
    texts = {}
    for quantity in (*IN_WORDS, *DESCRIBED):
        every = [value_of(of_arm, quantity) for of_arm in measures]
        values = [value for value in every if value is not None]
        if len(values) > 1:
            texts[quantity.key] = f"{fmean(values):.3g}, {stdev(values):.2g}"
    return texts


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _shares(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count} | {100 * count / of:.1f}% | {100 * low:.1f} to {100 * high:.1f}%"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--groups", type=int, default=200)
    options.add_argument("--draw", type=int, default=0)
    options.add_argument("--sizes", default=",".join(map(str, SIZES)), help="of the groups, in turns")
    given = options.parse_args()
    claims = all_claims(given.run, given.groups, given.draw, [int(size) for size in given.sizes.split(",")])
    print(as_table(claims), by_row(claims, given.run), sep="\n\n")


if __name__ == "__main__":
    main()
