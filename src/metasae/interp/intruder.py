"""The score sense_intruder: in four of five windows round one token a latent fires, in the fifth its sibling; which is
the fifth? Chance is 1/5.

Siblings are two latents of one SAE into which a latent of another SAE is split: the parent is gone and a child is new
(`metasae.measures.cofiring.splits`). An arm's siblings are children of the baseline's latents in the arm of the next
seed; the baseline's own are children of the same latents in its next seed: the base rate, as latents are split between
seeds, too. With one seed an arm's siblings are of that seed; their score is a part of its own (`same_seed`), which no
comparison reads. Candidates are those of across.json where it was made of these very SAEs, else they are looked for in
the firings.

A question is five windows round the same token of the vocabulary, from five documents and no two alike, the token in
the middle. On it one child fires and its sibling does not in four of them, and the other way round in the fifth, the
intruder.

It needs no explanation. It asks whether two latents into which another was split divide the uses of a token in a way
that a reader can see. It does not show why: a sense, a grammatical role and a kind of text count alike. Accuracy is per
pair of siblings, both taking turns as the intruder; pairs of one parent are one cluster of the bootstrap. The floor
(`shuffled`) has five windows of one child, one of which is called the intruder. It is at chance for every judge, so a
floor away from chance means an error in the questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from metasae.arms.folder import Arm, RunFolder, SplitPair, split_pair
from metasae.compare.across import RANKED
from metasae.interp import prompts
from metasae.interp.choice import INTRUDER
from metasae.interp.draws import in_turns
from metasae.interp.excerpts import CENTRE, Text
from metasae.interp.marks import Shown
from metasae.interp.questions import NOTHING_COUNTED, Question, credit_of, means, put, uncounted
from metasae.interp.reader import FLOOR, Reader
from metasae.interp.reading import choice_of
from metasae.interp.scores import Score
from metasae.measures.cofiring.splits import find_splits
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.registry import BASELINE

# Windows of a question beside the intruder.
ALIKE = 4
# The most questions of a pair with each of the two as the intruder, and the least number that a pair needs in all.
EACH_WAY, AT_LEAST = 4, 2
# The part of a score between SAEs of another seed, and between those of one seed.
ALL, SAME_SEED = "all", "same_seed"
# (parent, its children), best first.
Ranked = tuple[tuple[int, tuple[int, ...]], ...]
# A question as `draw_fives` has it.
Five = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Splits:
    """The best splits between two SAEs. found_in: `across.json` or `firings`."""

    sides: SplitPair
    ranked: Ranked
    found_in: str

    @property
    def part(self) -> str:
        """What the score's part is called."""
        return SAME_SEED if self.sides.same_seed else ALL

    def pairs(self) -> list[tuple[int, int, int]]:
        """(parent, child, child) of every two children of a parent."""
        return [(parent, *two) for parent, children in self.ranked for two in combinations(children, 2)]


def splits_of(
    run: RunFolder, arm: Arm, trained: Sequence[Arm], baseline: str = BASELINE, progress: Progress = SILENT
) -> Splits | None:
    """The splits that give an arm its siblings: those of the first 50 between the SAEs of `split_pair` whose parent is
    gone and that have a new child; None where there is no such pair.

    trained: every trained arm of the run; all must keep their firings.
    """
    twin = next((other for other in trained if (other.name, other.seed) == (baseline, arm.seed)), None)
    if twin is not None and _weights(twin) is not None and _weights(twin) == _weights(arm):
        # an arm with the baseline's very weights (control) has the baseline's base rate
        arm = twin
    pair = split_pair(arm, trained, baseline)
    if pair is None:
        return None
    ranked = _stored(run, pair)
    if ranked is not None:
        return Splits(pair, ranked, "across.json")
    splits = find_splits(pair.parents.firings().counted, pair.children.firings().counted, progress=progress)
    return Splits(pair, _new_ones(splits.as_dict(RANKED)), "firings")


def _weights(arm: Arm) -> str | None:
    """The fingerprint of a measured SAE."""
    return arm.measures().get("conditions", {}).get("sae")


def _stored(run: RunFolder, pair: SplitPair) -> Ranked | None:
    """What across.json has of the splits between these two SAEs."""
    splits = run.stored_splits().get((_weights(pair.parents), _weights(pair.children)))
    return None if splits is None else _new_ones(splits)


def _new_ones(splits: dict) -> Ranked:
    """The splits that are not `kept`. splits: as `FeatureSplits.as_dict` has them."""
    return tuple((split["parent"], tuple(split["children"])) for split in splits["ranked"] if not split["kept"])


def alone(text: Text, view: ByLatent, child: int, sibling: int, length: int) -> np.ndarray:
    """int64 [c], rising: tokens on which one child fires and its sibling does not, with a whole window round them."""
    places = np.setdiff1d(view.latent(child)[0], view.latent(sibling)[0], assume_unique=True).astype(np.int64)
    return places[text.windows(places, length, CENTRE)[1]]


def draw_fives(
    text: Text, most: np.ndarray, other: np.ndarray, length: int, count: int, rng: np.random.Generator
) -> list[Five]:
    """Up to `count` questions: (tokens in the middle of five windows in the order shown, int64 [5], the intruder's
    place among them, 0 to 4).

    Four windows are round tokens of `most` and one of `other`, each intruder once; token ids take turns.

    most, other: from `alone`; the same twice for windows of one child only.
    """
    by_id, others = text.by_id(most), text.by_id(other)
    shared = sorted(by_id.keys() & others.keys())
    able = [number for number in shared if len(np.unique(text.documents[by_id[number]])) >= ALIKE]
    fives: list[Five] = []
    for intruder, which in in_turns([others[number] for number in able], rng):
        if len(fives) == count:
            break
        four = _four(text, by_id[able[which]], int(intruder), length, rng)
        if four is not None:
            place = int(rng.integers(ALIKE + 1))
            fives.append((np.insert(four, place, intruder), place))
    return fives


def _four(text: Text, places: np.ndarray, intruder: int, length: int, rng: np.random.Generator) -> np.ndarray | None:
    """int64 [4] of these places, no two of the five of one document or with the same tokens; None where there are no
    four.
    """
    five, documents, contents = [], set(), set()
    for place in [intruder, *rng.permutation(places).tolist()]:
        document, content = int(text.documents[place]), text.content(place - length // 2, length)
        if document not in documents and content not in contents:
            five.append(place)
            documents.add(document)
            contents.add(content)
        if len(five) == ALIKE + 1:
            return np.array(five[1:], np.int64)
    return None


def intruder_score(reader: Reader, view: ByLatent, splits: Splits) -> tuple[dict, list[dict]]:
    """(the score's summary over pairs of siblings, with the two SAEs; for each pair its parent, its children, the
    number of questions and the share answered right).

    view: of the children's SAE. A pair with fewer than two questions has no score and is counted.
    """
    text, length, pairs = reader.text, reader.spec.length, splits.pairs()
    asked: list[list[Five]] = []
    floor: list[list[Five]] = []
    for _, one, other in pairs:
        rng = np.random.default_rng([reader.seed, one, other, 15])
        sides = alone(text, view, one, other, length), alone(text, view, other, one, length)
        fives = [
            five for most, odd in (sides, sides[::-1]) for five in draw_fives(text, most, odd, length, EACH_WAY, rng)
        ]
        asked.append(fives if len(fives) >= AT_LEAST else [])
        if len(floor) < FLOOR:
            same = [five for side in sides for five in draw_fives(text, side, side, length, 1, rng)]
            floor.append(same if asked[-1] else [])
    counts = {
        "candidates": len(splits.ranked),
        "pairs": len(pairs),
        "too_few_windows": sum(not fives for fives in asked),
        **NOTHING_COUNTED,
    }
    own = _accuracy(reader, asked, counts)
    shuffled = _accuracy(reader, floor, uncounted())
    clusters = np.array([parent for parent, _, _ in pairs], np.int64)
    score = Score(INTRUDER, {splits.part: own}, {splits.part: shuffled}, counts)
    sides = {"parents": splits.sides.parents.label, "children": splits.sides.children.label}
    names = {**sides, "found_in": splits.found_in}
    per_pair = [
        {
            "parent": parent,
            "children": children,
            "questions": len(fives),
            INTRUDER: value if np.isfinite(value) else None,
        }
        for (parent, *children), fives, value in zip(pairs, asked, own.tolist(), strict=True)
    ]
    return score.as_dict(range(len(pairs)), clusters, reader.seed) | names, per_pair


def _accuracy(reader: Reader, asked: Sequence[Sequence[Five]], counts: dict) -> np.ndarray:
    """float64 [p]: share of each pair's questions answered right, NaN without any."""
    numbers = range(1, ALIKE + 2)
    questions = [
        Question(prompts.intrude, _windows(reader, focus), row, ["all"], [place + 1], numbers)
        for row, fives in enumerate(asked)
        for focus, place in fives
    ]
    read = partial(choice_of, name="intruder", allowed=numbers)
    put(reader.asker, questions, read, counts, reader.seed)
    return means(credit_of(questions, 1 / (ALIKE + 1)), len(asked))


def _windows(reader: Reader, focus: np.ndarray) -> list[Shown]:
    length = reader.spec.length
    starts, marked = (focus - length // 2).tolist(), np.arange(length) == length // 2
    return [Shown(tuple(reader.text.strings(start, length)), marked) for start in starts]
