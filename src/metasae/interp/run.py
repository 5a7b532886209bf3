"""Auto-interp of a run: every arm's latents scored on windows of the evaluation text, arm against arm.

RUN/arms/<arm>-s<seed>/interp.json    coverage, scores and every latent's own numbers (`metasae.interp.held`)
RUN/interp.json                       what comparison reads (`metasae.interp.pairs`): per arm folder the part `interp`, and per pair of
                                      arms the differences

With `matched`, an arm also scores the partners of the baseline's latents. Scores of an earlier call that looked at the same windows of the
same SAE stay; others are replaced. RUN/interp.json is of all arms whose scores are alike those of the last call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metasae import files
from metasae.compare.compare import BASELINE
from metasae.interp.choice import arms_to_score, find_arms, is_twin
from metasae.interp.coverage import LatentWindows
from metasae.interp.held import FILE, INTRUDER, Held, read_held, with_earlier
from metasae.interp.intruder import Siblings, intruder_score
from metasae.interp.pairs import alike, merged
from metasae.interp.reader import Reader
from metasae.interp.result import CHANCE, Score, other_latents
from metasae.interp.siblings import Splits, splits_of
from metasae.interp.subject import Subject, matched_latents, open_subject, view_of
from metasae.interp.windows import Text, WindowSpec
from metasae.intervals.resampling import bootstrap_interval
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.store import of_firings, open_firings
from metasae.progress.progress import SILENT, Progress

# (the SAE's firings, windows of m latents, for each the one whose explanation is borrowed or None) -> one score of them
Scorer = Callable[[ByLatent, Sequence[LatentWindows], np.ndarray | None, Progress], Score]


@dataclass(frozen=True)
class Scored:
    """What was found for one arm and seed. latents: the arm's own sample, then partners of the baseline's that are not in it.

    n_own: how many are the sample. pairs: (latent of the baseline, latent of this SAE). clusters: int [m]. siblings: where they were asked
    about, None where there is no second SAE.
    """

    subject: Subject
    latents: list[int]
    n_own: int
    clusters: np.ndarray
    scores: dict[str, Score]
    pairs: tuple[tuple[int, int], ...]
    facts: dict
    siblings: Siblings | None = None


@dataclass(frozen=True)
class Base:
    """The SAE with whose latents an arm's are matched. own: its sample."""

    folder: Path
    view: ByLatent
    own: list[int]


def score_arms(
    run_folder: str | Path,
    text_of: Callable[[object], Text],
    scorers: Callable[[Text], Mapping[str, Scorer]],
    *,
    intruder: Callable[[Text], Reader] | None = None,
    splits: dict[str, Splits | None] | None = None,
    judges: Mapping[str, str] | None = None,
    latents: int = 1000,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    baseline: str = BASELINE,
    matched: bool = True,
    spec: WindowSpec | None = None,
    seed: int = 0,
    keep: bool = True,
    progress: Progress = SILENT,
) -> dict:
    """Scores the arms of a measured run and writes the files named above; returns what RUN/interp.json holds, and under `left_out` what
    earlier scores were replaced or are of other windows, in words.

    text_of: an arm's firings -> the text they lie in. scorers: key -> scorer, for that text. intruder: who reads for sense_intruder, None
    without that score. splits: of the arms by name, where they were found before; what is missing is added. judges: score -> who reads for
    it. latents: how many per arm and seed. arms, seeds: only these. spec: of the windows; None
    for the default. seed: of everything random here. keep: write the files; without it nothing is returned.
    Raises UserError for a folder that is no run, an arm that is not there or keeps no firings, and arms judged on different text.
    """
    run_folder, spec = Path(run_folder), spec or WindowSpec()
    found = arms_to_score(run_folder, arms, seeds, baseline)
    text = text_of(open_firings(found[0][2] / "firings"))
    known = scorers(text)
    reader = intruder(text) if intruder else None
    trained = {(arm, number): folder for arm, number, folder in find_arms(run_folder, None, None, baseline)}
    about = {"windows": spec.as_dict(), "seed": seed, "asked": latents}
    splits = {} if splits is None else splits
    results: dict[str, Scored] = {}
    left_out: list[str] = []
    for arm, number, folder in found:
        subject = open_subject(arm, number, folder, text, spec, seed, progress)
        base = (
            _base(results, trained.get((baseline, number)), number, about, text, progress)
            if matched and arm != baseline
            else None
        )
        result = _score(subject, base, latents, text, known, spec, seed, progress)
        if reader is not None:
            if subject.name not in splits:
                splits[subject.name] = splits_of(run_folder, arm, number, trained, baseline, progress)
            result = replace(result, siblings=_siblings(subject, splits[subject.name], reader, progress))
        results[subject.name] = result
        if keep:
            own = {
                **about,
                "latents": result.n_own,
                "of": of_firings(folder),
                "matched_with": base and of_firings(base.folder),
            }
            held, dropped = with_earlier(
                _file(result, own, judges or {}, reader is not None), read_held(folder, arm, number)
            )
            files.write_json(folder / FILE, held)
            left_out += [
                f"{subject.name}: the earlier {key} was of other windows or another SAE and is replaced"
                for key in dropped
            ]
    return _keep(run_folder, list(trained.items()), about, baseline, left_out) if keep else {}


def _keep(
    run_folder: Path, trained: Sequence[tuple[tuple[str, int], Path]], about: dict, baseline: str, left_out: list[str]
) -> dict:
    """Writes and returns what all arms together say."""
    every = []
    for (arm, number), folder in trained:
        held = read_held(folder, arm, number)
        if held is None or is_twin(folder):
            continue
        if _is_current(held, folder, about):
            every.append(held)
        else:
            left_out.append(
                f"{held.name}: its scores are of other windows or an earlier SAE and are left out; score it again alike"
            )
    found = {**merged(every, baseline), "left_out": left_out}
    files.write_json(run_folder / FILE, found)
    return found


def _base(
    results: Mapping[str, Scored], folder: Path | None, number: int, about: dict, text: Text, progress: Progress
) -> Base | None:
    """The baseline's SAE of a seed, as scored in this call or before it alike; None where it was not. folder: of that SAE."""
    found = next((each for each in results.values() if each.subject.folder == folder), None)
    if found is not None:
        return Base(folder, found.subject.view, found.latents[: found.n_own])
    held = read_held(folder, BASELINE, number) if folder is not None else None
    if held is None or not _is_current(held, folder, about):
        return None
    return Base(
        folder,
        view_of(folder, text, progress)[1],
        [latent for latent, own in zip(held.latents, held.own, strict=True) if own],
    )


def _is_current(held: Held, folder: Path, about: dict) -> bool:
    """Whether scores are of windows as these and of the weights that are there now."""
    return (
        alike(held.file["conditions"], about)
        and (folder / "firings").is_dir()
        and held.file["conditions"]["of"] == of_firings(folder)
    )


def _score(
    subject: Subject,
    base: Base | None,
    count: int,
    text: Text,
    known: Mapping[str, Scorer],
    spec: WindowSpec,
    seed: int,
    progress: Progress,
) -> Scored:
    own = subject.sample(count, seed)
    latents, pairs, facts = list(own), [], {}
    if base is not None:
        partner = matched_latents((base.folder, base.view), (subject.folder, subject.view))
        pairs = [(latent, partner[latent]) for latent in base.own if partner.get(latent) in subject.activating]
        sampled = set(own)
        latents += [other for _, other in pairs if other not in sampled]  # one to one, so none comes twice
        facts["matched"] = {
            "wanted": len(base.own),
            "without_partner": sum(latent not in partner for latent in base.own),
            "pairs": len(pairs),
        }
    windows = subject.windows(latents, text, spec, seed, progress) if known else []
    floor = other_latents(len(latents), seed)
    scores = {key: scorer(subject.view, windows, floor, progress) for key, scorer in known.items()}
    return Scored(subject, latents, len(own), subject.clusters(latents), scores, tuple(pairs), facts)


def _siblings(subject: Subject, splits: Splits | None, reader: Reader, progress: Progress) -> Siblings | None:
    if splits is None:
        return None
    view = subject.view if splits.folder == subject.folder else view_of(splits.folder, reader.text, progress)[1]
    return intruder_score(reader, view, np.asarray(subject.firings.documents), splits)


def _file(result: Scored, conditions: dict, judges: Mapping[str, str], with_siblings: bool) -> dict:
    """What the arm's interp.json holds of this call."""
    own, seed = range(result.n_own), conditions["seed"]
    scores = {key: score.as_dict(own, result.clusters, seed) for key, score in result.scores.items()}
    if result.siblings is not None:
        scores[INTRUDER] = result.siblings.as_dict(seed)
    elif with_siblings:
        none = bootstrap_interval(np.zeros(0), seed=seed).as_dict() | {
            "note": "no second SAE between which latents are split"
        }
        scores[INTRUDER] = {"chance": CHANCE[INTRUDER], "parts": {"all": none}}
    return {
        "conditions": conditions,
        "coverage": result.subject.coverage.as_dict(),
        "scores": {key: {**score, "judge": judges.get(key)} for key, score in scores.items()},
        **result.facts,
        "latents": _per_latent(result, judges),
        "pairs": [list(pair) for pair in result.pairs],
        **({} if result.siblings is None else {"siblings": result.siblings.per_pair()}),
    }


def _per_latent(result: Scored, judges: Mapping[str, str]) -> dict:
    """latent -> own, token, explanation and its judge, and score -> part -> number, with None where a latent lacks windows of that part."""
    numbers: dict[int, dict] = {
        latent: {"own": row < result.n_own, "token": int(result.clusters[row])}
        for row, latent in enumerate(result.latents)
    }
    for key, score in result.scores.items():
        for row, latent in enumerate(result.latents):
            numbers[latent][key] = {
                part: float(values[row]) if np.isfinite(values[row]) else None for part, values in score.values.items()
            }
            if score.explanations:
                numbers[latent] |= {"explanation": score.explanations[row], "judge": judges.get(key)}
    return {str(latent): entry for latent, entry in numbers.items()}
