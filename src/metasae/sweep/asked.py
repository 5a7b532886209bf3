"""The arguments of a sweep as a plan: a recipe that measures less than a run, and a grid, an ablation or a search."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import resolve
from metasae.sweep.cells import Setting
from metasae.sweep.folder import SweepFolder
from metasae.sweep.grid import Range, check, expand, parse_grid
from metasae.sweep.named import named
from metasae.sweep.plan import Plan, Search, check_objectives

# The space of a search that names none: around the paper's choice. Below .3 sigma^2 does nothing, as e is .7 to .95.
SPACE = {"train.lambda2": Range(0.03, 1.0, log=True), "train.sigma_sq": Range(0.3, 3.0, log=True)}
# A sweep compares many SAEs roughly; what is chosen is measured in full when it is confirmed.
TOKENS_JUDGED = 20
OUTPUT_TOKENS_JUDGED = 200


def light(base: Recipe) -> dict[str, Any]:
    """What a sweep measures less than a run, as overrides.

    No firings kept, nothing across SAEs, no shifted text, no pursuit, the excess over fixed marginals with an interval
    over seeds alone, and one evaluation token per 20 training tokens (at least 20,000), an output token per 200 (at
    least 2,000), where the recipe has more.
    """
    spec, tokens = base.measure, base.train.tokens
    return {
        "measure.tokens": min(spec.tokens, max(20_000, tokens // TOKENS_JUDGED)),
        "measure.output_tokens": min(spec.output_tokens, max(2_000, tokens // OUTPUT_TOKENS_JUDGED)),
        "measure.keep_firings": False,
        "measure.across": False,
        "measure.shifts": 0,
        "measure.pursuit_k": 0,
        "measure.excess_blocks": False,
    }


def resolved(
    recipe: str | Path | dict | Recipe,
    out: str | Path | None,
    overrides: dict[str, Any] | None,
    seeds: int | Sequence[int] | None,
    device: str,
) -> tuple[Recipe, dict, SweepFolder]:
    """(the sweep's recipe, the measure table of a run of it, its folder); arguments as of `metasae.sweep.sweep`."""
    asked = dict(overrides or {}) | ({} if seeds is None else {"seeds": seeds})
    whole, place = resolve(recipe, out, asked, device)
    if asked.get("measure.across"):
        raise UserError("a sweep measures nothing across SAEs; confirm its best recipe with `metasae run`, which does")
    if whole.harvest.window_tokens:
        raise UserError(
            "a sweep trains its SAEs at different times on one harvest, which must stay: set harvest.window_tokens=0"
        )
    mine = {key: value for key, value in light(whole).items() if key not in asked}
    base = Recipe.load(whole.model_dump(mode="json"), mine)
    names = [key.partition(".")[2] for key in mine]
    full = {name: getattr(whole.measure, name) for name in names}
    return base, full, SweepFolder(place if out is not None else place.with_name(f"{place.name}-sweep"))


def asked_plan(
    base: Recipe,
    full_measure: dict,
    grid: Mapping[str, Any] | Sequence[str] | None,
    search: int | None,
    name: str | None,
    objectives: Sequence[str],
    early_stop: bool,
) -> Plan:
    """The plan; arguments as of `metasae.sweep.sweep`, name: its `named`.

    Raises UserError for what contradicts itself.
    """
    if sum(map(bool, (name, grid or search))) != 1:
        raise UserError("say what is swept: --grid KEY=V,V, --named NAME, or --search N (with --grid as its space)")
    if search is not None and search < 1:
        raise UserError(f"--search {search}: at least one trial")
    if early_stop and (search or name in ("kinds", "k")):
        raise UserError(
            "--early-stop goes with a grid: a search chooses by itself, and curves at equal FVU need all their points"
        )
    axes = parse_grid(grid)
    check(base, axes)
    study, keys = f"metasae-{uuid.uuid4().hex[:12]}", check_objectives(objectives)
    plan = Plan(study, name or "", base, objectives=keys, early_stop=early_stop, full_measure=full_measure)
    if name:
        return named(name, plan)
    if search:
        space = axes or SPACE
        return replace(plan, title=f"search over {', '.join(space)}", search=Search(space, search))
    return replace(plan, title=f"grid over {', '.join(axes)}", settings=tuple(map(Setting, expand(axes))))
