"""`metasae interp`: every arm's latents scored on windows of the evaluation text, arm against arm.

RUN/arms/<arm>-s<seed>/interp.json    coverage, scores and every latent's own numbers (`metasae.interp.scores`)
RUN/interp.json                       per arm folder the part `interp`, and per pair of arms the differences

With `matched`, an arm also scores the partners of the baseline's latents. Scores of an earlier call stay where they are
for the same windows of the same SAE; others are replaced. RUN/interp.json covers all arms whose scores have the same
conditions as those of the last call.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from metasae import files
from metasae.arms.folder import Arm, RunFolder
from metasae.arms.source import Source
from metasae.errors import UserError
from metasae.interp.asking import Asker, Estimator, Judge, cost_of, spent
from metasae.interp.choice import (
    EMBEDDING,
    INTRUDER,
    READ,
    STORE,
    InterpSpec,
    arms_to_score,
    check,
    is_twin,
    trained_arms,
)
from metasae.interp.draws import LatentWindows
from metasae.interp.embedding import EmbeddingScorer, encoder_of
from metasae.interp.excerpts import Text, planted_strings, token_strings
from metasae.interp.intruder import Splits, intruder_score, splits_of
from metasae.interp.reader import Reader
from metasae.interp.replies import ReplyStore
from metasae.interp.scores import FILE, Score, ScoreFile, merged, other_latents, read_scores, with_earlier
from metasae.interp.subject import Base, Subject, open_subject, open_view
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import of_firings
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe

# (the SAE's firings, windows of m latents, for each the one whose explanation is borrowed or None) -> one score of them
Scorer = Callable[[ByLatent, Sequence[LatentWindows], np.ndarray | None], Score]


def run_interp(
    run_folder: str | Path,
    spec: InterpSpec,
    judge: Judge | None = None,
    confirm: Callable[[dict], bool] | None = None,
    show: bool = True,
) -> dict:
    """Scores the latents of a run whose arms keep their firings; see `Scoring.write` for what it writes and returns.

    confirm: is shown the estimate above `spec.ask_above` and says whether to go on. RUN/interp.json and the returned
    dictionary hold under `judge` its name, the estimate and what was asked. Raises UserError for a score that lacks its
    judge or encoder, where nothing answers at a judge's address, and where the estimate is not confirmed.
    """
    run, progress = RunFolder(run_folder), Progress(show)
    check(run.folder, spec, judge is not None)
    source = Source(Recipe.stored(run.folder / "recipe.toml"), run.folder, spec.device, progress)
    scoring = Scoring(run, spec, lambda firings: _text(source, firings, spec.seed), progress)
    embedding, judges = {}, {}
    if EMBEDDING in spec.scores:
        embedding[EMBEDDING] = EmbeddingScorer(scoring.text, encoder_of(spec.encoder, source), spec.window, progress)
        judges[EMBEDDING] = spec.encoder or source.recipe.model.source
    if not spec.of_a_judge:
        return scoring.write(embedding, judges)
    with ReplyStore(run.folder / STORE) as store:
        replayed = store.name_of(spec.model if judge is None else judge.name) if spec.replay else None
        asker = Asker(None if spec.replay else judge, store, replayed, spec.limits, progress)
        estimate = None if spec.replay else _confirmed(scoring, asker, confirm)
        judges |= dict.fromkeys([*READ, INTRUDER], asker.name)
        together = scoring.write(embedding, judges, asker)
        asked = {**asker.tally, "cost": cost_of(asker.tally, spec.price)}
        together["judge"] = {"name": asker.name, "estimate": estimate, "asked": asked}
    files.write_json(run.folder / FILE, together)
    return together


def _confirmed(scoring: "Scoring", asker: Asker, confirm: Callable[[dict], bool] | None) -> dict:
    """The estimate with its cost.

    Raises UserError where nothing answers, and where it is above the limit and not confirmed.
    """
    spec = scoring.spec
    # a judge need not run where all its replies are kept
    if hasattr(asker.judge, "look") and asker.name not in asker.store.models():
        asker.judge.look()
    estimator = Estimator(asker)
    for _ in scoring.scored({}, estimator):
        # scoring the arms with made-up replies counts what would be asked
        pass
    estimate = {**estimator.questions, "cost": cost_of(estimator.questions, spec.price)}
    tokens = estimate["prompt_tokens"] + estimate["completion_tokens"]
    if tokens > spec.ask_above and not (confirm is not None and confirm(estimate)):
        raise UserError(
            f"this asks {estimate['questions']:,} questions, up to {tokens:,} tokens{spent(estimate['cost'])}; "
            "confirm it with --yes, or ask for less"
        )
    return estimate


def _text(source: Source, firings: Firings, seed: int) -> Text:
    planted = source.open({"evaluation": firings.n_tokens}).split("evaluation") if source.planted else None
    places = firings.tokens, firings.documents, firings.positions
    string_of = planted_strings(planted) if source.planted else token_strings(source.host.tokenizer, *places)
    return Text(firings.documents, firings.tokens, firings.positions, string_of, seed)


class Scoring:
    """The arms of one call, their text, and the latents of each that are scored, the same for every reader.

    text_of: an arm's firings -> the text they lie in. Raises UserError for a folder that is no run, an arm that is not
    there or keeps no firings, and, where latents are drawn, for arms judged on different text.
    """

    def __init__(
        self, run: RunFolder, spec: InterpSpec, text_of: Callable[[Firings], Text], progress: Progress = SILENT
    ):
        self.run, self.spec, self.progress = run, spec, progress
        self.trained = trained_arms(run, spec.baseline)
        self.arms = arms_to_score(run, spec)
        self.text = text_of(self.arms[0].firings())

    @cached_property
    def subjects(self) -> list[Subject]:
        """The arms with what was drawn of them, the baseline of each seed before those that are matched with it."""
        subjects: dict[Arm, Subject] = {}
        for arm in self.arms:
            base = self._base(arm, subjects) if self.spec.matched and arm.name != self.spec.baseline else None
            subjects[arm] = open_subject(arm, base, self.text, self.spec, self.progress)
        return list(subjects.values())

    @cached_property
    def splits(self) -> dict[Arm, Splits | None]:
        """The splits that give each arm its siblings, None where there is no second SAE; {} where no score
        needs them.
        """
        arms = self.arms if INTRUDER in self.spec.scores else []
        return {arm: splits_of(self.run, arm, self.trained, self.spec.baseline, self.progress) for arm in arms}

    def scored(
        self, scorers: Mapping[str, Scorer], asker: Asker | Estimator | None
    ) -> Iterator[tuple[Subject, dict[str, Score], tuple[dict, list[dict]] | None]]:
        """Each subject with its scores by key, and those of its siblings as `intruder_score` has them.

        scorers: of the scores without a judge. asker: asks for the other scores of the spec.
        """
        reader = Reader(asker, self.text, self.spec.window, self.spec.seed)
        scorers = {**scorers, **{key: reader.scorer(key) for key in self.spec.scores if key in READ}}
        for subject in self.subjects:
            floor = other_latents(len(subject.latents), self.spec.seed)
            scores = {key: scorer(subject.view, subject.windows, floor) for key, scorer in scorers.items()}
            splits, view = self.splits.get(subject.arm), subject.view
            if splits is not None and splits.sides.children != subject.arm:
                view = open_view(splits.sides.children, self.text, self.progress)[1]
            yield subject, scores, splits and intruder_score(reader, view, splits)

    def write(self, scorers: Mapping[str, Scorer], judges: Mapping[str, str], asker: Asker | None = None) -> dict:
        """Scores the arms and writes the files named above. judges: score -> who reads for it. scorers, asker: as for
        `scored`.

        Returns what RUN/interp.json holds; `left_out` says which earlier scores were replaced or are of other windows.
        """
        left_out = []
        for subject, scores, siblings in self.scored(scorers, asker):
            arm, content = subject.arm, self._content(subject, scores, siblings, judges)
            content, dropped = with_earlier(content, read_scores(arm))
            files.write_json(arm.folder / FILE, content)
            left_out += [
                f"{arm.label}: the earlier {key} was for other windows or another SAE, so it is replaced"
                for key in dropped
            ]
        current = []
        for scores in filter(None, (read_scores(arm) for arm in self.trained if not is_twin(arm))):
            if self._is_current(scores):
                current.append(scores)
            else:
                left_out.append(
                    f"{scores.arm.label}: its scores are for other windows or an earlier SAE, so they are left out; "
                    "score it again with the same settings"
                )
        together = {**merged(current, self.spec.baseline), "left_out": left_out}
        files.write_json(self.run.folder / FILE, together)
        return together

    def _base(self, arm: Arm, subjects: Mapping[Arm, Subject]) -> Base | None:
        """The baseline's SAE of the arm's seed, as drawn in this call or scored alike before it; None without."""
        base = self.run.arm(self.spec.baseline, arm.seed)
        if base in subjects:
            subject = subjects[base]
            return Base(base, subject.view, subject.latents[: subject.n_own])
        scores = read_scores(base)
        if scores is None or not self._is_current(scores):
            return None
        own = [latent for latent, is_own in zip(scores.latents, scores.own, strict=True) if is_own]
        return Base(base, open_view(base, self.text, self.progress)[1], own)

    def _is_current(self, scores: ScoreFile) -> bool:
        """Whether scores are for the same windows and for the present weights."""
        conditions, arm = scores.content["conditions"], scores.arm
        of_these_windows = all(conditions.get(name) == value for name, value in self.spec.conditions.items())
        return of_these_windows and arm.has_firings and conditions["of"] == of_firings(arm.folder)

    def _content(
        self,
        subject: Subject,
        scores: Mapping[str, Score],
        siblings: tuple[dict, list[dict]] | None,
        judges: Mapping[str, str],
    ) -> dict:
        """What the arm's interp.json holds of this call."""
        seed, base = self.spec.seed, subject.base
        summaries = {key: score.as_dict(range(subject.n_own), subject.clusters, seed) for key, score in scores.items()}
        if siblings is not None:
            summaries[INTRUDER] = siblings[0]
        elif INTRUDER in self.spec.scores:
            summaries[INTRUDER] = Score(INTRUDER, {"all": np.zeros(0)}).as_dict([], np.zeros(0, np.int64), seed)
            summaries[INTRUDER]["parts"]["all"]["note"] = "no SAE of another seed, in which a latent could be split"
        return {
            "conditions": {
                **self.spec.conditions,
                "latents": subject.n_own,
                "of": of_firings(subject.arm.folder),
                "matched_with": base and of_firings(base.arm.folder),
            },
            "coverage": subject.coverage,
            "scores": {key: {**summary, "judge": judges.get(key)} for key, summary in summaries.items()},
            **({"matched": subject.matched} if subject.matched else {}),
            "latents": _per_latent(subject, scores, judges),
            "pairs": [list(pair) for pair in subject.pairs],
            **({} if siblings is None else {"siblings": siblings[1]}),
        }


def _per_latent(subject: Subject, scores: Mapping[str, Score], judges: Mapping[str, str]) -> dict:
    """latent -> own, token, explanation and its judge, and score -> part -> number, with None where a latent lacks
    windows of that part.
    """
    entries = {}
    for row, latent in enumerate(subject.latents):
        entry: dict = {"own": row < subject.n_own, "token": int(subject.clusters[row])}
        for key, score in scores.items():
            values = {part: float(numbers[row]) for part, numbers in score.values.items()}
            entry[key] = {part: value if np.isfinite(value) else None for part, value in values.items()}
            if score.explanations:
                entry |= {"explanation": score.explanations[row], "judge": judges.get(key)}
        entries[str(latent)] = entry
    return entries
