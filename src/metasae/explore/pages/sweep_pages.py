"""What the page of a sweep shows, from SWEEP/sweep.json.

The changes of the cells are worded as in the report. The page also has the commands for the next steps.
"""

import shlex
from pathlib import Path

from metasae import files
from metasae.compare.catalogue import CATALOGUE, towards
from metasae.errors import UserError
from metasae.explore.store.summary import QUANTITIES, facts_of, in_words

RESULT, PLAN = "sweep.json", "plan.json"
# of sweep.json: what the page shows as it is
COPIED = ("title", "seeds", "arms", "subject", "baseline", "settings", "objectives", "front", "best", "time")
# of a difference: what the pages draw
ENTRY = ("a", "b", "difference", "percent", "ci95", "percent_ci95", "p_holm", "n_seeds", "note")


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder is that of a sweep and not that of a run.

    Raises UserError for a folder that is neither, and for a sweep without a result.
    """
    folder = Path(folder)
    if (folder / RESULT).is_file():
        return True
    if (folder / PLAN).is_file() and (folder / "cells").is_dir():
        raise UserError(
            f"{folder} is a sweep without a result yet: it has no {RESULT}; run its `metasae sweep` again, which goes "
            "on and writes one"
        )
    if not (folder / "arms").is_dir():
        raise UserError(
            f"{folder} is not a run folder (no arms/) nor a sweep (no {RESULT}); give the --out folder of "
            "`metasae run` or `metasae sweep`"
        )
    return False


def sweep_page(folder: str | Path, shown_as: str | None = None) -> dict:
    """The data of a sweep's pages. shown_as: the folder's name in the commands; None for the name that was given.

    Raises UserError for a sweep.json that is damaged or of another version.
    """
    from metasae.sweep.table import columns

    folder = Path(folder)
    path, shown = folder / RESULT, shown_as or str(folder)
    result = files.read_json(path)
    try:
        page = {
            **{key: result[key] for key in COPIED},
            "run": folder.resolve().name,
            "command": shlex.join(["metasae", "explore", shown]),
            **_conditions(result["base"]),
            "columns": columns(result),
            "cells": [_cell(folder, cell, shown) for cell in result["cells"]],
            "parallel": result["parallel"],
            "equal_fvu": _equal_fvu(result["equal_fvu"]),
            "confirm": _confirm(result.get("confirm"), folder, shown_as),
        }
        keys = {key for cell in page["cells"] for key in cell["changes"]} | {*page["objectives"], *page["columns"]}
        if page["equal_fvu"]:
            keys |= {key for rows in page["equal_fvu"]["kinds"].values() for key in rows}
        return page | {"quantities": [facts_of(quantity) for quantity in CATALOGUE if quantity.key in keys]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or of another version ({error}); run its `metasae sweep` again, which writes it anew"
        ) from None


def cells_that_open(folder: str | Path) -> dict[str, Path]:
    """name -> run folder, of the cells that have trained SAEs."""
    return {arms.parent.name: arms.parent for arms in sorted(Path(folder).glob("cells/*/arms"))}


def _conditions(base: dict) -> dict:
    planted = base["text"]["source"] == "planted"
    return {
        "model": "planted world" if planted else base["model"]["name"] or base["model"]["path"],
        "hook": None if planted else base["hook"]["point"],
        "tokens": base["measure"]["tokens"],
        "train_tokens": base["train"]["tokens"],
        "latents": base["sae"]["n"],
    }


def _cell(folder: Path, cell: dict, shown: str) -> dict:
    kept = ("name", "kind", "setting", "state", "why", "seeds", "means", "on_front", "best")
    place = folder / "cells" / cell["name"]
    trained = (place / "arms").is_dir()
    return {
        **{key: cell[key] for key in kept},
        "kappa": cell["kappa"] and cell["kappa"]["value"],
        "changes": {key: _worded(key, entry) for key, entry in cell["differences"].items() if key in QUANTITIES},
        "command": shlex.join(["metasae", "explore", f"{shown}/cells/{cell['name']}"]) if trained else None,
        "firings": any(place.glob("arms/*/firings/index.json")),
    }


def _worded(key: str, entry: dict) -> dict:
    """A difference worded as in the report, without a judgement on the length of training, which a sweep does not make.

    way: better, worse, same, or "" for a measure without a direction.
    """
    shown = {name: entry[name] for name in ENTRY}
    return {**shown, **in_words(key, entry, None), "way": towards(QUANTITIES[key], entry)}


def _equal_fvu(result: dict | None) -> dict | None:
    """Per kind and measure: the worded change, the number of seeds and the error of the interpolation."""
    if result is None:
        return None
    kinds = {
        kind: {
            key: {**_worded(key, entry), "interpolation_error": entry["interpolation_error"]}
            for key, entry in rows.items()
            if key in QUANTITIES
        }
        for kind, rows in result["kinds"].items()
    }
    return {**{key: result[key] for key in ("target", "baseline", "k", "not_done")}, "kinds": kinds}


def _confirm(result: dict | None, folder: Path, shown_as: str | None) -> dict | None:
    """The recipe of the best cell, with the command for the folder's present place."""
    from metasae.sweep.results import command

    if result is None or not (folder / result["recipe"]).is_file():
        return None
    place = Path(shown_as) if shown_as else folder
    return {
        **{key: result[key] for key in ("cell", "seeds", "note")},
        "command": command(place / result["recipe"], place),
    }
