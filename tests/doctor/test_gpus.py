"""A plan for GPUs that are not here: it needs no hub, says where its numbers are from, and finds the fewest GPUs that
do.
"""

import json

import pytest

from metasae.doctor.cards import CARDS
from metasae.doctor.gpus import plan
from metasae.doctor.table import shown
from metasae.errors import UserError


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def refuse():
        raise AssertionError("a plan for a known model asked for the hub")

    monkeypatch.setattr("metasae.data.text.hub.unreachable", refuse)


@pytest.fixture(scope="module")
def large():
    return plan("paper-gpt2-large", 8, "h200")


def test_a_known_model_needs_no_hub(large):
    shape = large.shape
    # the public count of GPT-2 large's weights, and 2 flops per weight of 20 layers with attention over 128 tokens
    assert (shape.d, shape.numbers, shape.vocabulary) == (1280, 774_030_080, 50_257)
    assert shape.flops == 20 * (2 * 12 * 1280**2 + 4 * 128 * 1280)


def test_every_number_says_where_it_is_from(large):
    origins = {figure["origin"] for figure in large.figures.values()}
    assert origins == {"arithmetic", "fitted", "stated", "assumed"}
    assert json.loads(json.dumps(large.as_dict()))["figures"]["card"] == {
        "value": 141e9,
        "unit": "bytes",
        "origin": "stated",
        "says": "memory of one h200",
    }


def test_the_run_is_its_harvest_and_all_arms_and_seeds(large):
    steps, joint = -(-100_000_000 // 4096), large.step("joint")
    arms = large.step("solo")["floor"] + joint["floor"]
    assert large.figures["train"]["value"][0] == pytest.approx(steps * arms)
    assert large.figures["run"]["value"][0] == pytest.approx(steps * arms + large.harvest[0])
    assert large.figures["tokens"]["value"] == pytest.approx((4096 / joint["slow"], 4096 / joint["floor"]))
    thrice = plan("paper-gpt2-large", 8, "h200", {"seeds": 3}).figures["train"]["value"]
    assert thrice == pytest.approx([3 * seconds for seconds in large.figures["train"]["value"]])


def test_the_efficiency_moves_the_slow_end_alone(large):
    whole = plan("paper-gpt2-large", 8, "h200", efficiency=1.0)
    assert whole.step("joint")["floor"] == large.step("joint")["floor"]
    assert whole.step("joint")["floor"] < whole.step("joint")["slow"] < large.step("joint")["slow"]
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(UserError, match="--efficiency"):
            plan("paper-gpt2-large", 8, "h200", efficiency=wrong)


def test_the_fewest_gpus_hold_it_and_one_less_does_not():
    one = plan("paper-gemma2-9b", 1, "a100-40")
    assert not one.fits and one.least == 2
    assert one.others[2].fits and not one.others[1].fits
    assert any("it fits on 2 a100-40 or more" in note for note in one.notes)
    # 9,241,705,984 weights in bf16 are 18.5 GB, and every rank holds them
    assert one.shape.numbers == 9_241_705_984
    none = plan("paper-gemma2-9b", 1, "rtx4090", {"model.dtype": "fp32"})
    assert none.least is None and any("no number of rtx4090" in note for note in none.notes)


def test_from_where_sending_takes_longer_than_computing(large):
    before, at = (large.others[count].step("joint") for count in (large.balance - 1, large.balance))
    assert before["sending"] <= before["computing"] and at["sending"] > at["computing"]
    slow = plan("paper-gpt2-large", 2, "l40s")
    assert slow.balance <= large.balance


def test_a_folder_with_a_configuration_is_enough(build, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text((build("gpt2") / "config.json").read_text())
    bare = plan(
        {"model": {"path": str(folder)}, "hook": {"point": "blocks.1.hook_resid_pre"}, "sae": {"n": 64, "k": 4}},
        1,
        "h100",
    )
    assert bare.shape.d == 32 and bare.shape.source == str(folder) and bare.fits


def test_a_planted_world_needs_no_model():
    world = plan("planted", 2, "h100")
    assert world.fits and not {"harvest", "run", "cache", "model"} & world.figures.keys()


def test_a_model_that_nobody_knows_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("metasae.data.text.hub.unreachable", lambda: "the hub cannot be reached")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        plan("paper-gpt2-large", 1, "h100", {"model.name": "some/model"})
    assert "set model.path to a folder" in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_hook_point_is_the_error_of_a_run():
    with pytest.raises(UserError, match=r"did you mean 'blocks\.11\.hook_resid_pre'"):
        plan("modern-gpt2-small", 1, "h100", {"hook.point": "blocks.12.hook_resid_pre"})


def test_numbers_in_words():
    assert shown((1.5e-3, 2e-3), "s") == "1.5 ms to 2 ms"
    assert shown((3e5, 1.2e6), "tokens/s") == "300,000/s to 1,200,000/s"
    assert shown(CARDS["h200"].memory, "bytes") == "141 GB"
    assert shown((7200, 7200), "s") == "2 h" and shown(None, "s") == "not known"
