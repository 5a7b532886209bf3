"""A whole run on planted arms: files, means, pairs, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import OracleJudge
from test_embedding import words_encoder
from worlds import PLAN, random_firings, view_of

from metasae.arms.folder import Arm, RunFolder
from metasae.data.planted.planted import plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.errors import UserError
from metasae.interp.asking import Asker
from metasae.interp.choice import InterpSpec, arms_to_score
from metasae.interp.embedding import EmbeddingScorer
from metasae.interp.excerpts import Text, WindowSpec, planted_strings
from metasae.interp.replies import ReplyStore
from metasae.interp.run import Scoring
from metasae.interp.scores import Score, ScoreFile, _of_siblings, matched_difference, other_latents
from metasae.interp.subject import main_tokens
from metasae.measures.firing.store import write_firings
from tools.subjects import dictionary, noisy

SPEC = WindowSpec(length=8, train=6, score=6, silent=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """solo and joint with 2 seeds: solo's dictionary has its rows disturbed, joint's is the truth with two words
    blended.
    """
    folder = tmp_path_factory.mktemp("run")
    split = PlantedSplit(plant(PLAN, 0), 8_000, 0)
    for seed in range(2):
        for arm, subject in (
            ("solo", noisy(dictionary(split), 0.1, seed)),
            ("joint", dictionary(split, blended=(0, 1))),
        ):
            subject.sae.save(folder / "arms" / f"{arm}-s{seed}" / "primary")
            write_firings(subject.sae, split, folder / "arms" / f"{arm}-s{seed}" / "firings")
    return folder, split


def scoring_of(run, **asked):
    folder, split = run

    def text_of(firings):
        return Text(firings.documents, firings.tokens, firings.positions, planted_strings(split), 0)

    return Scoring(RunFolder(folder), InterpSpec(window=SPEC, **asked), text_of)


def go(run, scorers=None, judges=None, **asked):
    scoring = scoring_of(run, latents=20, **asked)
    return scoring.write(scorers or {"embedding": EmbeddingScorer(scoring.text, words_encoder, SPEC)}, judges or {})


def test_files_hold_what_is_returned_and_means_are_those_of_the_latents(run):
    merged = go(run)
    folder = run[0]
    assert json.loads((folder / "interp.json").read_text()) == json.loads(json.dumps(merged))
    assert set(merged["arms"]) == {"solo-s0", "solo-s1", "joint-s0", "joint-s1"}
    for name, entry in merged["arms"].items():
        content = json.loads((folder / "arms" / name / "interp.json").read_text())
        own = [latent["embedding"]["random"] for latent in content["latents"].values() if latent["own"]]
        part = entry["interp"]["scores"]["embedding"]["parts"]["random"]
        assert len(own) == entry["interp"]["conditions"]["latents"] == 20
        assert part["estimate"] == pytest.approx(np.mean([value for value in own if value is not None]))
        assert part["estimate"] > part["shuffled"]["estimate"] + 0.1
        assert content["coverage"]["covered"] <= content["coverage"]["live"] <= content["coverage"]["n_latents"]


def test_pairs_are_matched_latents_and_unpaired_means(run):
    merged = go(run)
    difference = merged["pairs"]["joint vs solo"]["embedding"]["random"]
    means = {
        name: entry["interp"]["scores"]["embedding"]["parts"]["random"]["estimate"]
        for name, entry in merged["arms"].items()
    }
    expected = np.mean([means["joint-s0"] - means["solo-s0"], means["joint-s1"] - means["solo-s1"]])
    assert difference["unpaired"]["difference"] == pytest.approx(expected) and difference["unpaired"]["n_seeds"] == 2
    for seed in "01":
        matched = merged["arms"][f"joint-s{seed}"]["interp"]["matched"]
        assert 10 <= matched["pairs"] <= matched["wanted"] == 20
        within = difference["matched_by_seed"][seed]
        assert within["n_values"] + within["excluded"] == matched["pairs"]
        assert within["difference"] == pytest.approx(within["a"] - within["b"])
    differences = [entry["difference"] for entry in difference["matched_by_seed"].values()]
    assert difference["matched"]["difference"] == pytest.approx(np.mean(differences))


def test_a_second_call_gives_the_same_numbers_and_one_arm_alone_stays_beside_the_others(run):
    first, again = go(run), go(run)
    assert first == again and first["left_out"] == []
    # the baseline's latents are those of the earlier call
    assert go(run, arms=["joint"], seeds=[1]) == first
    (run[0] / "arms" / "solo-s1" / "interp.json").unlink()
    alone = go(run, arms=["joint"], seeds=[1])
    assert (
        set(alone["arms"]) == {"solo-s0", "joint-s0", "joint-s1"}
        and "matched" not in alone["arms"]["joint-s1"]["interp"]
    )
    assert go(run) == first


def other_score(view, windows, floor):
    numbers = np.array([latent.latent % 7 / 7 for latent in windows])
    return Score("detection", {"random": numbers}, explanations=tuple(f"latent {latent.latent}" for latent in windows))


def test_scores_of_a_later_call_stand_beside_the_earlier_ones(run):
    first = go(run)
    both = go(run, scorers={"detection": other_score}, judges={"detection": "one judge"})
    for name, entry in both["arms"].items():
        scores = entry["interp"]["scores"]
        assert (
            list(scores) == ["embedding", "detection"]
            and scores["embedding"] == first["arms"][name]["interp"]["scores"]["embedding"]
        )
        content = json.loads((run[0] / "arms" / name / "interp.json").read_text())["latents"]
        for latent, numbers in content.items():
            assert (
                numbers["detection"]["random"] == pytest.approx(int(latent) % 7 / 7)
                and numbers["explanation"] == f"latent {latent}"
            )
            assert numbers["judge"] == "one judge" and set(numbers["embedding"]) >= {"random", "same_token"}
    assert set(both["pairs"]["joint vs solo"]) == {"embedding", "detection"} and both["left_out"] == []
    assert both["pairs"]["joint vs solo"]["embedding"] == first["pairs"]["joint vs solo"]["embedding"]
    # a score that is given anew takes the place of the old one; the explanations stay with who gave them
    again = go(run)
    assert again["arms"] == both["arms"]
    # arms read by two judges are not compared
    two = go(run, scorers={"detection": other_score}, judges={"detection": "another judge"}, arms=["solo"])
    assert "detection" not in two["pairs"]["joint vs solo"] and "embedding" in two["pairs"]["joint vs solo"]
    go(run, scorers={"detection": other_score}, judges={"detection": "one judge"})


def test_scores_of_other_windows_or_weights_are_replaced_or_left_out_in_words(run, tmp_path):
    place = shutil.copytree(run[0], tmp_path / "run")
    for file in (place / "arms").glob("*/interp.json"):
        file.unlink()
    here = (place, run[1])
    go(here)
    merged = go(here, scorers={"detection": other_score}, seed=5, arms=["solo"])
    assert set(merged["arms"]) == {"solo-s0", "solo-s1"} and merged["pairs"] == {}
    assert [words.split(":")[0] for words in merged["left_out"]] == ["solo-s0", "solo-s1", "joint-s0", "joint-s1"]
    assert (
        "the earlier embedding was for other windows" in merged["left_out"][0]
        and "score it again with the same settings" in merged["left_out"][-1]
    )
    # weights trained anew: what was said of the old ones is not said of them
    for kept in ("primary", "firings"):
        shutil.rmtree(place / "arms" / "joint-s0" / kept)
    anew = noisy(dictionary(run[1]), 0.4, 9)
    anew.sae.save(place / "arms" / "joint-s0" / "primary")
    go(here, arms=["solo", "joint"], seeds=[1])
    write_firings(anew.sae, run[1], place / "arms" / "joint-s0" / "firings")
    merged = go(here, seeds=[1])
    assert "joint-s0" not in merged["arms"] and any(words.startswith("joint-s0") for words in merged["left_out"])
    merged = go(here)
    assert set(merged["arms"]) == {"solo-s0", "solo-s1", "joint-s0", "joint-s1"}


def test_siblings_of_two_seeds_are_compared_with_the_base_rate(run, tmp_path):
    """solo's latents are split in joint where it has their senses; between solo's two seeds, alike but for their rows,
    hardly any are.
    """
    folder, _ = run
    split = PlantedSplit(plant(replace(PLAN, sense_cosine=0.2), 0), 8_000, 0)
    place = shutil.copytree(folder, tmp_path / "run")
    for seed in range(2):
        for arm, subject in (("solo", dictionary(split, blended=(0, 1, 2))), ("joint", dictionary(split))):
            for kept in ("primary", "firings"):
                shutil.rmtree(place / "arms" / f"{arm}-s{seed}" / kept)
            subject.sae.save(place / "arms" / f"{arm}-s{seed}" / "primary")
            write_firings(subject.sae, split, place / "arms" / f"{arm}-s{seed}" / "firings")
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        asker = Asker(OracleJudge(), store)
        scoring = scoring_of((place, split), scores=["sense_intruder"], latents=5)
        merged = scoring.write({}, {}, asker)
    scores = {name: entry["interp"]["scores"]["sense_intruder"] for name, entry in merged["arms"].items()}
    assert [(scores[name]["parents"], scores[name]["children"]) for name in ("joint-s0", "solo-s0")] == [
        ("solo-s0", "joint-s1"),
        ("solo-s0", "solo-s1"),
    ]
    # two seeds are one pair
    for name in ("joint-s1", "solo-s1"):
        assert "parents" not in scores[name] and scores[name]["parts"]["all"]["estimate"] is None
    joint, solo = (scores[name]["parts"]["all"]["estimate"] for name in ("joint-s0", "solo-s0"))
    # an encoder that takes some senses for others is far from 1, and from chance
    assert joint > 0.4
    difference = merged["pairs"]["joint vs solo"]["sense_intruder"]["all"]
    assert difference["matched"] is None and difference["unpaired"]["n_seeds"] == (0 if solo is None else 1)


def test_the_base_rates_of_three_seeds_share_seeds():
    def sides(of_joint):
        children = [f"{'joint' if of_joint else 'solo'}-s{(seed + 1) % 3}" for seed in range(3)]
        means = (0.5, 0.6, 0.8) if of_joint else (0.3, 0.3, 0.3)
        scores = [
            {"parents": f"solo-s{seed}", "children": children[seed], "parts": {"all": {"estimate": means[seed]}}}
            for seed in range(3)
        ]
        return {
            seed: ScoreFile(
                Arm("joint" if of_joint else "solo", seed, Path()), {"scores": {"sense_intruder": scores[seed]}}
            )
            for seed in range(3)
        }

    difference = _of_siblings(sides(True), sides(False))["sense_intruder"]["all"]["unpaired"]
    alone = _of_siblings(sides(True), sides(True))["sense_intruder"]["all"]["unpaired"]
    assert difference["difference"] == pytest.approx(1 / 3) and difference["n_seeds"] == 3 and difference["note"] == ""
    assert difference["se_seeds"] == pytest.approx(2 * np.std([0.5, 0.6, 0.8], ddof=1) / np.sqrt(3))
    assert alone["difference"] == 0


def test_what_cannot_be_scored_is_one_line(run, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        arms_to_score(RunFolder(tmp_path), InterpSpec())
    with pytest.raises(UserError, match="did you mean 'joint'"):
        arms_to_score(RunFolder(run[0]), InterpSpec(arms=["joynt"]))
    with pytest.raises(UserError, match="has the seeds"):
        arms_to_score(RunFolder(run[0]), InterpSpec(seeds=[7]))
    dictionary(run[1]).sae.save(tmp_path / "arms" / "solo-s0" / "primary")
    with pytest.raises(UserError, match="keep_firings"):
        go((tmp_path, run[1]))
    other = PlantedSplit(plant(PLAN, 0), 8_000, 3)
    write_firings(dictionary(other).sae, other, tmp_path / "arms" / "solo-s0" / "firings")
    sae = dictionary(other).sae
    sae.save(tmp_path / "arms" / "joint-s0" / "primary")
    write_firings(sae, run[1], tmp_path / "arms" / "joint-s0" / "firings")
    with pytest.raises(UserError, match="other text"):
        go((tmp_path, other))


def test_the_floor_gives_every_latent_another_ones_explanation():
    for count in (2, 3, 50):
        by = other_latents(count, 1)
        assert sorted(by) == list(range(count)) and (by != np.arange(count)).all()
    assert other_latents(1, 0) is None and other_latents(0, 0) is None


def test_clusters_are_the_token_fired_on_most():
    firings = random_firings()
    view, latents = view_of(firings), [1, 2, 5]
    for latent, cluster in zip(latents, main_tokens(view, firings.tokens, latents), strict=True):
        ids = [
            int(token)
            for token, on in zip(firings.tokens, firings.csr[:, [latent]].toarray().ravel(), strict=True)
            if on
        ]
        assert cluster == min(set(ids), key=lambda number: (-ids.count(number), number))


def test_a_matched_difference_leaves_out_and_counts_pairs_without_both():
    a, b = np.array([0.9, np.nan, 0.7]), np.array([0.6, 0.5, 0.6])
    difference = matched_difference(a, b, np.arange(3), 0)
    assert (
        difference["difference"] == pytest.approx(0.2)
        and difference["excluded"] == 1
        and difference["a"] == pytest.approx(0.8)
    )
    empty = matched_difference(np.full(2, np.nan), b[:2], np.arange(2), 0)
    assert empty["difference"] is None and empty["a"] is None


def test_intervals_draw_clusters_not_latents():
    """25 clusters of 20 equal scores tell no more than 25 scores."""
    per_cluster = np.random.default_rng(0).random(25)
    many, one_each = np.repeat(per_cluster, 20), per_cluster
    wide = Score("embedding", {"random": many}).as_dict(range(500), np.repeat(np.arange(25), 20), 0)["parts"]["random"]
    narrow = Score("embedding", {"random": one_each}).as_dict(range(25), np.arange(25), 0)["parts"]["random"]
    assert wide["ci95"] == pytest.approx(narrow["ci95"]) and wide["n_clusters"] == 25


def test_an_arm_with_the_weights_of_another_keeps_no_firings_and_is_passed_over(run, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(run[0], place)
    shutil.copytree(place / "arms" / "solo-s0" / "primary", place / "arms" / "control-s0" / "primary")
    measures = place / "arms" / "control-s0" / "measures.json"
    measures.write_text(json.dumps({"conditions": {"same_weights_as": "solo-s0"}}))
    merged = go((place, run[1]))
    assert "control-s0" not in merged["arms"] and "solo-s0" in merged["arms"]
    with pytest.raises(UserError, match="control-s0 keeps no firings"):
        go((place, run[1]), arms=["control"])
    # one that should have its own is still missed
    measures.write_text(json.dumps({"conditions": {}}))
    with pytest.raises(UserError, match="keeps no firings"):
        go((place, run[1]))
