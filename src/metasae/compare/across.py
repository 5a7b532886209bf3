"""What takes two SAEs of a run: seeds, splits and merges, and side effects.

Seeds: latents found again in another seed. Splits and merges: solo's latents that another arm has in pieces, or as one.
Side effects, where they are asked for: how bluntly the matched latents of both steer the model.

Each arm's seeds stand in a ring, and every seed is matched with the next, so S seeds give S numbers that share seeds,
and two give one; `with` names the second SAE, which their interval needs (`metasae.compare.compare`). Splits of
solo's latents in an arm are read beside their base rate, splits of solo's latents in solo's own next seed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from metasae import files
from metasae.arms.folder import Arm, next_seed
from metasae.compare.compare import read_measured, shared_conditions
from metasae.measures.cofiring.splits import find_splits, paper_ranking
from metasae.measures.effect.matched_effects import Side, Steering, matched_side_effects
from metasae.measures.rows.seeds import attenuation, chance_matching, match
from metasae.measures.suite import SEED
from metasae.progress.progress import SILENT, Progress
from metasae.recipe import recipe
from metasae.recipe.registry import BASELINE

RANKED = 50


def measured_arms(run_folder: Path) -> list[Arm]:
    """All measured SAEs that lie in a run folder, also those that an earlier call asked for.

    Raises UserError where none is measured, and where they were not judged alike.
    """
    measured, _ = read_measured(run_folder)
    shared_conditions(measured)
    return [entry.arm for entry in measured]


def is_wanted(spec: recipe.Measure, progress: Progress) -> bool:
    """Whether what takes two SAEs is asked for and can be measured. `progress` says what is left out where not."""
    if spec.across and not spec.keep_firings:
        missing = "seeds, splits and merges" + " and side effects" * bool(spec.side_effects)
        progress.say(f"{missing} are not measured, which takes firings that are kept (measure.keep_firings)")
    return spec.across and spec.keep_firings


def measure_across(
    arms: Sequence[Arm], known: dict | None = None, progress: Progress = SILENT, steering: Steering | None = None
) -> dict:
    """Label -> {seeds, splits, merges, side_effects}, JSON as it is. A part that has no second SAE is absent.

    An SAE with the weights of another (control has solo's) takes over that one's parts. known: what an earlier call
    gave; parts that were worked out with the same two SAEs are kept. steering: None leaves the side effects out.
    Raises UserError for a store of firings that is missing or damaged.
    """
    weights = {arm.label: arm.measures()["conditions"]["sae"] for arm in arms}
    first = {fingerprint: label for label, fingerprint in reversed(weights.items())}
    twins = {label: first[fingerprint] for label, fingerprint in weights.items() if first[fingerprint] != label}
    unlike = [arm for arm in arms if arm.label not in twins]
    wanted = [(arm, *pair) for arm in unlike for pair in _pairs(arm, unlike, steering is not None)]
    functions = PARTS | {"side_effects": partial(blunter, how=steering, progress=progress)}
    across: dict[str, dict] = {}
    with progress.task("comparing SAEs", len(wanted), "pairs") as task:
        for arm, part, one, other in wanted:
            of = [weights[one.label], weights[other.label]]
            earlier = (known or {}).get(arm.label, {}).get(part, {})
            # of side effects a recipe may ask for more latents than before
            is_same = earlier.get("of") == of and (part != "side_effects" or earlier.get("latents") == steering.latents)
            second = other if one is arm else one
            entry = earlier if is_same else {"with": second.label, "of": of, **functions[part](one, other)}
            across.setdefault(arm.label, {})[part] = files.json_safe(entry)
            task.advance(1)
    return across | {label: across[twin] | {"same_weights_as": twin} for label, twin in twins.items() if twin in across}


def found_again(one: Arm, other: Arm) -> dict:
    """Decoder rows of the live latents of one SAE, matched with those of another seed.

    With it comes the variance that a meta SAE explains, less what noise takes.
    """
    sides = _live_rows(one), _live_rows(other)
    matching, chance = match(*sides), chance_matching(*sides, SEED)
    rows = one.measures()["decomposability"]
    ve_over_r, ve_over_r_low = attenuation(rows["meta_ve"], rows["meta_ve_random"], matching.mean_r)
    return {
        **matching.as_dict(),
        "chance_r": chance.mean_r,
        "ve_over_r": ve_over_r,
        "ve_over_r_low": ve_over_r_low,
    }


def _live_rows(arm: Arm) -> torch.Tensor:
    """Decoder rows of the latents that fire, [l, d]."""
    is_live = torch.from_numpy(arm.firings().counts() > 0)
    return arm.sae().W_dec.detach()[is_live]


def split_latents(parents: Arm, children: Arm) -> dict:
    """Latents of one SAE that another has in several pieces, by our score.

    Beside them stand the first of the paper's ranking, on all tokens.
    """
    sides = parents.firings(), children.firings()
    return {**find_splits(*sides).as_dict(RANKED), "paper_ranking": paper_ranking(*sides, count=RANKED)}


def blunter(arm: Arm, solo: Arm, how: Steering, progress: Progress = SILENT) -> dict:
    """How bluntly matched latents of an arm (a) and of solo (b) steer the model."""
    sides = [Side(side.sae(), side.firings()) for side in (arm, solo)]
    return {"latents": how.latents, "pairs": how.pairs, **matched_side_effects(*sides, how, progress)}


PARTS = {"seeds": found_again, "splits": split_latents, "merges": split_latents}


def _pairs(arm: Arm, arms: Sequence[Arm], steering: bool) -> list[tuple[str, Arm, Arm]]:
    """(part, first, second SAE) of what is worked out for `arm`."""
    following = next_seed(arm, arms)
    solo = next((other for other in arms if (other.name, other.seed) == (BASELINE, arm.seed)), None)
    parents, children = (arm, following) if arm.name == BASELINE else (solo, arm)
    pairs = {"seeds": (arm, following), "splits": (parents, children), "merges": (children, parents)}
    if steering and arm.name != BASELINE:
        pairs["side_effects"] = (arm, solo)
    return [(part, *pair) for part, pair in pairs.items() if None not in pair]
