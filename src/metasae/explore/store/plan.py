"""What the store of a run is made of: a list of parts, each with a fingerprint of what it is made from.

Read from names, configs and checksums alone, without torch: whether a store is whole and of this run is known in a moment.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from metasae.explore.store import summary
from metasae.explore.store.members import Member, baseline_of, find_members, next_seed, read_object
from metasae.explore.store.schema import BASE, FORMAT, MERGES, SPLITS


@dataclass(frozen=True)
class Part:
    """of: what it is made from, as the arguments of its writer in `parts.py`.

    name: `text:DIGEST`, `sae:NAME`, `interp:NAME`, `pair:NAME|NAME`, `splits:NAME|NAME`, `logits:NAME` or `overview`.
    """

    name: str
    fingerprint: str
    of: tuple

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


class Plan:
    """The parts of one run folder's store. windows: shown of each latent, at most."""

    def __init__(self, run_folder: Path, windows: int):
        self.run_folder, self.windows = run_folder, windows
        self.members = find_members(run_folder)
        self.baseline = baseline_of(run_folder, self.members)
        self.causal = summary.is_causal(run_folder)

    def parts(self) -> list[Part]:
        """In the order in which they are written."""
        texts = {member.text_digest: member for member in self.members if member.has_firings}
        prints = {
            member.name: f"{FORMAT} {self.windows} {member.text_digest} {member.fingerprint}" for member in self.members
        }
        found = [Part(f"text:{digest}", str(digest), (member,)) for digest, member in texts.items()]
        found += [Part(f"sae:{member.name}", prints[member.name], (member,)) for member in self.members]
        found += [
            Part(f"interp:{member.name}", f"{prints[member.name]} {member.said}", (member,)) for member in self.members
        ]
        for one, other in self._pairs():
            both = f"{prints[one.name]} {prints[other.name]}"
            found.append(Part(f"pair:{one.name}|{other.name}", both, (one, other)))
        for kind, parent, child, known in self._split_pairs():
            both = f"{kind} {prints[parent.name]} {prints[child.name]} {json.dumps(known)}"
            found.append(Part(f"splits:{parent.name}|{child.name}", both, (kind, parent, child, known)))
        if self.causal:
            found += [Part(f"logits:{member.name}", member.weights, (member,)) for member in self.members]
        return [*found, Part("overview", self._overview_print(prints), ())]

    def _pairs(self) -> list[tuple[Member, Member]]:
        """Those of one seed in two arms, and those of one arm in neighbouring seeds."""
        every = [(one, other) for place, one in enumerate(self.members) for other in self.members[place + 1 :]]
        same_seed = [(one, other) for one, other in every if one.seed == other.seed]
        following = [(member, other) for member in self.members if (other := next_seed(member, self.members))]
        return same_seed + following

    def _split_pairs(self) -> list[tuple[str, Member, Member, dict | None]]:
        """(kind, parents, children, None or what across.json says of them).

        The baseline in every other arm of its seed, the other way round, and the baseline in its next seed. Candidates are looked for
        in the firings; across.json, which has the best of them alone, speaks for SAEs that kept none.
        """
        found = []
        for base in (member for member in self.members if member.arm == self.baseline):
            others = [member for member in self.members if member.seed == base.seed and member.arm != self.baseline]
            found += [(SPLITS, base, other) for other in others] + [(MERGES, other, base) for other in others]
            if following := next_seed(base, self.members):
                found.append((BASE, base, following))
        counted = [
            (*each, None) for each in found if each[1].text_digest and each[1].text_digest == each[2].text_digest
        ]
        told = [
            (*each, self._across.get((each[1].weights, each[2].weights)))
            for each in found
            if not (each[1].has_firings and each[2].has_firings)
        ]
        return counted + [each for each in told if each[-1] is not None]

    @cached_property
    def _across(self) -> dict[tuple[str, str], dict]:
        """(parents' weights, children's weights) -> the candidates in across.json."""
        parts = [
            entry[part]
            for entry in read_object(self.run_folder / "across.json").values()
            for part in (SPLITS, MERGES)
            if part in entry
        ]
        return {tuple(part["of"]): part for part in parts}

    def _overview_print(self, prints: dict[str, str]) -> str:
        # a comparison that is made again is mostly the same to the byte
        written = [self.run_folder / name for name in ("compare.json", "recipe.toml")]
        states = [blake2b(file.read_bytes(), digest_size=16).hexdigest() if file.is_file() else "" for file in written]
        curves = [member.folder / "metrics.jsonl" for member in self.members]
        states += [f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file.is_file() else "" for file in curves]
        return "\n".join([*prints.values(), *(member.said for member in self.members), *states])
