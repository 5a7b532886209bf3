"""The measured arms of a run, with what was worked out beside them, and what they were judged under."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.errors import UserError

# What must be alike for all arms.
SAME_FOR_ALL = ("n_tokens", "data", "critic_seed", "senses")
# Alike for all SAEs that were calibrated; those that came with thresholds of their own keep them.
CALIBRATED = ("calibration_tokens", "rule")


@dataclass(frozen=True)
class Measured:
    """measures: the arm's measures.json, with its parts of across.json and interp.json.

    stale: whether auto-interp scores of earlier weights were left out of the measures.
    """

    arm: Arm
    measures: dict
    stale: bool = False


def read_measured(run_folder: Path) -> tuple[list[Measured], list[str]]:
    """(every measured SAE of a run in the order of arms and seeds, the names of arm folders without measures.json).

    Raises UserError where none is measured, and for a file that is damaged.
    """
    arms = RunFolder(run_folder).arms()
    across = read_object(run_folder / "across.json")
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
    # files of earlier releases do not say of which weights the scores are
    of = scores["interp"].get("conditions", {}).get("of") if scores else None
    stale = of is not None and of["sae"] != measures["conditions"].get("sae")
    return Measured(arm, measures | across | ({} if stale else scores), stale)


def by_arm(measured: Sequence[Measured]) -> dict[str, dict[int, Measured]]:
    """Arm -> seed -> what was measured, in the order of `measured`, in which each arm's seeds stand together."""
    groups = groupby(measured, key=lambda entry: entry.arm.name)
    return {name: {entry.arm.seed: entry for entry in of_arm} for name, of_arm in groups}


def shared_conditions(measured: list[Measured]) -> dict:
    """What all SAEs were judged under. Raises UserError where they were not judged alike."""
    calibrated = [entry for entry in measured if entry.measures["conditions"].get("rule") != "own"]
    shared = _alike(measured, SAME_FOR_ALL) | _alike(calibrated or measured, CALIBRATED)
    own = sorted({entry.arm.name for entry in measured if entry not in calibrated})
    return shared | ({"own_thresholds": own} if calibrated and own else {})


def _alike(measured: list[Measured], keys: tuple[str, ...]) -> dict:
    first, *others = ((entry.arm.label, entry.measures["conditions"]) for entry in measured)
    for label, conditions in others:
        for key in keys:
            values = first[1].get(key), conditions.get(key)
            if values[0] != values[1]:
                raise UserError(
                    f"{first[0]} and {label} were judged differently ({key}: {values[0]} and {values[1]}); "
                    "measure them again alike"
                )
    return {key: first[1].get(key) for key in keys}
