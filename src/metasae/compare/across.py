"""Measures that take two SAEs of a run: seeds, splits and merges, and side effects.

Seeds: latents that are found again in another seed. Splits and merges: latents of solo that another arm splits into
several, or several that it merges into one. Side effects, if they are asked for: how much the matched latents of both
SAEs change the model's output where they do not fire.

Each seed of an arm is matched with the next, and the last with the first. So S seeds give S numbers that share seeds,
and two seeds give one number. `with` names the SAE of the other seed, which the interval needs
(`metasae.compare.compare`).

Arms of one seed share initial weights and batches, so most of solo's latents are also latents of the arm. Splits in an
arm of the same seed can therefore not be compared with splits in solo's next seed, their base rate. So both use the
next seed: solo-s0 in joint-s1 (the column of joint-s0) and solo-s0 in solo-s1 (the column of solo-s0). Merges swap
parents and children. An arm with one seed has neither; its candidates between two SAEs of one seed are listed under
other names (`same_seed_splits`), which no comparison reads.
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
    """All measured SAEs in a run folder, also those of earlier calls.

    Raises UserError if none is measured, or if they were not measured alike.
    """
    measured, _ = read_measured(run_folder)
    shared_conditions(measured)
    return [entry.arm for entry in measured]


def is_wanted(spec: recipe.Measure, progress: Progress) -> bool:
    """Whether measures that take two SAEs are asked for and possible. Prints what is left out."""
    if spec.across and not spec.keep_firings:
        missing = "seeds, splits and merges" + " and side effects" * bool(spec.side_effects)
        progress.say(f"{missing} are not measured, as this needs kept firings (measure.keep_firings)")
    return spec.across and spec.keep_firings


def measure_across(
    arms: Sequence[Arm], known: dict | None = None, progress: Progress = SILENT, steering: Steering | None = None
) -> dict:
    """Measures all pairs; returns {label: {seeds, splits, merges, side_effects}} as plain JSON. A part without a second
    SAE is absent.

    Splits are between solo's SAE of the label's seed and the label's arm in the next seed. With one seed they are
    called same_seed_splits and same_seed_merges.

    An SAE with the same weights as another (control has solo's) takes over its parts. known: the result of an earlier
    call; parts of the same two SAEs are kept. steering: None leaves the side effects out. Raises UserError for firings
    that are missing or damaged.
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
            # a recipe may ask for side effects of more latents than before
            is_same = earlier.get("of") == of and (part != "side_effects" or earlier.get("latents") == steering.latents)
            entry = earlier if is_same else {"with": second.label, "of": of, **functions[part](one, other)}
            across.setdefault(arm.label, {})[part] = files.json_safe(entry)
            task.advance(1)
    return across | {label: across[twin] | {"same_weights_as": twin} for label, twin in twins.items() if twin in across}


def found_again(one: Arm, other: Arm) -> dict:
    """Matches the decoder rows of the live latents of one SAE with those of another seed.

    The result also has the variance that a meta SAE explains, corrected for the noise that the other seed shows.
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
    """Decoder rows [l, d] of the latents that fire."""
    is_live = torch.from_numpy(arm.firings().counts() > 0)
    return arm.sae().W_dec.detach()[is_live]


def split_latents(parents: Arm, children: Arm) -> dict:
    """The latents of one SAE that another SAE splits into several, by our score.

    The result also has the first latents of the paper's ranking, on all tokens.
    """
    sides = parents.firings().counted, children.firings().counted
    names = {"parents": parents.label, "children": children.label}
    return {**names, **find_splits(*sides).as_dict(RANKED), "paper_ranking": paper_ranking(*sides, count=RANKED)}


def blunter(arm: Arm, solo: Arm, how: Steering, progress: Progress = SILENT) -> dict:
    """The side effects of steering with matched latents of an arm (a) and of solo (b)."""
    sides = [Side(side.sae(), side.firings()) for side in (arm, solo)]
    return {"latents": how.latents, "pairs": how.pairs, **matched_side_effects(*sides, how, progress)}


PARTS = {"seeds": found_again, **dict.fromkeys(SPLITS, split_latents)}


def _pairs(arm: Arm, arms: Sequence[Arm], steering: bool) -> list[tuple[str, Arm, Arm, Arm]]:
    """[(part, its two SAEs, the SAE that `with` names)] for `arm`."""
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
