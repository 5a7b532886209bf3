"""Siblings: two latents of one SAE into which a latent of another SAE is split, and windows in which to tell them apart.

An arm's siblings are children of the baseline's latents (same seed) in the arm; the baseline's own are children of its latents in its next
seed: the base rate, as latents are split between seeds, too. Candidates are those of across.json where it was made of these very SAEs,
else they are looked for in the firings.

A question is five windows round the same token of the vocabulary, from five documents and no two alike, the token in the middle. On it
one child fires and its sibling does not in four of them, and the other way round in the fifth, the intruder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from metasae import files
from metasae.compare.across import RANKED
from metasae.compare.compare import BASELINE
from metasae.interp.draws import in_turns
from metasae.interp.windows import CENTRE, Text
from metasae.measures.cofiring.splits import find_splits
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.store import open_firings
from metasae.progress.progress import SILENT, Progress

ALIKE = 4


@dataclass(frozen=True)
class Splits:
    """The best splits of an SAE's latents. parents, children: names of the two SAEs. folder: of the children's.

    ranked: (parent, its children), best first. found_in: `across.json` or `firings`.
    """

    parents: str
    children: str
    folder: Path
    ranked: tuple[tuple[int, tuple[int, ...]], ...]
    found_in: str

    def pairs(self) -> list[tuple[int, int, int]]:
        """(parent, child, child) of every two children of a parent."""
        return [(parent, *two) for parent, children in self.ranked for two in combinations(children, 2)]


@dataclass(frozen=True)
class Five:
    """Five windows in the order shown. starts, focus: int64 [5]. intruder: its place, 0 to 4."""

    starts: np.ndarray
    focus: np.ndarray
    intruder: int


def splits_of(
    run_folder: Path,
    arm: str,
    seed: int,
    trained: Mapping[tuple[str, int], Path],
    baseline: str = BASELINE,
    progress: Progress = SILENT,
) -> Splits | None:
    """The first 50 splits whose children are this arm's, or of the baseline the base rate; None where there is no second SAE.

    trained: (arm, seed) -> folder of every trained arm of the run; all must keep their firings.
    """
    weights = {key: _weights(folder) for key, folder in trained.items()}
    # an arm with the baseline's very weights (control) has the baseline's base rate
    parents = (baseline, seed)
    twin = arm == baseline or (weights[arm, seed] is not None and weights[arm, seed] == weights.get(parents))
    children = (
        (baseline, _next_seed(seed, [number for name, number in trained if name == baseline])) if twin else (arm, seed)
    )
    if parents not in trained or children not in trained:
        return None
    held = (
        _held(run_folder, baseline if twin else arm, seed, [weights[parents], weights[children]])
        if baseline == BASELINE
        else None
    )
    ranked = held if held is not None else _looked_for(trained[parents], trained[children], progress)
    names = ["{}-s{}".format(*each) for each in (parents, children)]
    return Splits(*names, trained[children], ranked, "across.json" if held is not None else "firings")


def _weights(folder: Path) -> str | None:
    """The fingerprint of a measured SAE."""
    place = folder / "measures.json"
    return files.read_json(place).get("conditions", {}).get("sae") if place.is_file() else None


def _next_seed(seed: int, seeds: list[int]) -> int | None:
    """Seeds stand in a ring; two of them give one pair. As `measure_across` has it."""
    seeds = sorted(seeds)
    place = seeds.index(seed) if seed in seeds else -1
    following = len(seeds) > 2 or 0 <= place < len(seeds) - 1
    return seeds[(place + 1) % len(seeds)] if following else None


def _held(run_folder: Path, arm: str, seed: int, of: list[str | None]) -> tuple | None:
    """The splits in across.json, where it has them of these two SAEs."""
    place = run_folder / "across.json"
    entry = files.read_json(place).get(f"{arm}-s{seed}", {}).get("splits") if place.is_file() else None
    if entry is None or None in of or entry.get("of") != of:
        return None
    return tuple((split["parent"], tuple(split["children"])) for split in entry["ranked"])


def _looked_for(parents: Path, children: Path, progress: Progress) -> tuple:
    found = find_splits(open_firings(parents / "firings"), open_firings(children / "firings"), progress=progress)
    return tuple((split.parent, split.children) for split in found.ranked[:RANKED])


def alone(text: Text, view: ByLatent, child: int, sibling: int, length: int) -> np.ndarray:
    """int64 [c], rising: tokens on which one child fires and its sibling does not, with a whole window round them."""
    places = np.setdiff1d(view.latent(child)[0], view.latent(sibling)[0], assume_unique=True).astype(np.int64)
    return places[text.windows(places, length, CENTRE)[1]]


def draw_fives(
    text: Text,
    documents: np.ndarray,
    most: np.ndarray,
    other: np.ndarray,
    length: int,
    count: int,
    rng: np.random.Generator,
) -> list[Five]:
    """Up to `count` questions with four windows round tokens of `most` and one of `other`, each intruder once; token ids take turns.

    documents: int [T]. most, other: from `alone`; the same twice for windows of one child only.
    """
    by_id, others = _by_id(text, most), _by_id(text, other)
    able = [
        number for number in sorted(by_id.keys() & others.keys()) if len(np.unique(documents[by_id[number]])) >= ALIKE
    ]
    found: list[Five] = []
    for intruder, which in in_turns([others[number] for number in able], rng):
        if len(found) == count:
            break
        four = _four(text, documents, by_id[able[which]], int(intruder), length, rng)
        if four is not None:
            place = int(rng.integers(ALIKE + 1))
            focus = np.insert(four, place, intruder)
            found.append(Five(text.windows(focus, length, CENTRE)[0], focus, place))
    return found


def _four(
    text: Text, documents: np.ndarray, places: np.ndarray, intruder: int, length: int, rng: np.random.Generator
) -> np.ndarray | None:
    """int64 [4] of these places, no two of the five of one document or with the same tokens; None where no four are found."""

    seen, contents = {int(documents[intruder])}, {_content(text, intruder, length)}
    four: list[int] = []
    for place in rng.permutation(places).tolist():
        document, content = int(documents[place]), _content(text, place, length)
        if document not in seen and content not in contents:
            four.append(place)
            if len(four) == ALIKE:
                return np.array(four, np.int64)
            seen.add(document)
            contents.add(content)
    return None


def _content(text: Text, focus: int, length: int) -> bytes:
    start = int(text.windows(np.array([focus]), length, CENTRE)[0][0])
    return text.tokens[start : start + length].tobytes()


def _by_id(text: Text, places: np.ndarray) -> dict[int, np.ndarray]:
    """Token id -> its places."""
    ids = text.tokens[places]
    order = np.argsort(ids, kind="stable")
    numbers, starts = np.unique(ids[order], return_index=True)
    return (
        {int(number): part for number, part in zip(numbers, np.split(places[order], starts[1:]), strict=True)}
        if len(places)
        else {}
    )
