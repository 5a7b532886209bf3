"""What a run writes is sent on once, in order, and nothing that goes wrong there touches the run."""

import json
import os
import time

import pytest

from metasae.errors import UserError
from metasae.tracking import follow
from metasae.tracking.follow import Follower, following, sae_folders, track
from metasae.tracking.sinks import open_sink


class Kept:
    """A sink that keeps what it is given. sent: name -> last step that is there already."""

    def __init__(self, **sent):
        self.sent, self.lines, self.summaries, self.closed = sent, [], {}, 0

    def last(self, name):
        return self.sent.get(name, 0)

    def curves(self, name, step, numbers):
        self.lines.append((name, step, numbers))

    def measures(self, name, step, numbers):
        self.summaries[name] = numbers

    def close(self):
        self.closed += 1


def write_steps(run, name, steps, more=""):
    folder = run / "arms" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "meta_step": step // 10, "tokens": 64 * step, "fvu": 1 / step} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + more)


def write_measures(run, name, fvu):
    (run / "arms" / name / "measures.json").write_text(
        json.dumps({"conditions": {}, "fidelity": {"fvu": fvu, "l0": None}})
    )


def test_new_lines_are_sent_once_whatever_a_resumed_run_writes_again(tmp_path):
    sink = Kept()
    follower = Follower(tmp_path, sink)
    assert follower.look() == 0
    write_steps(tmp_path, "solo-s0", (10, 20), more='{"step": 30, "fv')  # a line that is being written
    assert follower.look() == 2 and follower.look() == 0
    assert sink.lines == [
        ("solo-s0", 10, {"train/tokens": 640, "train/fvu": 0.1}),
        ("solo-s0", 20, {"train/tokens": 1280, "train/fvu": 0.05}),
    ]
    write_steps(tmp_path, "solo-s0", (10,))  # cut back to its checkpoint
    assert follower.look() == 0
    write_steps(tmp_path, "solo-s0", (10, 20, 30))
    write_steps(tmp_path, "joint-s0", (10,))
    assert follower.look() == 2 and [line[:2] for line in sink.lines[2:]] == [("joint-s0", 10), ("solo-s0", 30)]
    # what is there already is asked of the sink
    other = Kept(**{"solo-s0": 20})
    assert Follower(tmp_path, other).look() == 2 and [line[:2] for line in other.lines] == [
        ("joint-s0", 10),
        ("solo-s0", 30),
    ]


def test_measures_are_sent_when_they_are_there_and_again_when_they_change(tmp_path):
    sink = Kept()
    follower = Follower(tmp_path, sink)
    write_steps(tmp_path, "solo-s0", (10,))
    assert follower.look() == 1 and not sink.summaries
    write_measures(tmp_path, "solo-s0", 0.25)
    assert follower.look() == 1 and sink.summaries == {"solo-s0": {"measures/fidelity.fvu": 0.25}}
    assert follower.look() == 0
    write_measures(tmp_path, "solo-s0", 0.5)
    os.utime(tmp_path / "arms" / "solo-s0" / "measures.json", (1, 1))
    assert follower.look() == 1 and sink.summaries["solo-s0"] == {"measures/fidelity.fvu": 0.5}


def test_the_saes_of_a_sweep_are_found_as_well(tmp_path):
    (tmp_path / "saes" / "joint-s1-abc").mkdir(parents=True)
    (tmp_path / "saes" / "joint-s1-abc" / "metrics.jsonl").write_text("")
    (tmp_path / "saes" / "joint-s2-abc").mkdir()
    assert [folder.name for folder in sae_folders(tmp_path)] == ["joint-s1-abc"]


def test_a_run_is_followed_to_its_last_line_and_the_sink_is_closed(tmp_path, monkeypatch):
    sink, said = Kept(), []
    monkeypatch.setattr(follow, "open_sink", lambda to, folder, project: sink)
    with following(tmp_path, "tensorboard", said.append, every=0.01):
        write_steps(tmp_path, "solo-s0", (10,))
        deadline = time.monotonic() + 60
        while not sink.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sink.lines and not sink.closed
        write_steps(tmp_path, "solo-s0", (10, 20))
    assert [line[1] for line in sink.lines] == [10, 20] and sink.closed == 1 and not said


def test_a_sink_that_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    class Broken(Kept):
        def curves(self, name, step, numbers):
            raise RuntimeError("the network\nis gone")

    said = []
    monkeypatch.setattr(follow, "open_sink", lambda to, folder, project: Broken())
    with following(tmp_path, "wandb", said.append, every=0.01):
        write_steps(tmp_path, "solo-s0", (10, 20))
        time.sleep(0.1)
    assert len(said) == 1 and "the network is gone" in said[0] and f"metasae track {tmp_path} --to wandb" in said[0]
    with pytest.raises(ZeroDivisionError), following(tmp_path, "wandb", said.append, every=0.01):
        raise ZeroDivisionError  # what goes wrong in the run is the run's
    with following(tmp_path, None, said.append):
        pass


def test_what_cannot_be_tracked_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no SAE whose training has begun"):
        track(tmp_path, "tensorboard")
    with pytest.raises(UserError, match="choose tensorboard or wandb"):
        open_sink("tensorbord", tmp_path)
    with pytest.raises(UserError, match="choose"), following(tmp_path, "nowhere", print):
        pytest.fail("the run began")


def test_tensorboard_shows_the_numbers_of_the_record_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the package is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, "solo-s0", (10, 20))
    write_measures(tmp_path, "solo-s0", 0.25)
    for _ in range(2):
        assert track(tmp_path, "tensorboard") == 3
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("train/fvu")] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
    ]
    assert [(point.step, point.value) for point in events.Scalars("measures/fidelity.fvu")] == [(20, 0.25)]


def test_wandb_offline_keeps_the_same_run_and_without_a_key_nothing_begins(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package is not installed")
    write_steps(tmp_path, "solo-s0", (10, 20))
    (tmp_path / "recipe.toml").write_text("[sae]\nn = 64\n")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track(tmp_path, "wandb") == 2
    ids = json.loads((tmp_path / "wandb.json").read_text())
    assert list(ids) == ["solo-s0"] and any((tmp_path / "wandb").glob(f"offline-run-*-{ids['solo-s0']}"))
    track(tmp_path, "wandb")
    assert json.loads((tmp_path / "wandb.json").read_text()) == ids
    monkeypatch.delenv("WANDB_MODE")
    for name in ("WANDB_API_KEY", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="has no API key"):
        track(tmp_path, "wandb")
