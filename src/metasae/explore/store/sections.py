"""The sections of a run's store, each with a fingerprint of the files that it is made from.

These are read from names, configs and checksums alone, without torch, so that checking whether a store is complete and
of this run takes a moment.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from metasae.arms.folder import Arm, RunFolder, next_seed, read_object, split_pair
from metasae.explore.store.blobs import WINDOWS
from metasae.explore.store.schema import BASE, FORMAT, MERGES, MERGES_BASE, SPLITS
from metasae.explore.store.summary import is_causal
from metasae.recipe.recipe import Recipe
from metasae.sae.layout import WEIGHTS


@dataclass(frozen=True)
class Section:
    """of: what it is made from, as the arguments of its writer in `writing.py`.

    name: `text:DIGEST`, `sae:ARM`, `interp:ARM`, `pair:ARM|ARM`, `splits:ARM|ARM`, `logits:ARM` or `overview`.
    """

    name: str
    fingerprint: str
    of: tuple


class Contents:
    """The sections that the store of one run folder needs."""

    def __init__(self, run_folder: Path):
        """Raises UserError for a folder that is no run, or has no trained arm."""
        self.folder, self.run = run_folder, RunFolder(run_folder)
        self.arms = self.run.trained()
        self.baseline = self.run.baseline(self.arms)
        self.prints = {arm: fingerprint_of(arm) for arm in self.arms}
        # an arm with firings on each evaluation text
        self.texts = {fingerprint.text: arm for arm, fingerprint in self.prints.items() if fingerprint.text}
        path = run_folder / "recipe.toml"
        self.recipe = Recipe.stored(path) if path.is_file() else None
        self.causal = is_causal(self.recipe)

    def sections(self) -> list[Section]:
        """In the order in which they are written."""
        prints = {
            arm: f"{FORMAT} {WINDOWS} {fingerprint.text} {fingerprint.everything}"
            for arm, fingerprint in self.prints.items()
        }
        sections = [Section(f"text:{digest}", digest, (arm,)) for digest, arm in self.texts.items()]
        sections += [Section(f"sae:{arm.label}", prints[arm], (arm,)) for arm in self.arms]
        sections += [
            Section(f"interp:{arm.label}", f"{prints[arm]} {self.prints[arm].judged}", (arm,)) for arm in self.arms
        ]
        sections += [
            Section(f"pair:{one.label}|{other.label}", f"{prints[one]} {prints[other]}", (one, other))
            for one, other in self._pairs()
        ]
        for kind, parent, child, known in self._split_pairs():
            both = f"{kind} {prints[parent]} {prints[child]} {json.dumps(known)}"
            sections.append(Section(f"splits:{parent.label}|{child.label}", both, (kind, parent, child, known)))
        if self.causal:
            sections += [Section(f"logits:{arm.label}", self.prints[arm].weights, (arm,)) for arm in self.arms]
        return [*sections, Section("overview", self._overview_print(list(prints.values())), ())]

    def _pairs(self) -> list[tuple[Arm, Arm]]:
        """Those of one seed in two arms, and those of one arm in neighbouring seeds."""
        same_seed = [(one, other) for one, other in combinations(self.arms, 2) if one.seed == other.seed]
        seeds = [(arm, next_seed(arm, self.arms)) for arm in self.arms]
        return same_seed + [(arm, following) for arm, following in seeds if following]

    def _split_pairs(self) -> Iterator[tuple[str, Arm, Arm, dict | None]]:
        """(kind, parents, children, None or what across.json says of them).

        The baseline in every other arm of the next seed (with one seed, of its own), the other way round, and as their
        base rate the baseline in its next seed, both ways. An arm with the baseline's very weights (control) has
        nothing beside the base rate. Candidates are looked for in the firings; of SAEs that kept none across.json has
        the best.
        """
        weights = {arm.seed: self.prints[arm].weights for arm in self.arms if arm.name == self.baseline}
        sides: list[tuple[str, Arm, Arm]] = []
        for arm in self.arms:
            pair = split_pair(arm, self.arms, self.baseline)
            is_baseline = arm.name == self.baseline
            if pair is not None and (is_baseline or self.prints[arm].weights != weights[arm.seed]):
                splits, merges = (BASE, MERGES_BASE) if is_baseline else (SPLITS, MERGES)
                sides += [(splits, pair.parents, pair.children), (merges, pair.children, pair.parents)]
        stored = self.run.stored_splits()
        for kind, parent, child in sides:
            prints = (self.prints[parent], self.prints[child])
            known = stored.get((prints[0].weights, prints[1].weights))
            if prints[0].text and prints[0].text == prints[1].text:
                yield kind, parent, child, None
            elif known is not None and not (parent.has_firings and child.has_firings):
                yield kind, parent, child, known

    def _overview_print(self, prints: list[str]) -> str:
        # a comparison that is made again is mostly the same to the byte
        written = [self.folder / name for name in ("compare.json", "recipe.toml")]
        states = [_contents(file) for file in written]
        curves = [arm.folder / "metrics.jsonl" for arm in self.arms]
        states += [f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file.is_file() else "" for file in curves]
        return "\n".join([*prints, *(fingerprint.judged for fingerprint in self.prints.values()), *states])


@dataclass(frozen=True)
class Fingerprint:
    """Digests of one arm.

    text: of the evaluation text that its firings are on, None without firings. weights: of the SAE.

    everything: of the SAE, its meta SAE and its firings. judged: of its measures and the judges' replies.
    """

    text: str | None
    weights: str
    everything: str
    judged: str


def fingerprint_of(arm: Arm) -> Fingerprint:
    arrays = read_object(arm.folder / "firings" / "index.json").get("arrays", {})
    sums = {name: entry["blake2b"] for name, entry in arrays.items()}
    text = _digest(*(sums[name] for name in ("documents", "tokens", "positions"))) if sums else None
    weights = weights_of(arm)
    everything = _digest(weights, *(sums[name] for name in sorted(sums)), _contents(arm.folder / "meta" / WEIGHTS))
    judged = _digest(*(_contents(arm.folder / name) for name in ("measures.json", "interp.json")))
    return Fingerprint(text, weights, everything, judged)


def weights_of(arm: Arm) -> str:
    """A digest of the SAE: as measures.json has it, else of the file."""
    return arm.measures().get("conditions", {}).get("sae") or _contents(arm.folder / "primary" / WEIGHTS)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _contents(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else ""
