"""Short trials of a sweep's harvest, training and measuring, and the seconds of its SAEs that follow from them.

Every kind of training is tried once (`cost_of`) and scaled by its tokens, and measuring once for every number of
latents. Training and measuring are tried on as many threads as a worker has. One trial runs at a time, so it does not
show by how much workers slow each other down where they share memory.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from metasae.doctor.piece import Piece, Trials, piece_of
from metasae.doctor.presence import Presence
from metasae.doctor.trials import harvest_seconds
from metasae.errors import UserError
from metasae.progress.progress import Progress
from metasae.ranks.lanes import on_cores
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.sweep.cells import Member
from metasae.sweep.folder import SweepFolder
from metasae.sweep.remaining import Row, Work

# Keys of the recipe's table `train` in which SAEs that share a trial may differ: they change the time of a step by less
# than two trials of one step differ. Time is proportional to `tokens`; a late `penalty_start` makes the first steps
# faster than the trial.
SAME_COST = (
    "tokens", "lr", "meta_lr", "warmup", "decay", "betas", "eps", "clip", "sigma_sq", "penalty_start", "dead_after",
    "meta_dead_after", "aux_coef", "margin", "checkpoint_every",
)  # fmt: skip


@dataclass
class Estimate:
    """Estimated seconds on one worker. harvest: 0 if it is done; None if it was not tried.

    by_token: seconds per training token, by `cost_of`. measure: results of `try_measuring`, by the number of latents.
    problems: what would stop the sweep.
    """

    harvest: float | None = None
    by_token: dict[str, float] = field(default_factory=dict)
    measure: dict[int, dict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_train(self, work: Work) -> float | None:
        """Seconds to train and calibrate an SAE; 0 if that is done, None if it is not known."""
        recipe, rate = work.member.recipe, self.by_token.get(cost_of(work.member))
        if not work.to_train or rate is None:
            return None if work.to_train else 0.0
        calibrating = self.measure[recipe.sae.n]["calibrate"] if recipe.sae.n in self.measure else 0.0
        return rate * recipe.train.tokens + calibrating

    def to_measure(self, work: Work) -> float | None:
        """Seconds to measure an SAE; 0 if that is done, None if it is not known."""
        if not work.to_measure:
            return 0.0
        trial = self.measure.get(work.member.recipe.sae.n)
        return trial and trial["sae"]

    @property
    def reference(self) -> float:
        """Seconds of what each worker measures once, without an SAE."""
        return max((trial["reference"] for trial in self.measure.values()), default=0.0)


def cost_of(member: Member) -> str:
    """The values that decide the time of a training step, as text: SAEs with the same text share a trial.

    Penalties count by name, the decomposability penalty by whether it is charged, the nesting by its prefixes.
    """
    arm, recipe = member.trained_as, member.recipe
    train = recipe.train.model_dump(mode="json", exclude={*SAME_COST})
    nest = recipe.train.nest
    train |= {
        "lambda2": recipe.train.lambda2 > 0,
        "penalties": sorted(recipe.charged(arm)),
        "nest": nest.shares if ARMS[arm].atomic and nest.weight else None,
    }
    tables = {"sae": recipe.sae.model_dump(mode="json"), "meta": recipe.meta.model_dump(mode="json"), "train": train}
    return json.dumps({"arm": arm, **tables}, sort_keys=True)


def try_out(
    folder: SweepFolder,
    rows: list[Row],
    wanted: Recipe,
    model: Presence,
    device: str,
    threads: int | None,
    progress: Progress,
) -> Estimate:
    """Tries the harvest and what is left to do for the SAEs of the rows. Nothing is tried if nothing is left to do.

    wanted: the recipe of the harvest. model: the language model; if it is not here, only training is tried, on random
    numbers. threads: of a worker; None for those of this process.
    """
    kinds, estimate = _kinds(rows), Estimate()
    if folder.is_harvested(wanted.split_tokens) or not (wanted.reads_text or kinds):
        estimate.harvest = 0.0
        if not kinds:
            return estimate
    trials = Trials(Path(wanted.harvest.cache) if wanted.harvest.cache else folder.path.parent / "activations")
    with piece_of(wanted, folder.path, model, device, trials, progress) as piece:
        if trials.cached:
            estimate.harvest = 0.0
        elif trials.harvest is not None and estimate.harvest is None:
            estimate.harvest = trials.load + harvest_seconds(trials.harvest, wanted)
        estimate.problems += trials.problems
        if not estimate.problems:
            with nullcontext() if threads is None else on_cores(threads):
                _try_kinds(piece, kinds, estimate, progress)
    return estimate


def _kinds(rows: list[Row]) -> dict[str, tuple[str, Member]]:
    """{`cost_of`: (a row in words, an SAE)} of what is left to do."""
    kinds: dict[str, tuple[str, Member]] = {}
    for row in rows:
        for work in row.works:
            if work.to_train or work.to_measure:
                kinds.setdefault(cost_of(work.member), (row.label, work.member))
    return kinds


def _try_kinds(piece: Piece, kinds: dict[str, tuple[str, Member]], estimate: Estimate, progress: Progress) -> None:
    """Tries to train each kind, and to measure the first of each number of latents."""
    for number, (key, (label, member)) in enumerate(kinds.items(), 1):
        progress.say(f"trying to train {member.trained_as} of '{label}' ({number} of {len(kinds)})")
        recipe, n = member.recipe, member.recipe.sae.n
        trained = None  # drops the last trainer first, as two would take twice the memory
        trial, trained = piece.try_training(recipe, member.trained_as)
        estimate.by_token[key] = trial["seconds"] / recipe.train.tokens
        if piece.sample is not None and n not in estimate.measure:
            try:
                progress.say(f"trying to measure {n:,} latents")
                estimate.measure[n] = piece.try_measuring(recipe, trained)
            except UserError as error:
                estimate.problems.append(str(error))
                return
