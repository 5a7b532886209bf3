"""What takes two SAEs of a run: seeds, splits and merges, and side effects.

Seeds: latents found again in another seed. Splits and merges: solo's latents that another arm has in pieces, or as one.
Side effects, where they are asked for: how bluntly the matched latents of both steer the model.

Each arm's seeds stand in a ring, and every seed is matched with the next, so S seeds give S numbers that share seeds,
and two give one; `with` names the SAE of the other seed, which their interval needs (`metasae.compare.compare`).

Arms of one seed share initial weights and batches, so most of solo's latents are latents of the arm. Splits in an arm
of the same seed are therefore no match for splits in solo's next seed, their base rate. Both are of the next seed:
solo-s0 in joint-s1 (the column of joint-s0) beside solo-s0 in solo-s1 (that of solo-s0). Merges swap parents and
children. An arm with one seed has neither; its candidates between two SAEs of one seed are listed under names of their
own (`same_seed_splits`), which no comparison reads.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from metasae import files
from metasae.arms.folder import SPLITS, Arm, next_seed, split_pair
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

    Splits are of the label's seed of solo and the label's arm in the next seed; with one seed they are same_seed_splits
    and same_seed_merges.

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
        for arm, part, one, other, second in wanted:
            of = [weights[one.label], weights[other.label]]
            earlier = (known or {}).get(arm.label, {}).get(part, {})
            # of side effects a recipe may ask for more latents than before
            is_same = earlier.get("of") == of and (part != "side_effects" or earlier.get("latents") == steering.latents)
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
    sides = parents.firings().counted, children.firings().counted
    names = {"parents": parents.label, "children": children.label}
    return {**names, **find_splits(*sides).as_dict(RANKED), "paper_ranking": paper_ranking(*sides, count=RANKED)}


def blunter(arm: Arm, solo: Arm, how: Steering, progress: Progress = SILENT) -> dict:
    """How bluntly matched latents of an arm (a) and of solo (b) steer the model."""
    sides = [Side(side.sae(), side.firings()) for side in (arm, solo)]
    return {"latents": how.latents, "pairs": how.pairs, **matched_side_effects(*sides, how, progress)}


PARTS = {"seeds": found_again, **dict.fromkeys(SPLITS, split_latents)}


def _pairs(arm: Arm, arms: Sequence[Arm], steering: bool) -> list[tuple[str, Arm, Arm, Arm]]:
    """(part, its two SAEs, the one that `with` names) of what is worked out for `arm`."""
    pairs = []
    following, splits = next_seed(arm, arms), split_pair(arm, arms)
    if following:
        pairs.append(("seeds", arm, following, following))
    if splits:
        second = splits.parents if splits.same_seed else splits.children
        pairs += [(part, *sides, second) for part, sides in splits.parts.items()]
    solo = next((other for other in arms if (other.name, other.seed) == (BASELINE, arm.seed)), None)
    if steering and arm.name != BASELINE and solo:
        pairs.append(("side_effects", arm, solo, solo))
    return pairs
