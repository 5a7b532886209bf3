"""The whole job on a planted run folder: estimate, judge, store, replay."""

import json
import re
import shutil

import pytest
from oracle import OracleJudge
from test_embedding import words_encoder

from metasae.errors import UserError
from metasae.interp import run
from metasae.interp.choice import READ, InterpSpec
from metasae.interp.embedding import encoder_of
from metasae.interp.excerpts import WindowSpec

SPEC = WindowSpec(length=8, train=8, score=6, silent=5)
CHOICES = {"window": SPEC, "latents": 6}


def run_interp(folder, judge=None, confirm=None, **asked):
    return run.run_interp(folder, InterpSpec(**asked), judge, confirm, show=False)


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    """`words_encoder` is a name of an encoder, too."""

    def with_words(place, source):
        return words_encoder if place == "words_encoder" else encoder_of(place, source)

    monkeypatch.setattr(run, "encoder_of", with_words)


@pytest.fixture
def folder(planted_run, tmp_path):
    return shutil.copytree(planted_run, tmp_path / "run")


class Counting(OracleJudge):
    def __init__(self):
        super().__init__()
        self.asked = []

    def answer(self, ask):
        self.asked.append(ask.key(self.name))
        return super().answer(ask)


def test_a_run_is_estimated_asked_once_kept_and_replayed(folder):
    judge = Counting()
    first = run_interp(
        folder, scores=[*READ, "embedding"], judge=judge, encoder="words_encoder", price=(1.0, 2.0), **CHOICES
    )
    estimate, asked = first["judge"]["estimate"], first["judge"]["asked"]
    assert asked["asked"] == len(judge.asked) == len(set(judge.asked)) > 100
    # fewer only where two latents got the same explanation
    assert 0.9 * estimate["questions"] < asked["asked"] <= estimate["questions"]
    assert (
        0 < asked["prompt_tokens"] < estimate["prompt_tokens"]
        and 0 < asked["cost"] < estimate["cost"]
        and asked["failed"] == 0
    )
    for entry in first["arms"].values():
        assert set(entry["interp"]["scores"]) == {*READ, "embedding"}
    content = json.loads((folder / "arms" / "joint-s0" / "interp.json").read_text())
    assert {"detection", "fuzz_marks", "fuzz_2afc", "sim_spearman", "embedding"} < set(
        next(iter(content["latents"].values()))
    )

    again = run_interp(folder, scores=[*READ, "embedding"], judge=judge, encoder="words_encoder", **CHOICES)
    assert (
        again["judge"]["asked"]["asked"] == 0 == again["judge"]["estimate"]["questions"]
        and len(judge.asked) == asked["asked"]
    )
    replay = run_interp(folder, scores=[*READ], replay=True, model="oracle", **CHOICES)
    for name, entry in replay["arms"].items():
        for key in READ:
            assert entry["interp"]["scores"][key] == first["arms"][name]["interp"]["scores"][key]
    with pytest.raises(UserError, match="lacks"):
        run_interp(folder, scores=["detection"], replay=True, model="oracle", **{**CHOICES, "latents": 9})
    with pytest.raises(UserError, match="no replies of 'oracel'; did you mean 'oracle'"):
        run_interp(folder, scores=["detection"], replay=True, model="oracel", **CHOICES)


def test_files_hold_explanations_the_judge_and_what_it_cost(folder):
    result = run_interp(
        folder,
        scores=["detection", "embedding"],
        judge=Counting(),
        encoder="words_encoder",
        price=(1.0, 2.0),
        **CHOICES,
    )
    assert (
        json.loads((folder / "interp.json").read_text()) == json.loads(json.dumps(result))
        and result["judge"]["asked"]["cost"] > 0
    )
    for name, entry in result["arms"].items():
        content = json.loads((folder / "arms" / name / "interp.json").read_text())
        assert content["conditions"] == entry["interp"]["conditions"]
        assert (
            content["scores"]["detection"]["judge"] == "oracle"
            and content["scores"]["embedding"]["judge"] == "words_encoder"
        )
        assert all(latent["judge"] == "oracle" for latent in content["latents"].values())
        # the oracle explains by a feature or a word
        assert all(re.fullmatch(r"[fw]\d+", latent["explanation"]) for latent in content["latents"].values())
        assert (
            content["scores"]["detection"]["self_agreement"] == 1.0
            and content["scores"]["detection"]["without_logprobs"] > 0
        )


def test_the_explorer_shows_what_the_judge_was_asked_of_a_latent(folder):
    pytest.importorskip("plotly", reason="the explorer draws with plotly")
    from metasae.explore.pages.queries import Explorer
    from metasae.explore.store.build import build

    judge = Counting()
    run_interp(folder, scores=["detection"], judge=judge, **CHOICES)
    build(folder)
    content = json.loads((folder / "arms" / "solo-s0" / "interp.json").read_text())["latents"]
    pages = {latent: Explorer(folder).latent("solo-s0", int(latent)) for latent in content}
    for latent, page in pages.items():
        assert page["explanation"] == {"text": content[latent]["explanation"], "judge": "oracle"}
        assert page["replies"] and all(reply["score"] == "detection" for reply in page["replies"])


def test_siblings_are_asked_about_beside_the_latents(folder):
    judge = Counting()
    first = run_interp(folder, scores=["sense_intruder"], judge=judge, **CHOICES)
    assert first["judge"]["estimate"]["questions"] == len(judge.asked) == len(set(judge.asked)) > 10
    joint, solo = (first["arms"][name]["interp"]["scores"]["sense_intruder"] for name in ("joint-s0", "solo-s0"))
    # solo blends three words into one latent each; joint has their senses, read by an encoder that takes some for
    # others
    assert (
        joint["parts"]["same_seed"]["estimate"] > 0.4
        and joint["parents"] == "solo-s0"
        and joint["candidates"] >= 2
        and joint["found_in"] == "firings"
    )
    # with one seed like is not compared with like: joint's siblings are of the same seed, and solo has none
    assert set(joint["parts"]) == {"same_seed"} and joint["children"] == "joint-s0"
    assert solo["parts"]["all"]["estimate"] is None and "no SAE of another seed" in solo["parts"]["all"]["note"]
    assert first["pairs"]["joint vs solo"] == {}
    content = json.loads((folder / "arms" / "joint-s0" / "interp.json").read_text())
    assert len(content["siblings"]) == joint["pairs"] and {"parent", "children", "questions", "sense_intruder"} == set(
        content["siblings"][0]
    )
    replay = run_interp(folder, scores=["sense_intruder"], replay=True, model="oracle", **CHOICES)
    assert replay["arms"] == first["arms"] and replay["judge"]["asked"]["asked"] == 0


def test_above_the_limit_it_asks_and_nothing_is_sent_before_the_answer(folder):
    judge, shown = Counting(), []
    with pytest.raises(UserError, match="questions, up to"):
        run_interp(folder, scores=["detection"], judge=judge, ask_above=100, **CHOICES)
    with pytest.raises(UserError, match="confirm"):
        run_interp(
            folder,
            scores=["detection"],
            judge=judge,
            ask_above=100,
            confirm=lambda estimate: shown.append(estimate),
            **CHOICES,
        )
    assert not judge.asked and shown[0]["questions"] > 10 and not (folder / "interp.json").exists()
    run_interp(folder, scores=["detection"], judge=judge, ask_above=100, confirm=lambda estimate: True, **CHOICES)
    assert 0.9 * shown[0]["questions"] < len(judge.asked) <= shown[0]["questions"]


def test_what_cannot_be_done_is_one_line(folder, tmp_path):
    for problem, words in (
        ({"scores": ["detekt"]}, "did you mean 'detection'"),
        ({"scores": []}, "no score"),
        ({"scores": ["detection"]}, "--judge"),
        ({"scores": ["embedding"]}, "name an encoder"),
        ({"scores": ["embedding"], "encoder": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            run_interp(folder, **problem, **CHOICES)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no recipe\.toml"):
        run_interp(tmp_path, **CHOICES)
    with pytest.raises(UserError, match="no replies to replay"):
        run_interp(folder, scores=["detection"], replay=True, model="oracle", **CHOICES)
    assert not (folder / "replies.sqlite").exists()


def test_an_encoder_from_a_folder_scores_and_one_that_predicts_tokens_is_refused(folder, build):
    scored = run_interp(folder, encoder=str(build("bert")), **CHOICES)
    assert 0 <= scored["arms"]["solo-s0"]["interp"]["scores"]["embedding"]["parts"]["random"]["estimate"] <= 1
    with pytest.raises(UserError, match="no sentence encoder"):
        run_interp(folder, encoder=str(build("gpt2")), **CHOICES)
