"""What a terminal shows: of a run its bar over that of its current stage, outside a run a bar for each task."""

from dataclasses import dataclass, field

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metasae.progress.stages import Task, Timetable, in_words

_BAR = 20


@dataclass
class Bars:
    """Drawn anew as often as the terminal is.

    timetable: of a run. tasks: those that are under way, the innermost last.
    """

    timetable: Timetable | None = None
    tasks: list[Task] = field(default_factory=list)

    def __rich__(self) -> Table:
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_column(width=_BAR)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        # read once: the stage may end while it is drawn
        table, tasks = self.timetable, list(self.tasks)
        stage = table and table.current
        if table is None:
            for task in tasks:
                rows.add_row(_bar(task.share), Text(_joined(_facts(task, task.left))))
        elif stage is not None:
            whole = tasks[0] if stage.whole and tasks else None
            share, left = table.share(whole), table.stage_left(whole)
            rows.add_row(_bar((table.number - 1 + (share or 0.0)) / len(table.stages)), Text(_run(table, whole)))
            facts = _facts(tasks[-1], left) if tasks else [f"{table.elapsed:.0f} s so far", _left(left)]
            rows.add_row(_bar(share), Text(_joined(facts)))
        return rows


def _run(table: Timetable, whole: Task | None) -> str:
    """The stage's place in the run, and the time until the run ends."""
    left = table.run_left(whole)
    if left is None:
        return table.place
    seconds, is_all = left
    return f"{table.place} · {'about' if is_all else 'at least'} {in_words(seconds)} left"


def _facts(task: Task, left: float | None) -> list[str]:
    """A task with its share, its rate and its latest numbers, and the time until it or its stage ends."""
    name = f"{task.name}, {100 * task.share:.0f}%" if task.share else task.name
    numbers = "  ".join(f"{number} {value:.4g}" for number, value in task.live.items())
    return [name, task.rate if task.done else "", _left(left), numbers]


def _left(seconds: float | None) -> str:
    return f"{in_words(seconds)} left" if seconds else ""


def _joined(facts: list[str]) -> str:
    return " · ".join(filter(None, facts))


def _bar(share: float | None) -> ProgressBar:
    """A pulse where the share is not known."""
    return ProgressBar(total=1.0, completed=share or 0.0, width=_BAR, pulse=share is None)
