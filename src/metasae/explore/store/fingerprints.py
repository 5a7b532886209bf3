"""What an arm's part of the store is made from, as short digests. Read without torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from metasae.arms.folder import Arm, read_object
from metasae.sae.layout import WEIGHTS


@dataclass(frozen=True)
class Fingerprint:
    """Digests of one arm. text: of the evaluation text that its firings are on, None without firings. weights: of the SAE.

    everything: of the SAE, its meta SAE and its firings. judged: of what was measured and what judges said.
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
