"""Which stages a run has left, and how long they take as far as the finished ones say."""

import pytest

from metasae.arms.folder import RunFolder
from metasae.jobs import pending
from metasae.progress.stages import Stage, Task, Timetable, in_words
from metasae.recipe.recipe import Recipe

TRAIN = [Stage("train", f"training solo, seed {seed}", whole=True) for seed in range(2)]
MEASURE = [Stage("measure", f"measuring solo, seed {seed}") for seed in range(2)]
CONTROL = Stage("take over", "measuring control, seed 0", quick=True)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def timetable_of(*stages):
    clock = Clock()
    return Timetable(stages, clock), clock


def task_at(done, skipped, total, seconds):
    """A task that began so many seconds ago."""
    times = iter([0.0])
    task = Task("training", total, clock=lambda: next(times, seconds))
    task.skip(skipped)
    task.advance(done)
    return task


def do(timetable, clock, stage, seconds):
    timetable.begin(stage)
    clock.now += seconds
    assert timetable.end() == seconds


def test_nothing_is_said_before_anything_is_known():
    timetable, clock = timetable_of(*TRAIN, *MEASURE)
    timetable.begin(TRAIN[0])
    clock.now = 30
    assert timetable.run_left(None) is None and timetable.stage_left(None) is None and timetable.share(None) is None
    # too little of it is done to believe its rate
    assert timetable.run_left(task_at(1, 0, 100, 30)) is None


def test_the_rate_of_a_stage_tells_of_its_like():
    timetable, clock = timetable_of(*TRAIN, *MEASURE)
    timetable.begin(TRAIN[0])
    clock.now = 10
    task = task_at(25, 0, 100, 10)
    assert timetable.share(task) == 0.25 and timetable.stage_left(task) == 30
    # 30 s of this training and 40 s of the next; of measuring nothing is known
    assert timetable.run_left(task) == (70, False)


def test_what_an_earlier_run_did_is_no_part_of_the_rate():
    task = task_at(done=20, skipped=60, total=100, seconds=10)
    assert task.share == 0.8 and task.length == 50
    timetable, clock = timetable_of(*TRAIN)
    timetable.begin(TRAIN[0])
    clock.now = 10
    assert timetable.stage_left(task) == pytest.approx(10)
    assert timetable.run_left(task) == (pytest.approx(60), True)


def test_finished_stages_tell_of_those_of_their_kind():
    timetable, clock = timetable_of(*MEASURE, CONTROL)
    do(timetable, clock, MEASURE[0], 40)
    timetable.begin(MEASURE[1])
    clock.now += 10
    assert timetable.share(None) == 0.25 and timetable.run_left(None) == (30, True)
    clock.now += 50
    # longer than its like: it is not called done before it is
    assert timetable.share(None) == 0.99 and timetable.run_left(None) is None


def test_a_stage_that_was_not_planned_comes_last():
    timetable, _ = timetable_of(*TRAIN)
    timetable.begin(CONTROL)
    assert (timetable.number, len(timetable.stages)) == (3, 3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (42, "40 s"), (89, "90 s"), (91, "2 min"), (3540, "59 min"), (3600, "1 h"), (4700, "1 h 20 min")],
)
def test_lengths_of_time_in_words(seconds, words):
    assert in_words(seconds) == words


def titles(folder, harvested=False, **changes):
    recipe = Recipe.load("demo", {"arms": ["solo", "control"], "seeds": [0], **changes})
    arms = [RunFolder(folder).arm(arm, seed) for seed in recipe.seeds for arm in recipe.arms]
    return [stage.title for stage in pending.left(recipe, arms, harvested)]


def test_only_what_is_left_to_do_is_counted(tmp_path):
    end = ["comparing SAEs with each other", "preparing the explorer", "writing the report"]
    harvest, solo, control = "reading text and harvesting activations", "solo, seed 0", "control, seed 0"
    assert titles(tmp_path) == [
        harvest,
        f"training {solo}",
        f"training {control}",
        f"measuring {solo}",
        f"measuring {control}",
        *end,
    ]
    trained = tmp_path / "arms/solo-s0/primary/cfg.json"
    trained.parent.mkdir(parents=True)
    trained.write_text("{}")
    assert titles(tmp_path, True) == [f"training {control}", f"measuring {solo}", f"measuring {control}", *end]
    (tmp_path / "arms/solo-s0/measures.json").write_text("{}")
    assert titles(tmp_path, True, arms=["solo"]) == end
    assert titles(tmp_path, True, arms=["solo"], **{"measure.keep_firings": False}) == end[2:]


def test_windows_are_one_stage_and_a_planted_world_is_made(tmp_path):
    assert (
        titles(tmp_path, True, **{"harvest.window_tokens": 100_000, "harvest.tokens": 0})[0]
        == "harvesting and training window by window"
    )
    assert titles(tmp_path, **{"text.source": "planted", "spikes.n": 0})[0] == pending.PLANTED.title


def test_control_takes_over_what_solo_measured():
    assert pending.measuring("control", 0, ("solo", "control")).quick
    assert not pending.measuring("control", 0, ("control", "joint")).quick
