"""A cell as a run folder: links to its SAEs under arms/, its recipe, and the comparison, so that `compare`, `report` and `run` work on it."""

from pathlib import Path

from metasae import files
from metasae.compare.compare import compare
from metasae.errors import UserError
from metasae.sweep.cells import NO_MATTER, Member
from metasae.sweep.folder import Cell, SweepFolder, link
from metasae.sweep.plan import Plan


def assemble(folder: SweepFolder, plan: Plan, cell: Cell, members: list[Member]) -> dict:
    """Writes cells/<hash>/ from the measured `members`; returns what compare.json holds.

    Raises UserError when the disk is full, and for an SAE that was not trained as the cell asks.
    """
    place = folder.cell(cell.name)
    for member in members:
        _refuse_other(folder.sae(member.name), member)
        link(folder.sae(member.name), place / "arms" / member.label)
    seeds = tuple(dict.fromkeys(member.seed for member in members))
    recipe = cell.setting.recipe(plan.base).model_copy(update={"seeds": seeds})
    files.write_text(place / "recipe.toml", recipe.dump())
    facts = {
        "sweep": plan.title,
        "baseline": "the sweep's own recipe" if plan.shared_baseline else "the cell's own recipe",
    }
    files.write_json(place / "run.json", {**facts, "seeds": list(seeds), "stages": stages(folder, members)})
    return compare(place)


def _refuse_other(sae: Path, member: Member) -> None:
    """A name is a hash of what decides an SAE; what it was trained by is written in it, and held against that."""
    held = files.read_json(sae / "primary" / "cfg.json")["metadata"]["metasae"]["recipe"]
    asked = member.recipe.model_dump(mode="json")
    for table in ("sae", "meta", "train"):
        for key, value in asked[table].items():
            if key not in NO_MATTER and held[table].get(key) != value:
                raise UserError(
                    f"{sae} was trained with {table}.{key}={held[table].get(key)} where {value} is asked for; delete it and run again"
                )


def stages(folder: SweepFolder, members: list[Member]) -> dict:
    """As in a run's run.json: what was done to each SAE, and the seconds it took, wherever in the sweep that was."""
    found = {}
    for member in members:
        seconds = times(folder.sae(member.name))
        found[f"train {member.label}"] = {"state": "done", "seconds": seconds["train"], "as": member.name}
        found[f"measure {member.label}"] = {"state": "done", "seconds": seconds["measure"]}
    return found


def times(sae: Path) -> dict:
    """What sae.json says: workers that took it up in turn, and seconds: train (all of training), steps (its steps alone), measure."""
    held = files.read_json(sae / "sae.json") if (sae / "sae.json").exists() else {}
    return {"workers": [], "train": 0.0, "steps": 0.0, "measure": 0.0} | held
