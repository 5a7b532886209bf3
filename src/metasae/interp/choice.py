"""The settings of auto-interp for a run, and the arms that they select. Imports no torch, so that a wrong name is
refused at once.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from metasae.arms.folder import Arm, RunFolder
from metasae.errors import UserError, nearest
from metasae.interp.asking import Limits
from metasae.interp.excerpts import WindowSpec
from metasae.recipe.registry import BASELINE

EMBEDDING, INTRUDER = "embedding", "sense_intruder"
# Scores for which a judge reads windows one by one.
READ = ("detection", "fuzz_marks", "fuzz_2afc", "sim_spearman")
KNOWN = (EMBEDDING, *READ, INTRUDER)
# The value of each score for a judge that knows nothing.
CHANCE = {
    "detection": 0.5,
    "fuzz_marks": 0.5,
    "fuzz_2afc": 0.0,
    "sim_spearman": 0.0,
    "embedding": 0.5,
    "sense_intruder": 0.2,
}
STORE = "replies.sqlite"
# The version of the questions, raised when windows or questions are written in another way, as answers to different
# questions are not compared.
PROMPTS = 2


def _listed(words: Any) -> Any:
    """Reads a list with commas; anything but text stays as it is."""
    return [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else words


def _price(words: Any) -> Any:
    """Reads two numbers with a comma; anything but text stays as it is."""
    if not isinstance(words, str):
        return words
    try:
        prompt, completion = map(float, words.split(","))
    except ValueError:
        prompt = completion = float("nan")
    if not (prompt >= 0 and completion >= 0 and prompt + completion < float("inf")):
        raise UserError(f"--price takes the price of a million prompt and completion tokens (0.15,0.6), not '{words}'")
    return prompt, completion


class InterpSpec(BaseModel):
    """The settings of auto-interp for a run. Immutable; an unknown key is an error. Lists may be text with commas.

    scores: of KNOWN; all but `embedding` need a judge. model: the judge's name on its server, or in replay the one that
    answered, which may leave out what a judge adds to its model's name. replay: answers come from RUN/replies.sqlite
    alone. encoder: the folder, package or name of a sentence encoder; None for the run's own model. latents: how many
    are drawn per arm and seed. arms, seeds: only these; None for all. baseline: the arm that others are compared with.
    matched: score the partners of the baseline's latents, too. seed: of all random draws here. price: of a million
    prompt and completion tokens. ask_above: tokens above which a run has to be confirmed. Raises UserError of one line
    for an unknown score, an empty list, and a price, a rate or a length that is not valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: Annotated[tuple[str, ...], BeforeValidator(_listed)] = (EMBEDDING,)
    model: str | None = None
    replay: bool = False
    encoder: str | None = None
    latents: int = 1000
    arms: Annotated[tuple[str, ...] | None, BeforeValidator(_listed)] = None
    seeds: tuple[int, ...] | None = None
    baseline: str = BASELINE
    matched: bool = True
    window: WindowSpec = WindowSpec()
    seed: int = 0
    limits: Limits = Limits()
    price: Annotated[tuple[float, float] | None, BeforeValidator(_price)] = None
    ask_above: int = 2_000_000
    device: str = "cpu"

    @property
    def of_a_judge(self) -> list[str]:
        """The scores for which a judge is asked."""
        return [key for key in self.scores if key != EMBEDDING]

    @property
    def conditions(self) -> dict:
        """What must be alike before the scores of two arms are compared, as interp.json keeps it."""
        return {"windows": dict(vars(self.window)), "seed": self.seed, "asked": self.latents, "prompts": PROMPTS}

    @model_validator(mode="after")
    def _can_be_scored(self) -> "InterpSpec":
        if self.window.length < 1:
            raise UserError(f"windows need a length of at least 1, not {self.window.length}")
        if self.limits.concurrency < 1 or not (self.limits.per_minute is None or self.limits.per_minute > 0):
            raise UserError("a judge needs a concurrency of at least 1 and a rate above 0")
        if self.limits.max_tokens is not None and self.limits.max_tokens < 1:
            raise UserError(f"--max-tokens needs a number of at least 1, not {self.limits.max_tokens}")
        if self.latents < 1:
            raise UserError(f"--latents needs a number of at least 1, not {self.latents}")
        for key in self.scores:
            if key not in KNOWN:
                raise UserError(f"no score '{key}'{nearest(key, KNOWN)}")
        if not self.scores:
            raise UserError(f"--scores names nothing, so no score is asked for; known: {', '.join(KNOWN)}")
        if self.arms == ():
            raise UserError("--arms names nothing; give a list with commas, or leave it out")
        return self


def check(run_folder: Path, spec: InterpSpec, judge: bool) -> None:
    """Raises UserError for scores without their judge, a folder that is not a run's, and a replay without kept
    replies.
    """
    asked = spec.of_a_judge
    if asked and not judge and not (spec.replay and spec.model):
        raise UserError(
            f"{asked[0]} needs a judge: give --judge URL and --model NAME, or --replay with the --model that answered"
        )
    if not run_folder.is_dir():
        raise UserError(f"no folder {run_folder}; give the --out folder of `metasae run`")
    if not (run_folder / "recipe.toml").is_file():
        raise UserError(
            f"{run_folder} is not a run folder: it has no recipe.toml; give the --out folder of `metasae run`"
        )
    if spec.replay and asked and not (run_folder / STORE).is_file():
        raise UserError(f"{run_folder} holds no replies to replay; run with --judge URL and --model NAME first")


def trained_arms(run: RunFolder, baseline: str) -> list[Arm]:
    """A run's trained arms, seed by seed, the baseline of each seed first. Raises UserError where there is none."""
    return sorted(run.trained(), key=lambda arm: (arm.seed, arm.name != baseline, arm.name))


def arms_to_score(run: RunFolder, spec: InterpSpec) -> list[Arm]:
    """The arms that the spec selects. Raises UserError where one is missing or keeps no firings. Where the spec names
    no arms, those that have another arm's weights and keep no firings are left out.
    """
    trained = trained_arms(run, spec.baseline)
    names = sorted({arm.name for arm in trained})
    for name in spec.arms or ():
        if name not in names:
            raise UserError(f"no arm '{name}' is trained in {run.folder}{nearest(name, names)}")
    arms = [arm for arm in trained if arm.name in (spec.arms or names) and arm.seed in (spec.seeds or [arm.seed])]
    if not arms:
        raise UserError(
            f"no trained arm in {run.folder} has the seeds asked for; it has {', '.join(arm.label for arm in trained)}"
        )
    if not spec.arms:
        arms = [arm for arm in arms if arm.has_firings or not is_twin(arm)]
    without = [arm.folder for arm in arms if not arm.has_firings] if arms else [run.folder]
    if without:
        raise UserError(f"{without[0]} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    return arms


def is_twin(arm: Arm) -> bool:
    """Whether the arm's measures are those of another arm with the same weights, as control has solo's."""
    return "same_weights_as" in arm.measures().get("conditions", {})
