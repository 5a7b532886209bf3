"""What of a run is scored: the scores by name, the arms and seeds that have firings. Told without torch, so a wrong name is answered at once."""

from collections.abc import Sequence
from pathlib import Path

from metasae import files
from metasae.compare.compare import ARM_FOLDER
from metasae.errors import UserError, nearest
from metasae.interp.held import INTRUDER

EMBEDDING = "embedding"
# What a judge says of windows one by one.
READ = ("detection", "fuzz_marks", "fuzz_2afc", "sim_spearman")
KNOWN = (EMBEDDING, *READ, INTRUDER)
STORE = "replies.sqlite"


def check_scores(scores: Sequence[str], judge: bool, replay: bool, model: str | None) -> None:
    """Raises UserError for a score that is not known or lacks its judge."""
    for key in scores:
        if key not in KNOWN:
            raise UserError(f"no score '{key}'{nearest(key, KNOWN)}")
    if not scores:
        raise UserError(f"no score is asked for; known: {', '.join(KNOWN)}")
    needs = [key for key in scores if key != EMBEDDING]
    if needs and not judge and not (replay and model):
        raise UserError(
            f"{needs[0]} needs a judge: give --judge URL and --model NAME, or --replay with the --model that answered"
        )


def check_run(run_folder: Path, scores: Sequence[str], replay: bool) -> None:
    """Raises UserError for a folder that is no run's, and where there is nothing to replay."""
    if not run_folder.is_dir():
        raise UserError(f"no folder {run_folder}; give the --out folder of `metasae run`")
    if not (run_folder / "recipe.toml").is_file():
        raise UserError(
            f"{run_folder} is not a run folder: it has no recipe.toml; give the --out folder of `metasae run`"
        )
    if replay and any(key != EMBEDDING for key in scores) and not (run_folder / STORE).is_file():
        raise UserError(f"{run_folder} holds no replies to replay; run with --judge URL and --model NAME first")


def arms_to_score(
    run_folder: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None, baseline: str
) -> list[tuple[str, int, Path]]:
    """`find_arms`, without those that have another's weights where none is named. Raises UserError where the first keeps no firings."""
    found = find_arms(run_folder, arms, seeds, baseline)
    if not arms:
        # control has solo's very weights and keeps no firings of its own; whoever wants an arm without firings is told so
        found = [each for each in found if (each[2] / "firings").is_dir() or not is_twin(each[2])]
    if not found or not (found[0][2] / "firings").is_dir():
        raise UserError(
            f"{found[0][2] if found else run_folder} keeps no firings; run `metasae measure` on it with measure.keep_firings=true"
        )
    return found


def find_arms(
    run_folder: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None, baseline: str
) -> list[tuple[str, int, Path]]:
    """(arm, seed, folder) of a run's trained arms, the baseline of each seed first. Raises UserError where one asked for is missing."""
    if not (run_folder / "arms").is_dir():
        raise UserError(f"{run_folder} is not a run folder: it has no arms/; give the --out folder of `metasae run`")
    names = [(ARM_FOLDER.fullmatch(folder.name), folder) for folder in sorted((run_folder / "arms").iterdir())]
    found = [
        (name["arm"], int(name["seed"]), folder)
        for name, folder in names
        if name and (folder / "primary" / "cfg.json").is_file()
    ]
    for wanted in arms or ():
        if wanted not in {arm for arm, _, _ in found}:
            raise UserError(
                f"no arm '{wanted}' is trained in {run_folder}{nearest(wanted, {arm for arm, _, _ in found})}"
            )
    kept = [each for each in found if (not arms or each[0] in arms) and (seeds is None or each[1] in seeds)]
    if not kept:
        raise UserError(
            f"no trained arm in {run_folder} has the seeds asked for; it has {', '.join(folder.name for _, _, folder in found) or 'none'}"
        )
    return sorted(kept, key=lambda each: (each[1], each[0] != baseline, each[0]))


def is_twin(folder: Path) -> bool:
    """Whether the arm's measures were taken over from another arm with the same weights."""
    path = folder / "measures.json"
    return path.is_file() and "same_weights_as" in files.read_json(path).get("conditions", {})
