"""Whether a judge can be trusted, by its scores and its agreement with itself.

A score is not above its floor unless its interval (the score itself, where there is none) lies above the larger of
chance and the score with shuffled explanations. A judge is no better than one that answers at random, or always alike,
where its agreement with itself covers less than a fifth of the way from agreement by chance to full agreement (Cohen's
kappa below .2, "slight" in Landis and Koch 1977).

Imports no torch, as reports read this, too.
"""

from collections.abc import Mapping
from typing import NamedTuple

from metasae.interp.choice import EMBEDDING

LEAST_KAPPA = 0.2


class Standing(NamedTuple):
    """The judgement on one score of one SAE, in words. sae: its label. agreement, doubt: None where there is nothing to
    say.
    """

    sae: str
    score: str
    agreement: str | None
    doubt: str | None

    @property
    def line(self) -> str:
        return f"{self.sae}, {self.score}: {'; '.join(filter(None, (self.doubt, self.agreement)))}"


def standings(arms: Mapping[str, Mapping]) -> list[Standing]:
    """The judgements on all scores of which there is something to say. arms: label -> {"interp": summary}, as
    RUN/interp.json holds them.
    """
    every = [
        Standing(label, key, agreement_of(score), silence_of(score) or doubt_of(key, score))
        for label, entry in arms.items()
        for key, score in entry["interp"].get("scores", {}).items()
    ]
    return [standing for standing in every if standing.agreement or standing.doubt]


def agreement_of(score: Mapping) -> str | None:
    """A judge's agreement with itself, in words. score: as interp.json has it."""
    share, by_chance = score.get("self_agreement"), score.get("self_agreement_by_chance")
    if share is None or by_chance is None:
        return None
    return (
        f"asked again in another order, the judge repeats {100 * share:.1f}% of {score['repeated']} answers "
        f"({100 * by_chance:.1f}% by chance)"
    )


def silence_of(score: Mapping) -> str | None:
    """Why a judge's score has no number: no reply could be read. None where one could."""
    asked, unexplained = score.get("asked", 0), score.get("unexplained", 0)
    if not asked + unexplained or asked > score.get("unreadable", 0) + score.get("failed", 0):
        return None
    return f"no score: not one of {asked} replies could be read" if asked else "no score: no explanation could be read"


def doubt_of(key: str, score: Mapping) -> str | None:
    """Why the score `key` cannot be trusted; None where its numbers give no reason for doubt."""
    low = [f"{part} {_against_floor(score, part)}" for part in score.get("parts", {}) if not is_told(score, part)]
    reasons = [f"not above the floor: {', '.join(low)}"] if low else []
    if _is_near_chance(score):
        reasons.append("its agreement with itself is near chance")
    reader = "encoder" if key == EMBEDDING else "judge"
    return f"this {reader} cannot tell: {'; '.join(reasons)}" if reasons else None


def is_told(score: Mapping, part: str) -> bool:
    """Whether a part of a score lies above its floor; true of a part without a number."""
    mean = score["parts"][part]
    low = mean["ci95"][0] if mean.get("ci95") else mean.get("estimate")
    return low is None or low > _floor(score, part)


def _floor(score: Mapping, part: str) -> float:
    shuffled = score["parts"][part].get("shuffled", {}).get("estimate")
    return score["chance"] if shuffled is None else max(score["chance"], shuffled)


def _against_floor(score: Mapping, part: str) -> str:
    mean = score["parts"][part]
    interval = f" [{mean['ci95'][0]:.3f}, {mean['ci95'][1]:.3f}]" if mean.get("ci95") else ""
    return f"{mean['estimate']:.3f}{interval} against {_floor(score, part):.3f}"


def _is_near_chance(score: Mapping) -> bool:
    share, by_chance = score.get("self_agreement"), score.get("self_agreement_by_chance")
    return share is not None and by_chance is not None and share - by_chance <= LEAST_KAPPA * (1 - by_chance)
