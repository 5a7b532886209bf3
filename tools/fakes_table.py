"""What the truth measures for real models say of fakes of a trained SAE, as a Markdown table.

The SAE was trained on activations with spike-ins; a fake changes it and its firings on held-out tokens, and makes no
latent more atomic. A measure is fooled where a fake makes its number better.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from metasae.data.concepts.labels import Bank
from metasae.data.spikes.draw import Spike
from metasae.measures.truth.concepts import score_concepts
from metasae.measures.truth.spike_scores import score_spikes
from metasae.measures.truth.truth import unit
from tools.fakes import FAKES, MORE_FAKES, Fake
from tools.subjects import Subject

# A change below half of the last digit that is printed is none.
DIGITS = 3
# The better direction of each number of `TruthNumbers`.
BETTER = {
    "recovery F1": "higher",
    "told apart": "higher",
    "blend rate": "lower",
    "absorption": "lower",
    "cosine": "higher",
    "1000 x phi error": "lower",
    "best F1": "higher",
    "probe5 F1": "higher",
    "blended": "lower",
}
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class TruthNumbers:
    """What is known of the T tokens that a subject fires on, and the numbers of `BETTER` for a subject.

    strengths: csr [T, m] of the spike-ins. directions: unit rows [m, d]. bank: concepts of the same tokens.
    """

    spikes: list[Spike]
    strengths: csr_array
    directions: np.ndarray
    bank: Bank

    def __call__(self, subject: Subject) -> Numbers:
        table, documents = subject.firings.csr, subject.firings.documents
        spikes = score_spikes(self.spikes, self.strengths, table, documents, self.directions, unit(subject.rows))
        concepts = score_concepts(self.bank, table, documents)
        error = spikes["phi_error"]
        return {
            "recovery F1": spikes["recovery_f1"],
            "told apart": spikes["told_apart"],
            "blend rate": spikes["blend_rate"],
            "absorption": spikes["absorption"],
            "cosine": spikes["cosine"],
            "1000 x phi error": None if error is None else 1000 * error,
            "best F1": concepts["best_f1"],
            "probe5 F1": concepts["probe5_f1"],
            "blended": concepts["blended"],
        }


def read_fakes(
    subject: Subject, numbers_of: Callable[[Subject], Numbers], draws: int, fakes: dict[str, Fake] | None = None
) -> dict[str, list[Numbers]]:
    """Fake -> the numbers of the subject after each of `draws` draws of it. None takes every fake there is."""
    fakes = MORE_FAKES | FAKES if fakes is None else fakes
    return {name: [numbers_of(fake.make(subject, seed)) for seed in range(draws)] for name, fake in fakes.items()}


def is_fooled(before: float | None, after: list[float | None], better: str) -> bool:
    """Whether the mean over draws is better than before by more than their standard deviation, and can be seen.

    False where a number is missing.
    """
    if before is None or None in after:
        return False
    gain = (np.mean(after) - before) * (1 if better == "higher" else -1)
    return bool(gain > max(_spread(after), 0.5 * 10**-DIGITS))


def fakes_table(
    before: Numbers, after: dict[str, list[Numbers]], better: dict[str, str], words: dict[str, str] | None = None
) -> str:
    """Markdown: a row for the subject as it is, one for each fake with means over draws, and the spread over draws.

    `!` stands where a number is fooled (`is_fooled`). words: fake -> its name in the table.
    """
    lines = ["| | " + " | ".join(better) + " |", "|---|" + "---:|" * len(better)]
    lines.append("| *as trained* | " + " | ".join(_shown(before[label]) for label in better) + " |")
    spreads = dict.fromkeys(better, 0.0)
    for name, draws in after.items():
        cells = []
        for label, direction in better.items():
            values = [numbers[label] for numbers in draws]
            if None in values:
                cells.append(_shown(None))
                continue
            spreads[label] = max(spreads[label], _spread(values))
            cells.append(_shown(np.mean(values)) + (" !" if is_fooled(before[label], values, direction) else ""))
        lines.append(f"| {(words or {}).get(name, name.replace('_', ' '))} | " + " | ".join(cells) + " |")
    lines.append("| *largest spread* | " + " | ".join(_shown(spreads[label]) for label in better) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> float:
    """The standard deviation over draws; 0 of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS}f}"
