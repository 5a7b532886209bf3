"""Auto-interp of a run: every arm's latents scored on windows of the evaluation text, arm against arm.

RUN/arms/<arm>-s<seed>/interp.json    coverage, scores and every latent's own numbers
RUN/interp.json                       what comparison reads: per arm folder the part `interp`, and per pair of arms the differences

An arm's mean is over its own random covered latents. With `matched`, an arm also scores the partners of the baseline's latents
(Hungarian on decoder cosine), and the difference within pairs is reported beside that of the means. sense_intruder is of siblings
(`metasae.interp.siblings`), not of these latents, so it has no matched difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metasae import files
from metasae.comparison import ARM_FOLDER, BASELINE
from metasae.errors import UserError, nearest
from metasae.interp.coverage import LatentWindows
from metasae.interp.intruder import KEY, Siblings, intruder_score
from metasae.interp.reader import Reader
from metasae.interp.result import CHANCE, Score, matched_difference, other_latents, over_seeds
from metasae.interp.siblings import Splits, splits_of
from metasae.interp.subject import Subject, matched_latents, open_subject, view_of
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.store import open_firings
from metasae.measures.intervals.resampling import bootstrap_interval
from metasae.measures.shared_seeds import of_both, of_names
from metasae.progress import SILENT, Progress

# (the SAE's firings, windows of m latents, for each the one whose explanation is borrowed or None) -> one score of them
Scorer = Callable[[ByLatent, Sequence[LatentWindows], np.ndarray | None, Progress], Score]


@dataclass(frozen=True)
class Scored:
    """What was found for one arm and seed. latents: the arm's own sample, then partners of the baseline's that are not in it.

    n_own: how many are the sample. pairs: int [p, 2], rows of the baseline's latents and of these. clusters: int [m]. siblings: where they
    were asked about, None where there is no second SAE.
    """

    subject: Subject
    latents: list[int]
    n_own: int
    clusters: np.ndarray
    scores: dict[str, Score]
    pairs: np.ndarray
    facts: dict
    siblings: Siblings | None = None


def score_arms(
    run_folder: str | Path,
    text_of: Callable[[object], Text],
    scorers: Callable[[Text], Mapping[str, Scorer]],
    *,
    intruder: Callable[[Text], Reader] | None = None,
    splits: dict[str, Splits | None] | None = None,
    conditions: Mapping[str, str] | None = None,
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
    """Scores the arms of a measured run and writes the files named above; returns what RUN/interp.json holds.

    text_of: an arm's firings -> the text they lie in. scorers: key -> scorer, for that text. intruder: who reads for sense_intruder, None
    without that score. splits: of the arms by name, where they were found before; what is missing is added. conditions: facts that are
    kept beside the scores, such as the judge. latents: how many per arm and seed. arms, seeds: only these. spec: of the windows; None
    for the default. seed: of everything random here. keep: write the files.
    Raises UserError for a folder that is no run, an arm that is not there or keeps no firings, and arms judged on different text.
    """
    run_folder, spec = Path(run_folder), spec or WindowSpec()
    found = find_arms(run_folder, arms, seeds, baseline)
    if not arms:
        # control has solo's very weights and keeps no firings of its own; whoever wants an arm without firings is told so
        found = [each for each in found if (each[2] / "firings").is_dir() or not _is_twin(each[2])]
    text = text_of(open_firings(found[0][2] / "firings")) if (found[0][2] / "firings").is_dir() else None
    if text is None:
        raise UserError(f"{found[0][2]} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    known = scorers(text)
    reader = intruder(text) if intruder else None
    trained = {(arm, number): folder for arm, number, folder in find_arms(run_folder, None, None, baseline)}
    about = {"windows": spec.as_dict(), "seed": seed, **(conditions or {})}
    splits = {} if splits is None else splits
    results: dict[str, Scored] = {}
    summaries: dict[str, dict] = {}
    for arm, number, folder in found:
        subject = open_subject(arm, number, folder, text, spec, seed, progress)
        base = results.get(f"{baseline}-s{number}")
        result = _score(subject, base if matched else None, latents, text, known, spec, seed, progress)
        if reader is not None:
            if subject.name not in splits:
                splits[subject.name] = splits_of(run_folder, arm, number, trained, baseline, progress)
            result = replace(result, siblings=_siblings(subject, splits[subject.name], reader, progress))
        results[subject.name] = result
        summaries[subject.name] = _summary(result, about, reader is not None)
        if keep:
            pairs = {} if result.siblings is None else {"siblings": result.siblings.per_pair()}
            files.write_json(folder / "interp.json", {**summaries[subject.name], "latents": _per_latent(result), **pairs})
    merged = {
        "baseline": baseline,
        "arms": {name: {"interp": summary} for name, summary in summaries.items()},
        "pairs": _pairs(results, baseline, seed),
    }
    if keep:
        files.write_json(run_folder / "interp.json", merged)
    return merged


def find_arms(run_folder: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None, baseline: str) -> list[tuple[str, int, Path]]:
    """(arm, seed, folder) of a run's trained arms, the baseline of each seed first. Raises UserError where one asked for is missing."""
    if not (run_folder / "arms").is_dir():
        raise UserError(f"{run_folder} is not a run folder: it has no arms/; give the --out folder of `metasae run`")
    names = [(ARM_FOLDER.fullmatch(folder.name), folder) for folder in sorted((run_folder / "arms").iterdir())]
    found = [(name["arm"], int(name["seed"]), folder) for name, folder in names if name and (folder / "primary" / "cfg.json").is_file()]
    for wanted in arms or ():
        if wanted not in {arm for arm, _, _ in found}:
            raise UserError(f"no arm '{wanted}' is trained in {run_folder}{nearest(wanted, {arm for arm, _, _ in found})}")
    kept = [each for each in found if (not arms or each[0] in arms) and (seeds is None or each[1] in seeds)]
    if not kept:
        raise UserError(
            f"no trained arm in {run_folder} has the seeds asked for; it has {', '.join(folder.name for _, _, folder in found) or 'none'}"
        )
    return sorted(kept, key=lambda each: (each[1], each[0] != baseline, each[0]))


def _is_twin(folder: Path) -> bool:
    """Whether the arm's measures were taken over from another arm with the same weights."""
    path = folder / "measures.json"
    return path.is_file() and "same_weights_as" in files.read_json(path).get("conditions", {})


def _score(
    subject: Subject, base: Scored | None, count: int, text: Text, known: Mapping[str, Scorer], spec: WindowSpec, seed: int, progress: Progress
) -> Scored:
    own = subject.sample(count, seed)
    latents, pairs, facts = list(own), [], {}
    if base is not None:
        place = {latent: row for row, latent in enumerate(latents)}
        partner = matched_latents(base.subject, subject)
        for row, latent in enumerate(base.latents[: base.n_own]):
            other = partner.get(latent)
            if other in subject.activating:
                if other not in place:
                    place[other] = len(latents)
                    latents.append(other)
                pairs.append((row, place[other]))
        facts["matched"] = {"wanted": base.n_own, "without_partner": sum(i not in partner for i in base.latents[: base.n_own]), "pairs": len(pairs)}
    windows = subject.windows(latents, text, spec, seed, progress) if known else []
    floor = other_latents(len(latents), seed)
    scores = {key: scorer(subject.view, windows, floor, progress) for key, scorer in known.items()}
    return Scored(subject, latents, len(own), subject.clusters(latents), scores, np.array(pairs, np.int64).reshape(-1, 2), facts)


def _siblings(subject: Subject, splits: Splits | None, reader: Reader, progress: Progress) -> Siblings | None:
    if splits is None:
        return None
    view = subject.view if splits.folder == subject.folder else view_of(splits.folder, reader.text, progress)[1]
    return intruder_score(reader, view, np.asarray(subject.firings.documents), splits)


def _summary(result: Scored, about: dict, with_siblings: bool) -> dict:
    own, seed = range(result.n_own), about["seed"]
    scores = {key: score.as_dict(own, result.clusters, seed) for key, score in result.scores.items()}
    if result.siblings is not None:
        scores[KEY] = result.siblings.as_dict(seed)
    elif with_siblings:
        none = bootstrap_interval(np.zeros(0), seed=seed).as_dict() | {"note": "no second SAE between which latents are split"}
        scores[KEY] = {"chance": CHANCE[KEY], "parts": {"all": none}}
    return {"conditions": {**about, "latents": result.n_own}, "coverage": result.subject.coverage.as_dict(), "scores": scores, **result.facts}


def _per_latent(result: Scored) -> dict:
    """latent -> own, explanation, and score -> part -> number, with None where a latent lacks windows of that part."""
    numbers: dict[int, dict] = {latent: {"own": row < result.n_own} for row, latent in enumerate(result.latents)}
    for key, score in result.scores.items():
        for row, latent in enumerate(result.latents):
            numbers[latent][key] = {part: float(values[row]) if np.isfinite(values[row]) else None for part, values in score.values.items()}
            if score.explanations:
                numbers[latent]["explanation"] = score.explanations[row]
    return {str(latent): entry for latent, entry in numbers.items()}


def _pairs(results: Mapping[str, Scored], baseline: str, seed: int) -> dict:
    """`arm vs baseline` -> score -> part -> {unpaired, matched, matched_by_seed}; scores and parts that all of both arms have."""
    by_arm: dict[str, dict[int, Scored]] = {}
    for result in results.values():
        by_arm.setdefault(result.subject.arm, {})[result.subject.seed] = result
    base = by_arm.pop(baseline, {})
    pairs: dict[str, dict] = {}
    for arm, of_arm in by_arm.items() if base else ():
        both = [*of_arm.values(), *base.values()]
        # one seed of the baseline may have no sibling seed to be split in
        shared = [key for key in CHANCE if all(key in each.scores for each in both) or (key == KEY and all(map(_with_siblings, (of_arm, base))))]
        pairs[f"{arm} vs {baseline}"] = {
            key: {"all": _of_siblings(of_arm, base)}
            if key == KEY
            else {part: _differences(of_arm, base, key, part, seed) for part in both[0].scores[key].values if _all_have(both, key, part)}
            for key in shared
        }
    return pairs


def _all_have(results: Sequence[Scored], key: str, part: str) -> bool:
    return all(part in result.scores[key].values for result in results)


def _with_siblings(side: Mapping[int, Scored]) -> dict[int, Siblings]:
    return {number: result.siblings for number, result in side.items() if result.siblings is not None}


def _of_siblings(arm: Mapping[int, Scored], base: Mapping[int, Scored]) -> dict:
    sides = [_with_siblings(side) for side in (arm, base)]
    means = [{number: siblings.mean for number, siblings in side.items()} for side in sides]
    # solo's own are split in its next seed, so its numbers share seeds
    behind = [{number: of_names(number, [each.splits.parents, each.splits.children]) for number, each in side.items()} for side in sides]
    return {"unpaired": over_seeds(*means, of_both(*behind)), "matched": None, "matched_by_seed": {}}


def _differences(arm: Mapping[int, Scored], base: Mapping[int, Scored], key: str, part: str, seed: int) -> dict:
    def values(result: Scored) -> np.ndarray:
        return result.scores[key].values[part]

    means = [{number: _mean(values(result)[: result.n_own]) for number, result in side.items()} for side in (arm, base)]
    within = {
        number: matched_difference(
            values(result)[result.pairs[:, 1]], values(base[number])[result.pairs[:, 0]], base[number].clusters[result.pairs[:, 0]], seed
        )
        for number, result in arm.items()
        if number in base and len(result.pairs)
    }
    matched = over_seeds(*({number: entry[name] for number, entry in within.items()} for name in ("a", "b"))) if within else None
    return {"unpaired": over_seeds(*means), "matched": matched, "matched_by_seed": {str(number): entry for number, entry in within.items()}}


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
