"""What takes two SAEs of a run: latents found again in another seed, solo's latents that split or merge in another arm, and, where it is
asked for, how bluntly the matched latents of both steer the model.

Each arm's seeds stand in a ring, and every seed is matched with the next, so S seeds give S numbers that share seeds, and two
give one; `with` names the second SAE, which their interval needs (`metasae.compare.shared_seeds`). Splits of
solo's latents in an arm are read beside their base rate, splits of solo's latents in solo's own next seed.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from metasae import files
from metasae.compare.compare import read_measured, shared_conditions
from metasae.measures.cofiring.splits import find_splits, paper_ranking
from metasae.measures.effect.matched_effects import Side, Steering, matched_side_effects
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import open_firings
from metasae.measures.rows.attenuation import attenuation
from metasae.measures.rows.seeds import chance_matching, match
from metasae.measures.suite import SEED
from metasae.progress.progress import SILENT, Progress
from metasae.recipe import recipe
from metasae.sae.sae import SAE

BASELINE = "solo"
RANKED = 50


@dataclass(frozen=True)
class Member:
    """A measured SAE of a run: its folder holds primary/, firings/ and measures.json."""

    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    @property
    def measures(self) -> dict:
        return files.read_json(self.folder / "measures.json")

    @property
    def firings(self) -> Firings:
        return open_firings(self.folder / "firings")

    def rows(self, live: np.ndarray) -> torch.Tensor:
        """Decoder rows of the latents that fire, [l, d]."""
        return SAE.load(self.folder / "primary").W_dec.detach()[torch.from_numpy(live)]


def members_of(run_folder: Path) -> list[Member]:
    """All measured SAEs that lie in a run folder, also those that an earlier call asked for.

    Raises UserError where none is measured, and where they were not judged alike.
    """
    measured, _ = read_measured(run_folder)
    shared_conditions(measured)
    return [Member(entry.arm, entry.seed, entry.folder) for entry in measured]


def is_wanted(spec: recipe.Measure, progress: Progress) -> bool:
    """Whether what takes two SAEs is asked for and can be measured; where it cannot, what is left out is said."""
    if spec.across and not spec.keep_firings:
        missing = "seeds, splits and merges" + " and side effects" * bool(spec.side_effects)
        progress.say(f"{missing} are not measured, which takes firings that are kept (measure.keep_firings)")
    return spec.across and spec.keep_firings


def measure_across(
    members: list[Member], done: dict | None = None, progress: Progress = SILENT, steering: Steering | None = None
) -> dict:
    """name -> {seeds, splits, merges, side_effects}, JSON as it is. A part that has no second SAE is absent.

    An SAE with the weights of another (control has solo's) takes over what was found for it. done: what an earlier call gave; parts
    that were worked out with the same two SAEs are kept. steering: None leaves the side effects out.
    Raises UserError for a store of firings that is missing or damaged.
    """
    found: dict[str, dict] = {}
    fingerprints = {member.name: member.measures["conditions"]["sae"] for member in members}
    first = {fingerprint: name for name, fingerprint in reversed(fingerprints.items())}
    unlike = [member for member in members if first[fingerprints[member.name]] == member.name]
    wanted = [
        (member, part, one, other)
        for member in unlike
        for part, one, other in _pairs(member, unlike, steering is not None)
    ]
    parts = PARTS | {"side_effects": partial(blunter, how=steering, progress=progress)}
    with progress.task("comparing SAEs", len(wanted), "pairs") as task:
        for member, part, one, other in wanted:
            of = [fingerprints[one.name], fingerprints[other.name]]
            held = (done or {}).get(member.name, {}).get(part, {})
            # of side effects a recipe may ask for more latents than before
            alike = held.get("of") == of and (part != "side_effects" or held.get("latents") == steering.latents)
            result = (
                held
                if alike
                else {"with": other.name if one is member else one.name, "of": of, **parts[part](one, other)}
            )
            found.setdefault(member.name, {})[part] = files.json_safe(result)
            task.advance(1)
    twins = {member.name: first[fingerprints[member.name]] for member in members if member not in unlike}
    return found | {name: found[twin] | {"same_weights_as": twin} for name, twin in twins.items() if twin in found}


def found_again(one: Member, other: Member) -> dict:
    """Decoder rows of the live latents of one SAE matched with those of another seed, and the variance explained less what noise takes."""
    live, other_live = (member.firings.counts() > 0 for member in (one, other))
    sides = one.rows(live), other.rows(other_live)
    matching, chance = match(*sides), chance_matching(*sides, SEED)
    rows = one.measures["decomposability"]
    ve_over_r, ve_over_r_low = attenuation(rows["meta_ve"], rows["meta_ve_random"], matching.mean_r)
    return {
        **matching.as_dict(),
        "chance_r": chance.mean_r,
        "ve_over_r": ve_over_r,
        "ve_over_r_low": ve_over_r_low,
    }


def split_latents(parents: Member, children: Member) -> dict:
    """Latents of one SAE that another has in several pieces, by our score; beside it the first of the paper's ranking, on all tokens."""
    sides = parents.firings, children.firings
    return find_splits(*sides).as_dict(RANKED) | {
        "paper_ranking": paper_ranking(*sides, count=RANKED)
    }


def blunter(arm: Member, solo: Member, how: Steering, progress: Progress = SILENT) -> dict:
    """How bluntly matched latents of an arm (a) and of solo (b) steer the model."""
    sides = [Side(SAE.load(member.folder / "primary"), member.firings) for member in (arm, solo)]
    return {"latents": how.latents, "pairs": how.pairs, **matched_side_effects(*sides, how, progress)}


PARTS = {"seeds": found_again, "splits": split_latents, "merges": split_latents}


def _pairs(member: Member, members: list[Member], steering: bool) -> list[tuple[str, Member, Member]]:
    """(part, first, second SAE) of what is worked out for `member`."""
    own = sorted((each for each in members if each.arm == member.arm), key=lambda each: each.seed)
    place = own.index(member)
    following = own[(place + 1) % len(own)] if len(own) > 2 or place < len(own) - 1 else None
    same_seed = next((each for each in members if (each.arm, each.seed) == (BASELINE, member.seed)), None)
    other = following if member.arm == BASELINE else same_seed
    pairs = [("seeds", member, following)] if following else []
    if other:
        solo, arm = (member, other) if member.arm == BASELINE else (other, member)
        pairs += [("splits", solo, arm), ("merges", arm, solo)]
        if steering and member.arm != BASELINE:
            pairs.append(("side_effects", member, solo))
    return pairs
