"""What a sweep still has to do, cell by cell, in the order in which workers do it. Reads the sweep's folder only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from metasae.doctor.fit import setting as as_words
from metasae.errors import UserError
from metasae.sweep.cells import Member, Setting, twin_of
from metasae.sweep.folder import SweepFolder
from metasae.sweep.grid import Range
from metasae.sweep.plan import Plan


@dataclass(frozen=True)
class Work:
    """An SAE of a sweep and what is left to do for it. If its measures are taken over from an SAE with the same
    weights, it is not measured.
    """

    member: Member
    to_train: bool
    to_measure: bool


@dataclass(frozen=True)
class Row:
    """A cell, or all trials that a search still has to draw. works: for each SAE that no earlier row has."""

    label: str
    setting: Setting
    trials: int
    works: list[Work]


def rows_of(plan: Plan, folder: SweepFolder) -> list[Row]:
    """The cells of a plan in the order in which they are trained. The folder need not exist."""
    rows, known = [], set()
    for label, setting, trials, members in _cells(plan, folder):
        new = {member.name: member for member in members if member.name not in known}
        known.update(new)
        rows.append(Row(label, setting, trials, [_work(folder, member, members) for member in new.values()]))
    return rows


def _work(folder: SweepFolder, member: Member, members: list[Member]) -> Work:
    sae = folder.sae(member)
    return Work(member, not sae.is_trained, not sae.is_measured and twin_of(member, members) is None)


def _cells(plan: Plan, folder: SweepFolder) -> Iterator[tuple[str, Setting, int, list[Member]]]:
    """(label, setting, trials, SAEs) of every row."""
    if not plan.search:
        settings: dict[str, Setting] = {}
        for setting in plan.settings:
            settings.setdefault(plan.name_of(setting), setting)
        for setting in settings.values():
            yield _label(setting, plan.settings), setting, 1, plan.members(setting)
        return
    cells = folder.cells()
    for cell in cells:
        if not cell.name.startswith("refused-"):
            yield _label(cell.setting, ()), cell.setting, len(cell.trials), plan.members(cell.setting)
    left = plan.search.trials - sum(len(cell.trials) for cell in cells)
    if left > 0:
        yield f"{left} trial{'s' * (left > 1)} to draw", Setting(), left, _drawn_later(plan, left)


def _drawn_later(plan: Plan, trials: int) -> list[Member]:
    """The SAEs of so many trials whose values are not drawn yet: those of the sweep's own recipe, once for each trial
    unless nothing that is searched decides them.
    """
    own = plan.members(Setting())
    shared = {member.name for member in own}
    for setting in _ends(plan):
        try:
            shared &= {member.name for member in plan.members(setting)}
        except UserError:
            # a search may draw values that the recipe refuses
            continue
    copies = [
        replace(member, name=f"{member.name}-trial-{number}")
        for number in range(trials)
        for member in own
        if member.name not in shared
    ]
    return [member for member in own if member.name in shared] + copies


def _ends(plan: Plan) -> Iterator[Setting]:
    """Each searched key alone, at the ends of its range or at each of its values."""
    for key, axis in plan.search.space.items():
        for value in (axis.low, axis.high) if isinstance(axis, Range) else axis:
            yield Setting({key: value})


def _label(setting: Setting, others: tuple[Setting, ...]) -> str:
    """A cell in words: its kind, with the values in which cells of that kind differ; or its values if it has no
    kind.
    """
    values = setting.values
    if setting.kind:
        same_kind = [other.values for other in others if other.kind == setting.kind]
        values = {key: value for key, value in values.items() if any(other.get(key) != value for other in same_kind)}
    words = [setting.kind] if setting.kind else []
    return ", ".join([*words, *map(as_words, values.items())])
