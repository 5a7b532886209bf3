"""A plan for GPUs that are not here: whether they hold a recipe, how long it takes at least, and where more of them stop helping.

Nothing is run and no weights are loaded. Sizes are arithmetic on shapes, times arithmetic over a datasheet's rates (`cards`, `floors`,
`setup`). Kernel launches, calibrating, checkpoints and measuring are not counted.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metasae.doctor.cards import EFFICIENCY, asked_card
from metasae.doctor.estimate import is_planted
from metasae.doctor.figures import Figure, figures_of, rates_of
from metasae.doctor.presence import Shape, planted_presence, shape_of
from metasae.doctor.setup import Setup, refuse_unusable
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import resolve

# Bytes per second beyond which few disks give a cache at random.
DISK = 3e9
# GPUs that are tried for the fewest that do, and those shown beside the wanted number.
MOST, SHOWN = 1024, (1, 2, 4, 8)


@dataclass(frozen=True)
class Plan:
    """figures: by name. others: GPUs -> the same setup on so many.

    least: the fewest GPUs that hold it, None where none do. balance: the fewest with which sending takes longer than computing, or None.
    """

    setup: Setup
    figures: dict[str, Figure]
    others: dict[int, Setup]
    least: int | None
    balance: int | None
    notes: list[str]

    @property
    def fits(self) -> bool:
        return self.setup.fits

    def as_dict(self) -> dict:
        """Plain JSON."""
        setup, arm = self.setup, self.setup.arm
        return {
            "fits": self.fits,
            "gpus": setup.gpus,
            "card": setup.card.as_dict(),
            "efficiency": setup.efficiency,
            "model": setup.shape.as_dict(),
            "arm": arm,
            "figures": {name: figure.as_dict() for name, figure in self.figures.items()},
            "parts": [part.as_dict() | {"floor": part.floor(setup.card, setup.width)} for part in setup.parts(arm)],
            "scaling": [
                {
                    "gpus": gpus,
                    "first_rank": other.memory.first,
                    "fits": other.fits,
                    **asdict(other.step(arm)),
                    "tokens": rates_of(other, arm),
                }
                for gpus, other in self.others.items()
            ],
            "least_gpus": self.least,
            "sending_longer_from": self.balance,
            "notes": self.notes,
        }


def plan(
    recipe: str | Path | dict | Recipe,
    gpus: int,
    gpu: str,
    overrides: dict[str, Any] | None = None,
    efficiency: float = EFFICIENCY,
) -> Plan:
    """The plan of a recipe on `gpus` GPUs named `gpu`. A model that is known by name needs neither its weights nor the hub.

    Raises UserError for an unknown GPU or model, and for a number of GPUs that training would refuse.
    """
    wanted, on = resolve(recipe, None, overrides, "cpu")[0], asked_card(gpu, gpus, efficiency)
    refuse_unusable(wanted, gpus)
    setup = Setup(wanted, gpus, on, efficiency, _planted(wanted) if is_planted(wanted) else shape_of(wanted))
    usable = {count: setup.with_gpus(count) for count in range(1, MOST + 1) if _usable(wanted, count)}
    least = next((count for count, each in usable.items() if each.fits), None)
    steps = ((count, each.step(setup.arm)) for count, each in usable.items())
    balance = next((count for count, step in steps if step.sending > step.computing), None)
    others = {count: setup.with_gpus(count) for count in sorted({*SHOWN, gpus}) if count in usable or count == gpus}
    figures = figures_of(setup)
    return Plan(setup, figures, others, least, balance, _notes(setup, figures, least, balance))


def _notes(setup: Setup, figures: dict[str, Figure], least: int | None, balance: int | None) -> list[str]:
    recipe, step, card, notes = setup.recipe, setup.step(setup.arm), setup.card, []
    if least is None:
        notes.append(
            f"no number of {card.name} holds what is not divided among them; a smaller model, train.batch or meta.n takes less"
        )
    elif least != setup.gpus:
        notes.append(f"the fewest {card.name} that hold it: {least}")
    named = [(part.floor(card, setup.width), part.name) for part in setup.parts(setup.arm)] + [
        (step.sending, "sending")
    ]
    longest, name = max(named)
    notes.append(f"{name} is the largest part of the step's floor: {longest / step.floor:.0%}")
    whole = figures.get("run")
    if whole and whole.value and 2 * setup.harvest[0] > whole.value[0]:
        alone = ", which windows leave to one GPU" if setup.gpus > 1 and recipe.harvest.window_tokens else ""
        notes.append(f"the harvest{alone} takes {setup.harvest[0] / whole.value[0]:.0%} of the run's floor")
    if balance is not None:
        notes.append(f"from {balance} GPUs on sending takes longer than computing, so more of them help little")
    if setup.gpus > 1 and setup.with_gpus(1).step(setup.arm).floor <= step.floor:
        notes.append("one GPU is as fast: sending takes longer than what the others save")
    if setup.gpus > card.together:
        notes.append(
            f"beyond {card.together} GPUs a network joins machines, and is slower than the {card.link / 1e9:,.0f} GB/s counted here"
        )
    if "cache read" in figures and figures["cache read"].value[1] > DISK:
        notes.append("few disks give activations that fast; with the cache in memory training need not wait")
    if recipe.train.kernels in ("fast", "reference"):
        notes.append(
            f"the floors are those of train.kernels=auto; with {recipe.train.kernels} all pre-activations are written and read as well"
        )
    if setup.shape.flops is None:
        notes.append(
            "this model cannot be followed to its hook point unless it runs, so the harvest's time is not known"
        )
    return notes


def _usable(recipe: Recipe, gpus: int) -> bool:
    try:
        refuse_unusable(recipe, gpus)
    except UserError:
        return False
    return True


def _planted(recipe: Recipe) -> Shape:
    found = planted_presence(recipe.planted)
    if found.problem:
        raise UserError(found.problem)
    return Shape(found.d, 0, 0, 0.0, "the planted world")
