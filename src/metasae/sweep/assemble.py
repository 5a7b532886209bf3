"""A cell as a run folder: links to its SAEs under arms/, its recipe, and the comparison.

So `compare`, `report` and `run` work on it.
"""

from pathlib import Path

from metasae import files
from metasae.arms.folder import Arm, read_object
from metasae.compare.compare import compare
from metasae.errors import UserError
from metasae.sae.layout import CONFIG
from metasae.sweep.cells import NO_MATTER, Member
from metasae.sweep.folder import Cell, SweepFolder, link
from metasae.sweep.plan import Plan


def assemble(folder: SweepFolder, plan: Plan, cell: Cell, members: list[Member]) -> dict:
    """Writes cells/<hash>/ from the measured `members`; returns what compare.json holds.

    Raises UserError when the disk is full, and for an SAE that was not trained as the cell asks.
    """
    run, stages = folder.run(cell.name), {}
    for member in members:
        sae = folder.sae(member)
        _refuse_other(sae, member)
        link(sae.folder, run.arm(member.arm, member.seed).folder)
        seconds = times(sae.folder)
        stages[f"train {member.label}"] = {"state": "done", "seconds": seconds["train"], "as": member.name}
        stages[f"measure {member.label}"] = {"state": "done", "seconds": seconds["measure"]}
    seeds = tuple(dict.fromkeys(member.seed for member in members))
    recipe = cell.setting.recipe(plan.base).model_copy(update={"seeds": seeds})
    files.write_text(run.folder / "recipe.toml", recipe.dump())
    baseline = "the sweep's own recipe" if plan.shared_baseline else "the cell's own recipe"
    facts = {"sweep": plan.title, "baseline": baseline, "seeds": list(seeds), "stages": stages}
    files.write_json(run.folder / "run.json", facts)
    return compare(run.folder)


def _refuse_other(sae: Arm, member: Member) -> None:
    """Compares the recipe that an SAE says it was trained by with the one that its name, a hash, stands for."""
    trained_by = files.read_json(sae.folder / "primary" / CONFIG)["metadata"]["metasae"]["recipe"]
    asked = member.recipe.model_dump(mode="json")
    for table in ("sae", "meta", "train"):
        for key, value in asked[table].items():
            if key not in NO_MATTER and trained_by[table].get(key) != value:
                raise UserError(
                    f"{sae.folder} was trained with {table}.{key}={trained_by[table].get(key)} where {value} is asked "
                    "for; delete it and run again"
                )


def times(sae: Path) -> dict:
    """What sae.json says: workers that took it up in turn, and seconds: train (all of training), steps (its steps
    alone), measure.
    """
    return {"workers": [], "train": 0.0, "steps": 0.0, "measure": 0.0} | read_object(sae / "sae.json")
