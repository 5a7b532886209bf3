"""Which stages a run has left, and how long they take as far as the finished ones say."""

import pytest

from metasae.jobs import run_stages
from metasae.progress.stages import Pace, Plan, Stage, in_words
from metasae.recipe.recipe import Recipe

TRAIN = [Stage("train", f"training solo, seed {seed}", whole=True) for seed in range(2)]
MEASURE = [Stage("measure", f"measuring solo, seed {seed}") for seed in range(2)]
CONTROL = Stage("take over", "measuring control, seed 0", quick=True)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def plan_of(*stages):
    clock = Clock()
    return Plan(stages, clock), clock


def do(plan, clock, stage, seconds):
    plan.begin(stage)
    clock.now += seconds
    assert plan.end() == seconds


def test_nothing_is_said_before_anything_is_known():
    plan, clock = plan_of(*TRAIN, *MEASURE)
    plan.begin(TRAIN[0])
    clock.now = 30
    assert plan.run_left(None) is None and plan.stage_left(None) is None and plan.share(None) is None
    # too little of it is done to believe its rate
    assert plan.run_left(Pace(1, 0, 100, 30)) is None


def test_the_rate_of_a_stage_tells_of_its_like():
    plan, clock = plan_of(*TRAIN, *MEASURE)
    plan.begin(TRAIN[0])
    clock.now = 10
    pace = Pace(25, 0, 100, 10)
    assert plan.share(pace) == 0.25 and plan.stage_left(pace) == 30
    # 30 s of this training and 40 s of the next; of measuring nothing is known
    assert plan.run_left(pace) == (70, False)


def test_what_an_earlier_run_did_is_no_part_of_the_rate():
    pace = Pace(done=20, skipped=60, total=100, seconds=10)
    assert pace.share == 0.8 and pace.length == 50
    plan, clock = plan_of(*TRAIN)
    plan.begin(TRAIN[0])
    clock.now = 10
    assert plan.stage_left(pace) == pytest.approx(10)
    assert plan.run_left(pace) == (pytest.approx(60), True)


def test_finished_stages_tell_of_those_of_their_kind():
    plan, clock = plan_of(*MEASURE, CONTROL)
    do(plan, clock, MEASURE[0], 40)
    plan.begin(MEASURE[1])
    clock.now += 10
    assert plan.share(None) == 0.25 and plan.run_left(None) == (30, True)
    clock.now += 50
    # longer than its like: it is not called done before it is
    assert plan.share(None) == 0.99 and plan.run_left(None) is None


def test_a_stage_that_was_not_planned_comes_last():
    plan, _ = plan_of(*TRAIN)
    plan.begin(CONTROL)
    assert (plan.number, plan.total) == (3, 3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (42, "40 s"), (89, "90 s"), (91, "2 min"), (3540, "59 min"), (3600, "1 h"), (4700, "1 h 20 min")],
)
def test_lengths_of_time_in_words(seconds, words):
    assert in_words(seconds) == words


def titles(folder, harvested=False, **changes):
    recipe = Recipe.load("demo", {"arms": ["solo", "control"], "seeds": [0], **changes})
    return [stage.title for stage in run_stages.left(recipe, folder, harvested)]


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
    assert run_stages.left(Recipe.load("planted"), tmp_path, False)[0] is run_stages.PLANTED


def test_control_takes_over_what_solo_measured():
    assert run_stages.measuring("control", 0, ("solo", "control")).quick
    assert not run_stages.measuring("control", 0, ("control", "joint")).quick
