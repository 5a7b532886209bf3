"""What `metasae interp` does with the words of its command line: the judge found, the cost confirmed, the results shown."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metasae.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from metasae.interp.asking import Judge

LOCAL = "local:"
# Alternatives per token asked of a server; one that refuses them answers without.
LOGPROBS = 5


def verb(
    run_folder: str | Path,
    judge: str | None = None,
    model: str | None = None,
    scores: str = "embedding",
    latents: int = 1000,
    arms: str | None = None,
    seeds: str | None = None,
    matched: bool = True,
    replay: bool = False,
    encoder: str | None = None,
    per_minute: float | None = None,
    concurrency: int = 8,
    price: str | None = None,
    yes: bool = False,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    show: bool = True,
) -> dict:
    """`run_interp` from plain words, with a table of the results on stdout where `show`; returns what it returns.

    judge: the address of a server, or `local:` and a folder, package or name on the hub of a causal model. scores, arms, seeds: lists with
    commas. price: of a million prompt and completion tokens, `0.15,0.6`. yes: go on above the limit without asking. length: tokens of
    a window. Raises UserError of one line for what cannot be read, and where a cost above the limit is not confirmed.
    """
    from metasae.compare.compare import BASELINE
    from metasae.device import check_device
    from metasae.interp.asking import Limits
    from metasae.interp.choice import arms_to_score, check_run, check_scores
    from metasae.interp.windows import WindowSpec

    if latents < 1:
        raise UserError(f"--latents needs a number of at least 1, not {latents}")
    if replay:
        # no judge is opened, and one in this process is known by its place
        judge, model = None, judge if model is None and judge is not None and judge.startswith(LOCAL) else model
    wanted = _listed(scores, "--scores") or []
    choices = dict(
        scores=wanted,
        model=model,
        replay=replay,
        encoder=encoder,
        latents=latents,
        arms=_listed(arms, "--arms"),
        seeds=_numbers(seeds),
        matched=matched,
        spec=WindowSpec() if length is None else WindowSpec(length=length),
        seed=seed,
        limits=Limits(concurrency=concurrency, per_minute=per_minute),
        price=_price(price),
        confirm=(lambda estimate: True) if yes else _confirm if sys.stdin.isatty() else None,
        device=device,
        show=show,
    )
    # a wrong name is answered before torch is imported
    check_scores(wanted, judge is not None, replay, model)
    check_run(Path(run_folder), wanted, replay)
    arms_to_score(Path(run_folder), choices["arms"], choices["seeds"], BASELINE)
    check_device(device)
    opened = None if judge is None else open_judge(judge, model, device)
    from metasae.interp.job import run_interp

    result = run_interp(run_folder, judge=opened, **choices)
    if show:
        from rich.console import Console

        console = Console()
        for table in tables(result):
            console.print(table)
        for line in notes(result):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return result


def open_judge(judge: str, model: str | None, device: str = "cpu") -> "Judge":
    """Raises UserError for an address that is none, and for a model that cannot be had."""
    if judge.startswith(LOCAL):
        from metasae.interp.judges.local import LocalJudge

        if not judge.removeprefix(LOCAL):
            raise UserError("--judge local: needs a folder or a name, as local:Qwen/Qwen2.5-7B-Instruct")
        return LocalJudge(judge.removeprefix(LOCAL), device)
    from metasae.interp.judges.server import ServerJudge

    if model is None:
        raise UserError("a judge on a server needs --model NAME, as the server calls it")
    return ServerJudge(judge, model, logprobs=LOGPROBS)


def tables(result: dict) -> list["Table"]:
    """One table per pair of arms, or one of the arms where there is no pair: a row per score and part."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    baseline, found = result["baseline"], []
    for name, pair in result["pairs"].items() or [("", {})]:
        arms = name.split(" vs ")[::-1] if name else _arms(result)
        table = Table(
            title=escape(name or ", ".join(arms)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("score", overflow="fold")
        for column in ("chance", *arms, *(["difference, 95%"] if name else []), "floor"):
            table.add_column(escape(column), justify="right", no_wrap=True)
        for key, part, chance in _rows(result):
            means, floors = (
                [_number(_mean(result, arm, key, part, which)) for arm in arms] for which in ("own", "shuffled")
            )
            differences = [_differences(pair.get(key, {}).get(part, {}))] if name else []
            table.add_row(f"{key}\n  {part}", f"{chance:g}", *means, *differences, ", ".join(floors))
        if name:
            table.caption = f"means over seeds, {baseline} first; differences over paired seeds, below them those of matched latents"
        found.append(table)
    return found


def notes(result: dict) -> list[str]:
    """Coverage, what could not be read, and what was asked and paid."""
    lines = []
    for name, entry in result["arms"].items():
        coverage, conditions = entry["interp"]["coverage"], entry["interp"]["conditions"]
        lines.append(
            f"{name}: {conditions['latents']} latents scored; {coverage['covered']} of {coverage['live']} live ones have enough windows "
            f"of {conditions['windows']['length']} tokens"
        )
        for key, score in entry["interp"]["scores"].items():
            told = [f"{score[count]} {words}" for count, words in _COUNTS.items() if score.get(count)]
            if score.get("self_agreement") is not None:
                told.append(
                    f"asked twice, the judge agrees with itself on {100 * score['self_agreement']:.1f}% of {score['repeated']} answers"
                )
            if told:
                lines.append(f"  {key}: {', '.join(told)}")
    lines += result["left_out"]
    return lines + ([_asked(result["judge"])] if "judge" in result else [])


_COUNTS = {
    "asked": "questions",
    "unreadable": "unreadable",
    "failed": "never answered",
    "unexplained": "latents without a readable explanation",
    "without_logprobs": "replies without log probabilities",
    "irreplaceable": "windows with a token that nothing can replace",
    "too_few_windows": "pairs of siblings with too few windows",
}


def _asked(judge: dict) -> str:
    asked = judge["asked"]
    cost = "" if asked["cost"] is None else f", {asked['cost']:.2f} at the price given"
    return (
        f"{judge['name']}: {asked['asked']:,} questions answered now, {asked['stored']:,} from the store, {asked['failed']:,} never, "
        f"{asked['retried']:,} retries; {asked['prompt_tokens']:,} prompt and {asked['completion_tokens']:,} completion tokens{cost}"
    )


def _rows(result: dict) -> list[tuple[str, str, float]]:
    """(score, part, chance) of everything that any arm has, in order."""
    rows = {}
    for entry in result["arms"].values():
        for key, score in entry["interp"]["scores"].items():
            rows |= {(key, part): score["chance"] for part in score["parts"]}
    return [(key, part, chance) for (key, part), chance in rows.items()]


def _arms(result: dict) -> list[str]:
    return list(dict.fromkeys(name.rpartition("-s")[0] for name in result["arms"]))


def _mean(result: dict, arm: str, key: str, part: str, which: str) -> float | None:
    """Over the seeds of an arm that have it."""
    parts = [
        entry["interp"]["scores"].get(key, {}).get("parts", {}).get(part, {})
        for name, entry in result["arms"].items()
        if name.rpartition("-s")[0] == arm
    ]
    values = [(each if which == "own" else each.get("shuffled", {})).get("estimate") for each in parts]
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _differences(entry: dict) -> str:
    """Of the arms' means and, on a line below, of matched latents."""
    return "\n".join(_difference(entry[which]) for which in ("unpaired", "matched") if entry.get(which)) or "-"


def _difference(entry: dict) -> str:
    if entry["difference"] is None:
        return "-"
    interval = f"{entry['n_seeds']} seed" if entry["ci95"] is None else "{:+.3f} to {:+.3f}".format(*entry["ci95"])
    return f"{entry['difference']:+.3f} ({interval})"


def _confirm(estimate: dict) -> bool:
    import typer

    cost = "" if estimate["cost"] is None else f", {estimate['cost']:.2f} at the price given"
    tokens = f"{estimate['prompt_tokens']:,} prompt and up to {estimate['completion_tokens']:,} completion tokens"
    return typer.confirm(f"This asks {estimate['questions']:,} questions: {tokens}{cost}. Go on?", err=True)


def _listed(text: str | None, option: str) -> list[str] | None:
    if text is None:
        return None
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UserError(f"{option} names nothing; give a list with commas, or leave it out")
    return found


def _numbers(text: str | None) -> list[int] | None:
    found = _listed(text, "--seeds")
    if found is not None and not all(each.isdigit() for each in found):
        raise UserError(f"--seeds takes a list of seeds (0,7), not '{text}'")
    return None if found is None else [int(each) for each in found]


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = (float(each) for each in text.split(","))
        usable = prompt >= 0 and completion >= 0 and prompt + completion < float("inf")
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--price takes the price of a million prompt and completion tokens (0.15,0.6), not '{text}'")
    return prompt, completion
