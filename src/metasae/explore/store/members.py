"""The trained SAEs of a run folder, as the explorer knows them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from metasae import files
from metasae.compare.compare import ARM_FOLDER, ORDER
from metasae.errors import UserError


@dataclass(frozen=True)
class Member:
    """One arm folder with weights. folder: holds primary/ and perhaps meta/, firings/, measures.json, interp.json, metrics.jsonl."""

    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    @property
    def has_firings(self) -> bool:
        return (self.folder / "firings" / "index.json").is_file()

    @property
    def has_meta(self) -> bool:
        return (self.folder / "meta" / "cfg.json").is_file()

    @cached_property
    def measures(self) -> dict:
        """measures.json; {} where the SAE is not measured."""
        return read_object(self.folder / "measures.json")

    @cached_property
    def interp(self) -> dict:
        return read_object(self.folder / "interp.json")

    @cached_property
    def text_digest(self) -> str | None:
        """Of the evaluation text that its firings are on; None without firings."""
        if not self.has_firings:
            return None
        arrays = files.read_json(self.folder / "firings" / "index.json")["arrays"]
        return _digest(*(arrays[name]["blake2b"] for name in ("documents", "tokens", "positions")))

    @cached_property
    def weights(self) -> str:
        """A digest of the SAE: as measures.json has it, else of the file."""
        found = self.measures.get("conditions", {}).get("sae")
        return found or _contents(self.folder / "primary" / "sae_weights.safetensors")

    @cached_property
    def fingerprint(self) -> str:
        """Of the SAE, its meta SAE and its firings."""
        firings = files.read_json(self.folder / "firings" / "index.json")["arrays"] if self.has_firings else {}
        sums = [firings[name]["blake2b"] for name in sorted(firings)]
        return _digest(self.weights, *sums, _contents(self.folder / "meta" / "sae_weights.safetensors"))

    @cached_property
    def said(self) -> str:
        """A digest of what was measured and what judges said."""
        return _digest(*(_contents(self.folder / name) for name in ("measures.json", "interp.json")))


def find_members(run_folder: Path) -> list[Member]:
    """The run's trained SAEs, arms in their usual order. Raises UserError where there is none."""
    if not (run_folder / "arms").is_dir():
        raise UserError(f"{run_folder} is not a run folder: it has no arms/; give the --out folder of `metasae run`")
    names = [(ARM_FOLDER.fullmatch(folder.name), folder) for folder in sorted((run_folder / "arms").iterdir())]
    found = [
        Member(name["arm"], int(name["seed"]), folder)
        for name, folder in names
        if name and (folder / "primary" / "cfg.json").is_file()
    ]
    if not found:
        raise UserError(f"no arm of {run_folder} is trained yet; run `metasae run` on it first")
    return sorted(
        found, key=lambda each: (ORDER.index(each.arm) if each.arm in ORDER else len(ORDER), each.arm, each.seed)
    )


def next_seed(member: Member, members: list[Member]) -> Member | None:
    """The next SAE of the same arm, the seeds standing in a ring; None with one seed. Two seeds are one pair, seen from the first."""
    own = [each for each in members if each.arm == member.arm]
    place = own.index(member)
    return own[(place + 1) % len(own)] if len(own) > 2 or place < len(own) - 1 else None


def baseline_of(run_folder: Path, members: list[Member]) -> str:
    """The arm whose latents are split: as in compare.json, else solo, else the first."""
    arms = {member.arm for member in members}
    wanted = read_object(run_folder / "compare.json").get("baseline")
    return wanted if wanted in arms else "solo" if "solo" in arms else members[0].arm


def read_object(path: Path) -> dict:
    """A JSON object from a file; {} where there is none. Raises UserError for anything else."""
    found = files.read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object; delete it and measure again")
    return found


def _contents(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else ""


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
