"""`RunFolder` and `Arm`: the classes for a run on disk and its arms.

They import no torch; weights and firings are loaded when they are used.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metasae import files
from metasae.errors import UserError
from metasae.recipe.registry import BASELINE, place_of
from metasae.sae.layout import CONFIG

if TYPE_CHECKING:
    from metasae.measures.firing.firings import Firings
    from metasae.sae.sae import SAE

# Parts of across.json: measured splits and merges, and those between two SAEs of one seed.
MEASURED_SPLITS = ("splits", "merges")
SAME_SEED_SPLITS = ("same_seed_splits", "same_seed_merges")
SPLITS = MEASURED_SPLITS + SAME_SEED_SPLITS
_NAME = re.compile(r"(?P<arm>.+)-s(?P<seed>\d+)")


@dataclass(frozen=True)
class Arm:
    """One arm with one seed.

    folder: has primary/ and perhaps meta/, firings/, measures.json, interp.json, metrics.jsonl.
    """

    name: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """The name of its folder in a run, e.g. joint-s0."""
        return f"{self.name}-s{self.seed}"

    @property
    def is_trained(self) -> bool:
        """Whether primary/cfg.json exists; it is written after all weights of an arm."""
        return (self.folder / "primary" / CONFIG).is_file()

    @property
    def is_measured(self) -> bool:
        return (self.folder / "measures.json").is_file()

    @property
    def has_meta(self) -> bool:
        return (self.folder / "meta" / CONFIG).is_file()

    @property
    def has_firings(self) -> bool:
        return (self.folder / "firings" / "index.json").is_file()

    def sae(self) -> "SAE":
        """The primary SAE. Raises UserError if the weights are missing or damaged."""
        from metasae.sae.sae import SAE

        return SAE.load(self.folder / "primary")

    def meta(self) -> "SAE | None":
        """The meta SAE; None if the arm has none."""
        from metasae.sae.sae import SAE

        return SAE.load(self.folder / "meta") if self.has_meta else None

    def firings(self) -> "Firings":
        """The firings on the evaluation split, mapped from disk. Raises UserError if they are missing or damaged."""
        from metasae.measures.firing.store import open_firings

        return open_firings(self.folder / "firings")

    def measures(self) -> dict:
        """The content of measures.json; {} if the SAE is not measured. Raises UserError if the file is not a JSON
        object.
        """
        return read_object(self.folder / "measures.json")

    def interp(self) -> dict:
        """The content of interp.json; {} if there are no scores."""
        return read_object(self.folder / "interp.json")

    def metrics(self) -> list[dict]:
        """The complete rows of metrics.jsonl; a last row that is still being written is left out."""
        return read_metrics(self.folder / "metrics.jsonl")


class RunFolder:
    """A run's folder: recipe.toml, run.json, arms/, and the results over all arms."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def arm(self, name: str, seed: int) -> Arm:
        """An arm of the run, which need not exist yet."""
        return Arm(name, seed, self.folder / "arms" / f"{name}-s{seed}")

    def spikes(self, seed: int) -> Path:
        """The file of the spike-ins that the arms of a seed are trained with, if the recipe has any."""
        return self.folder / "spikes" / f"s{seed}.safetensors"

    def arms(self) -> list[Arm]:
        """Every arm that has a folder, trained or not, in the order of arms and seeds.

        Raises UserError if there is no arms/.
        """
        if not (self.folder / "arms").is_dir():
            raise UserError(
                f"{self.folder} is not a run folder: it has no arms/; give the --out folder of `metasae run`"
            )
        places = [(_NAME.fullmatch(path.name), path) for path in (self.folder / "arms").iterdir() if path.is_dir()]
        arms = [Arm(name["arm"], int(name["seed"]), path) for name, path in places if name]
        return sorted(arms, key=lambda arm: (place_of(arm.name), arm.seed))

    def trained(self) -> list[Arm]:
        """The trained arms. Raises UserError if there is none."""
        arms = [arm for arm in self.arms() if arm.is_trained]
        if not arms:
            raise UserError(f"no arm of {self.folder} is trained yet; run `metasae run` on it first")
        return arms

    def baseline(self, arms: Sequence[Arm]) -> str:
        """The name of the arm that the others are compared with: the one in compare.json, else solo, else the first
        arm.
        """
        names = [arm.name for arm in arms]
        wanted = read_object(self.folder / "compare.json").get("baseline")
        return wanted if wanted in names else BASELINE if BASELINE in names else names[0]

    def across(self) -> dict[str, dict]:
        """The content of across.json, {label: measures that take two SAEs}; {} if there is none.

        Splits and merges of earlier releases are left out: their score ignored whether the parent still exists in the
        other SAE, and both SAEs had the same seed. Raises UserError if the file is not a JSON object.
        """
        entries = read_object(self.folder / "across.json")
        return {
            label: {name: part for name, part in parts.items() if name not in SPLITS or "n_kept" in part}
            for label, parts in entries.items()
        }

    def stored_splits(self) -> dict[tuple[str, str], dict]:
        """{(fingerprint of the parents' weights, of the children's): splits between these two SAEs} from
        across.json.
        """
        parts = [part for entry in self.across().values() for name, part in entry.items() if name in SPLITS]
        return {tuple(part["of"]): part for part in parts}


def next_seed(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The same arm with the next seed; the last seed is followed by the first. None with one seed.

    Two seeds make one pair, which belongs to the first; None for the second.
    """
    own = sorted((other for other in arms if other.name == arm.name), key=lambda other: other.seed)
    place = own.index(arm)
    return own[(place + 1) % len(own)] if len(own) > 2 or place < len(own) - 1 else None


@dataclass(frozen=True)
class SplitPair:
    """Two SAEs to search for splits: latents of `parents` that are split in `children`. Merges swap the two."""

    parents: Arm
    children: Arm

    @property
    def same_seed(self) -> bool:
        """Whether the two share initial weights and batches, so that most latents of one are latents of the other."""
        return self.parents.seed == self.children.seed

    @property
    def parts(self) -> dict[str, tuple[Arm, Arm]]:
        """{part of across.json: (parents, children)}. Between SAEs of one seed the part is only a list to look at, not
        a measure.
        """
        splits, merges = SAME_SEED_SPLITS if self.same_seed else MEASURED_SPLITS
        return {splits: (self.parents, self.children), merges: (self.children, self.parents)}


def split_pair(arm: Arm, arms: Sequence[Arm], baseline: str = BASELINE) -> SplitPair | None:
    """The baseline's SAE of the arm's seed and the arm's SAE of the next seed; None if there is no such pair.

    Two different seeds are used so that the base rate is comparable: it is the splits of the baseline's latents in the
    baseline of another seed. An arm with one seed is paired with the baseline's SAE of that seed, only as a list to
    look at; the baseline itself then has no pair.
    """
    parents = next((other for other in arms if (other.name, other.seed) == (baseline, arm.seed)), None)
    if parents is None:
        return None
    following = next_seed(arm, arms)
    if following is None and arm != parents and sum(other.name == arm.name for other in arms) == 1:
        following = arm
    return SplitPair(parents, following) if following else None


def read_object(path: Path) -> dict:
    """The JSON object in a file; {} if there is no file. Raises UserError for anything else."""
    value = files.read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; delete it and measure again")
    return value


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; [] if there is none. A last line that was cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def split_label(label: str) -> tuple[str, int] | None:
    """(arm, seed) of an arm's label (joint-s0); None for any other text."""
    name = _NAME.fullmatch(label)
    return (name["arm"], int(name["seed"])) if name else None
