"""Compares the measured arms of a run with solo (or another baseline).

Differences are over paired seeds, with intervals.

Some numbers take a second SAE of another seed. Latents found again take an SAE and the SAE of the next seed. Splits and
merges take solo's SAE and the arm's SAE of the next seed; in solo's own column solo's SAE of the next seed, which is
the base rate. The siblings of sense_intruder do the same. Such numbers share seeds, and their interval takes that into
account (`metasae.intervals.crossed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from metasae import files
from metasae.arms.folder import Arm, RunFolder, read_object, split_label
from metasae.arms.l0 import missed_by
from metasae.compare.catalogue import CATALOGUE, Pair, Quantity, count_of, left_out_of, value_of
from metasae.compare.matched import MATCHED, WHY_NONE
from metasae.compare.tables import as_markdown
from metasae.compare.trained import trained_enough
from metasae.compare.verdict import verdict_of
from metasae.errors import UserError, nearest
from metasae.intervals.families import adjust
from metasae.intervals.statistics import Difference, Source, mean_interval, paired_difference
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE, SUBJECT, place_of

# Conditions that must be equal for all arms.
SAME_FOR_ALL = ("n_tokens", "data", "critic_seeds", "senses", "labels")
# Conditions that must be equal for all SAEs that were calibrated. SAEs that came with thresholds keep these.
CALIBRATED = ("calibration_tokens", "rule")
ACROSS = ("seeds", "splits", "merges")
SIBLINGS = ("interp", "scores", "sense_intruder")
# {seed: the seeds whose SAEs its number takes}; None if it takes a second SAE and it is not recorded which
Behind = dict[int, frozenset[int] | None]


@dataclass(frozen=True)
class Measured:
    """A measured SAE. measures: its measures.json, with its parts of across.json and interp.json.

    stale: whether auto-interp scores were left out because they are of earlier weights.
    """

    arm: Arm
    measures: dict
    stale: bool = False


@dataclass(frozen=True)
class Numbers:
    """One quantity of one arm.

    values: {seed: number}, None for a seed without one, so that a note can say so. blocks: {seed: the number with each
    block of documents, or each critic, left out}; None if no seed has them. behind: the seeds that each number takes.
    shares_of: {seed: number of things that the number is a share of}.
    """

    values: dict[int, float | None]
    blocks: dict[int, list] | None
    behind: Behind
    blocks_of: Source = "documents"
    shares_of: dict[int, int] | None = None

    def minus(self, other: "Numbers") -> Difference:
        """The paired difference of two arms. If only one arm has blocks, no blocks are used."""
        blocks = (None, None) if None in (self.blocks, other.blocks) else (self.blocks, other.blocks)
        behind = of_both(self.behind, other.behind)
        shares_of = None if None in (self.shares_of, other.shares_of) else (self.shares_of, other.shares_of)
        return paired_difference(self.values, other.values, *blocks, behind, self.blocks_of, shares_of)


def compare(run_folder: str | Path, baseline: str | None = None) -> dict:
    """Compares the measured arms of a run: writes compare.json and compare.md, returns the content of compare.json.

    Keys: conditions (the same for all arms), arms {arm: seeds, means, intervals, values, blocks}, missing (arms not
    measured yet), stale (arms whose auto-interp scores are left out, as they are of an earlier SAE), baseline, pairs
    {"joint vs solo": {measure: a, b, difference, percent, ci95, n_seeds, values ...}}, trained, verdict (a list of
    {kind, text}).
    baseline: the arm that the others are compared with; None takes solo, or the first arm if there is no solo. Raises
    UserError if nothing is measured or the arms were not measured under the same conditions.
    """
    run_folder = Path(run_folder)
    measured, missing = read_measured(run_folder)
    conditions = shared_conditions(measured)
    arms = by_arm(measured)
    numbers = {arm: _numbers(by_seed) for arm, by_seed in arms.items()}
    if baseline is not None and baseline not in arms:
        raise UserError(f"no arm '{baseline}' is measured{nearest(baseline, arms)}")
    baseline = baseline or (BASELINE if BASELINE in arms else next(iter(arms)))
    comparison = {
        "run": run_folder.resolve().name,
        "conditions": conditions | _trained_on(run_folder) | _missed_l0(run_folder, measured),
        "arms": {arm: {"seeds": list(arms[arm]), **_arm_as_dict(numbers[arm])} for arm in arms},
        "missing": missing,
        "stale": [entry.arm.label for entry in measured if entry.stale],
        "baseline": baseline,
        "pairs": {str(pair): entries for pair, entries in _pairs(arms, numbers, baseline).items()},
    }
    comparison["trained"] = trained_enough(comparison, [entry.arm for entry in measured], *_training(run_folder))
    comparison["verdict"] = verdict_of(comparison)
    files.write_json(run_folder / "compare.json", comparison)
    files.write_text(run_folder / "compare.md", as_markdown(comparison))
    return comparison


def _training(run_folder: Path) -> tuple[float, bool]:
    """(the share of the steps over which the learning rate decayed, whether each seed started from its own weights); 0
    and True if the folder has no recipe.
    """
    path = run_folder / "recipe.toml"
    if not path.is_file():
        return 0.0, True
    train = Recipe.stored(path).train
    return train.decay, not train.init


def _trained_on(run_folder: Path) -> dict:
    """The model, the tokens left out of its text, the number of training tokens and of different ones, and of
    spike-ins; {} if the folder does not record them.
    """
    path, stages = run_folder / "recipe.toml", read_object(run_folder / "run.json").get("stages", {})
    different = stages.get("harvest", {}).get("training_tokens")
    if different is None or not path.is_file():
        return {}
    recipe = Recipe.stored(path)
    spikes = {"spikes": recipe.spikes.n} if recipe.spikes.n else {}
    told = {key: stages["harvest"][key] for key in ("model", "left_out") if key in stages["harvest"]}
    return {**told, "training_tokens": recipe.train.tokens, "different_training_tokens": different, **spikes}


def _missed_l0(run_folder: Path, measured: list[Measured]) -> dict:
    """{"missed_l0": the SAEs whose L0 misses the recipe's k}; {} if none does, or the folder has no recipe."""
    path = run_folder / "recipe.toml"
    calibrations = {entry.arm.label: entry.measures.get("calibration", {}) for entry in measured}
    missed = missed_by(calibrations, Recipe.stored(path).sae) if path.is_file() else {}
    return {"missed_l0": missed} if missed else {}


def _numbers(by_seed: dict[int, Measured]) -> dict[str, Numbers]:
    """{key: numbers} of an arm, for every quantity of which it has any."""
    numbers = {q.key: _of_quantity(by_seed, q) for q in CATALOGUE}
    return {key: of_arm for key, of_arm in numbers.items() if of_arm.behind}


def _of_quantity(by_seed: dict[int, Measured], quantity: Quantity) -> Numbers:
    values = {seed: value_of(entry.measures, quantity) for seed, entry in by_seed.items()}
    known = {seed: entry.measures for seed, entry in by_seed.items() if values[seed] is not None}
    behind = {seed: seeds_behind(known[seed], quantity, seed) for seed in known}
    by_critics = any(critics_of(measures, quantity) for measures in known.values())
    without = without_a_critic if by_critics else left_out_of
    blocks = {seed: without(measures, quantity) for seed, measures in known.items()}
    blocks = {seed: of_seed for seed, of_seed in blocks.items() if of_seed}
    counts = {seed: count_of(measures, quantity) for seed, measures in known.items()}
    shares_of = counts if counts and all(counts.values()) else None
    return Numbers(values, blocks or None, behind, "critics" if by_critics else "documents", shares_of)


def critics_of(measures: dict, quantity: Quantity) -> list[float | None]:
    """The value of each critic, if the number is a mean over critics; else []."""
    *above, name = quantity.path
    for key in (*above, "critics"):
        measures = measures.get(key, {})
    return measures.get(name, [])


def without_a_critic(measures: dict, quantity: Quantity) -> list[float] | None:
    """The number with each critic left out in turn: the mean over the others. None with fewer than two critics."""
    critics = critics_of(measures, quantity)
    if len(critics) < 2 or None in critics:
        return None
    return [(sum(critics) - critic) / (len(critics) - 1) for critic in critics]


def _arm_as_dict(numbers: dict[str, Numbers]) -> dict:
    means = {
        key: mean_interval(of_arm.values, of_arm.blocks, of_arm.behind, of_arm.blocks_of)
        for key, of_arm in numbers.items()
    }
    return {
        "means": {key: mean.mean for key, mean in means.items()},
        "intervals": {key: mean.as_dict() for key, mean in means.items()},
        "values": {key: {str(seed): of_arm.values[seed] for seed in of_arm.behind} for key, of_arm in numbers.items()},
        "blocks": {
            key: {str(seed): blocks for seed, blocks in of_arm.blocks.items()}
            for key, of_arm in numbers.items()
            if of_arm.blocks and of_arm.blocks_of == "documents"
        },
    }


def _pairs(
    arms: dict[str, dict[int, Measured]], numbers: dict[str, dict[str, Numbers]], baseline: str
) -> dict[Pair, dict[str, dict]]:
    """The differences of every other arm against the baseline, joint first.

    p-values are adjusted together for all measures that are put into words.
    """
    others = sorted((arm for arm in arms if arm != baseline), key=lambda arm: (arm != SUBJECT, place_of(arm)))
    families = {q.key: "words" if q.in_words else None for q in CATALOGUE}
    pairs = {}
    for arm in others:
        base = numbers[baseline]
        differences = {key: of_arm.minus(base[key]) for key, of_arm in numbers[arm].items() if key in base}
        differences |= _matched(arms[arm], arms[baseline])
        adjusted = adjust(differences, families)
        pairs[Pair(arm, baseline)] = {key: difference.as_dict() for key, difference in adjusted.items()}
    return pairs


def _matched(a: dict[int, Measured], b: dict[int, Measured]) -> dict[str, Difference]:
    """The differences of the measures that exist for two SAEs only; a seed that one arm lacks has none.

    If the SAEs of a seed differ too much for a number, a note says in what.
    """
    differences = {}
    for key, numbers in MATCHED.items():
        values = dict.fromkeys(sorted(a.keys() | b.keys()), (None, None))
        values |= {seed: numbers(a[seed].measures, b[seed].measures) for seed in a.keys() & b.keys()}
        why = WHY_NONE.get(key, lambda a, b: "")
        reasons = {seed: why(a[seed].measures, b[seed].measures) for seed in sorted(a.keys() & b.keys())}
        notes = [f"seed {seed}: {reason}" for seed, reason in reasons.items() if reason]
        if notes or any(None not in both for both in values.values()):
            sides = ({seed: both[side] for seed, both in values.items()} for side in (0, 1))
            difference = paired_difference(*sides)
            differences[key] = replace(difference, note="; ".join(filter(None, [difference.note, *notes])))
    return differences


def seeds_behind(measures: dict, quantity: Quantity, seed: int) -> frozenset[int] | None:
    """The seeds whose SAEs a number takes. measures: `Measured.measures` of an SAE of this seed.

    None if the number takes a second SAE and it is not recorded which.
    """
    labels = []
    if quantity.group in ACROSS:
        labels = [measures[quantity.group].get("with")]
    elif quantity.path[:3] == SIBLINGS:
        score = measures["interp"]["scores"]["sense_intruder"]
        labels = [score.get("parents"), score.get("children")]
    return of_names(seed, labels)


def of_names(seed: int, labels: Sequence[str | None]) -> frozenset[int] | None:
    """This seed and those of the labelled SAEs (`solo-s1`); None if a label is missing."""
    arms = [split_label(label or "") for label in labels]
    return None if None in arms else frozenset({seed, *(other for _, other in arms)})


def of_both(a: Behind, b: Behind) -> Behind:
    """The seeds behind the difference of each seed that both arms have."""
    return {seed: None if None in (a[seed], b[seed]) else a[seed] | b[seed] for seed in sorted(a.keys() & b.keys())}


def read_measured(run_folder: Path) -> tuple[list[Measured], list[str]]:
    """(the measured SAEs of a run in the order of arms and seeds, the labels of arms without measures.json).

    Raises UserError if none is measured, or for a damaged file.
    """
    arms = RunFolder(run_folder).arms()
    across = RunFolder(run_folder).across()
    scores = read_object(run_folder / "interp.json").get("arms", {})
    measured = [
        _with_beside(arm, across.get(arm.label, {}), scores.get(arm.label, {})) for arm in arms if arm.is_measured
    ]
    if not measured:
        raise UserError(f"no arm in {run_folder} is measured yet; run `metasae run` on it to the end first")
    return measured, sorted(arm.label for arm in arms if not arm.is_measured)


def _with_beside(arm: Arm, across: dict, scores: dict) -> Measured:
    measures = arm.measures()
    if not isinstance(measures.get("conditions"), dict):
        raise UserError(f"{arm.folder / 'measures.json'} holds no measures; delete it and run again")
    # files of earlier releases do not record which weights the scores are of
    of = scores["interp"].get("conditions", {}).get("of") if scores else None
    stale = of is not None and of["sae"] != measures["conditions"].get("sae")
    return Measured(arm, measures | across | ({} if stale else scores), stale)


def by_arm(measured: Sequence[Measured]) -> dict[str, dict[int, Measured]]:
    """{arm: {seed: measured SAE}}, in the order of `measured`, in which each arm's seeds must be adjacent."""
    groups = groupby(measured, key=lambda entry: entry.arm.name)
    return {name: {entry.arm.seed: entry for entry in of_arm} for name, of_arm in groups}


def shared_conditions(measured: list[Measured]) -> dict:
    """The conditions that all SAEs were measured under. Raises UserError if these differ."""
    calibrated = [entry for entry in measured if entry.measures["conditions"].get("rule") != "own"]
    # all measures are of the same data, so any text will do; older measures lack it
    texts = [entry.measures["conditions"].get("text") for entry in measured]
    shared = {"text": next(filter(None, texts), None)}
    shared |= _alike(measured, SAME_FOR_ALL) | _alike(calibrated or measured, CALIBRATED)
    own = sorted({entry.arm.name for entry in measured if entry not in calibrated})
    otherwise = {
        entry.arm.label: entry.measures["conditions"]["trained_otherwise"]
        for entry in measured
        if entry.measures["conditions"].get("trained_otherwise")
    }
    shared |= {"trained_otherwise": otherwise} if otherwise else {}
    return shared | ({"own_thresholds": own} if calibrated and own else {})


def _alike(measured: list[Measured], keys: tuple[str, ...]) -> dict:
    first, *others = ((entry.arm.label, entry.measures["conditions"]) for entry in measured)
    for label, conditions in others:
        for key in keys:
            values = first[1].get(key), conditions.get(key)
            if values[0] != values[1]:
                raise UserError(
                    f"{first[0]} and {label} were measured differently ({key}: {values[0]} and {values[1]}); "
                    "measure both again under the same conditions"
                )
    return {key: first[1].get(key) for key in keys}
