import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import random_sae
from sense_fakes import fires, through, word_of

from metasae.files import json_safe
from metasae.measures.words.sense_reference import Ceiling, sense_reference
from metasae.measures.words.senses import activations_on, jackknife_interval, measure_senses, overall, words_interval

SIZES = [400, 120, 80]
PURE = [[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]]
BLENDS = [[0.9, 0.9, 0], [0, 0.9, 0.9], [0.9, 0, 0.9]]
WORD_ITSELF = [[1, 1, 1]]
SCORES = ("atomicity", "atomicity_matched", "blend", "blend_matched", "coverage_f1", "ami")


def measured(recalls, sizes=SIZES, seed=0, splits=2, **more):
    x, sense = fires(sizes, recalls, seed, **more)
    return measure_senses(through(len(recalls)), sense_reference([word_of(x, sense)], splits=splits))["words"]["word"]


def test_pure_latents_against_blends():
    pure, blends = measured(PURE + WORD_ITSELF), measured(BLENDS + WORD_ITSELF)
    assert pure["coverage_f1"] == pytest.approx(2 * 0.9 / 1.9, abs=0.02)
    # each latent weighs as its summed activation: the word's own latent has 600 firings and atomicity 0, the pure ones
    # 540 and 1
    assert pure["atomicity"] == pytest.approx(540 / 1140, abs=0.02) == pure["atomicity_matched"]
    # a share of a third in each sense counts as a blend too
    assert pure["blend"] == pytest.approx(600 / 1140, abs=0.02) and blends["blend"] == 1 and blends["atomicity"] < 0.3
    assert blends["coverage_f1"] < pure["coverage_f1"] - 0.1 and blends["ami"] < pure["ami"] - 0.1


def test_thinned_pure_latents_lose_coverage_but_not_atomicity():
    whole, thin = measured(PURE), measured(np.multiply(PURE, 0.5))
    assert thin["atomicity_matched"] == whole["atomicity_matched"] == 1
    assert thin["coverage_f1"] < whole["coverage_f1"] - 0.2


def test_narrow_blends_do_not_look_more_atomic():
    whole = measured(BLENDS * 6)
    for kept in (0.9, 0.4):
        narrow = measured(np.multiply(BLENDS * 6, kept), seed=1)
        assert abs(narrow["atomicity_matched"] - whole["atomicity_matched"]) < 0.02
        assert narrow["coverage_f1"] < whole["coverage_f1"] + 0.02


def test_latents_that_know_nothing_of_the_senses_have_nothing():
    rng = np.random.default_rng(0)
    recalls = np.repeat(rng.uniform(0.02, 0.9, size=(120, 1)), 3, axis=1)
    numbers = measured(recalls)
    assert abs(numbers["atomicity_matched"]) < 0.01
    assert numbers["coverage_f1"] == pytest.approx(numbers["coverage_floor"], abs=0.03) and abs(numbers["ami"]) < 0.02
    assert numbers["probe_f1"] == pytest.approx(numbers["probe_floor"], abs=0.06)
    # narrower still: below the number of firings that are drawn nothing is judged
    narrow = measured(np.full((50, 3), 0.01))
    assert narrow["matched"]["n_latents"] == 0 and narrow["atomicity_matched"] is None and narrow["atomicity"] > 0.2


def test_shuffled_senses_give_the_floor():
    x, sense = fires(SIZES, PURE * 3 + BLENDS * 3, noise=0.3)
    shuffled = word_of(x, np.random.default_rng(1).permutation(sense))
    numbers = measure_senses(through(18), sense_reference([shuffled], splits=2))["words"]["word"]
    assert abs(numbers["atomicity_matched"]) < 0.02 and abs(numbers["ami"]) < 0.02
    assert numbers["coverage_f1"] == pytest.approx(numbers["coverage_floor"], abs=0.04)
    assert numbers["headroom"] == pytest.approx(numbers["probe_f1"] - numbers["coverage_f1"])


def test_conditions_counts_and_detectors():
    x, sense = fires(SIZES, [[0, 0, 0], *PURE, *WORD_ITSELF])
    numbers = measure_senses(through(5), sense_reference([word_of(x, sense)], splits=2))
    assert (
        numbers["n_words"] == 1
        and numbers["note"].startswith("1 word:")
        and numbers["point"] == "blocks.1.hook_resid_pre"
        and numbers["seed"] == 0
    )
    word = numbers["words"]["word"]
    assert word["n_per_sense"] == {"A": 400, "B": 120, "C": 80} and word["n_tokens"] == 600
    assert word["excluded"] == {"sentences": {"the same sentence again": 2}, "rare_senses": {"Z": 1}}
    assert word["n_latents"] == 4 and word["l0_realised"] == pytest.approx((x > 0.5).sum() / 600)
    assert word["matched"]["n_latents"] == 4 and word["matched"]["energy"] == 1
    assert [word["detectors"][s]["latent"] for s in "ABC"] == [1, 2, 3]
    recall = (x[sense == 1, 2] > 0.5).mean()
    assert word["detectors"]["B"] == {
        "latent": 2,
        "recall": pytest.approx(recall),
        "precision": 1.0,
        "f1": pytest.approx(2 * recall / (1 + recall)),
    }
    assert sum(entry["n_latents"] for entry in word["by_recall"]) == 4
    json.dumps(json_safe(numbers), allow_nan=False)


def test_leaving_out_a_block_is_measuring_without_it():
    x, sense = fires(SIZES, PURE + BLENDS, noise=0.3)
    reference = sense_reference([word_of(x, sense)], splits=2)
    word = reference[0]
    numbers = measure_senses(through(6), reference)["words"]["word"]
    for block in (0, 5):
        kept = word.blocks != block
        rest = replace(
            word.activations,
            x=word.activations.x[torch.from_numpy(kept)],
            sense=sense[kept],
            sentence=np.arange(kept.sum()),
        )
        alone = replace(
            word,
            activations=rest,
            halves=word.halves[:, kept],
            shuffled=word.shuffled[:, kept],
            blocks=word.blocks[kept],
        )
        without = measure_senses(through(6), (alone,))["words"]["word"]
        for key in SCORES:
            assert numbers["leave_one_out"][key][block] == pytest.approx(without[key], abs=1e-12)


def test_intervals_over_sentences_hold_the_truth(monkeypatch):
    """Sentences drawn again and again: scores scatter as wide as the jackknife says from one sample of them."""
    # the probe is none of these scores, and fitting it takes four fifths of the time
    ceiling = Ceiling(f1=0.9, leave_one_out=(0.9,) * 8, floor=0.3, n_fits=6, not_converged=0)
    monkeypatch.setattr("metasae.measures.words.sense_reference.probe_ceiling", lambda *_: ceiling)
    rng = np.random.default_rng(0)
    recalls = rng.uniform(0, 1, size=(20, 3))
    numbers = [measured(recalls, sizes=[200, 60, 40], seed=seed) for seed in range(24)]
    for key in SCORES:
        values = np.array([by_word[key] for by_word in numbers])
        half_widths = np.array([(by_word["ci95"][key][1] - by_word["ci95"][key][0]) / 2 for by_word in numbers])
        assert (np.abs(values - values.mean()) < half_widths).mean() > 0.75
        assert 0.6 < half_widths.mean() / 2.36 / values.std() < 2.5


def test_the_jackknife_of_a_mean_is_students_interval():
    blocks = np.random.default_rng(0).normal(size=8)
    without = [(blocks.sum() - value) / 7 for value in blocks]
    low, high = jackknife_interval(float(blocks.mean()), without)
    assert (low + high) / 2 == pytest.approx(blocks.mean())
    assert (high - low) / 2 == pytest.approx(2.364624 * blocks.std(ddof=1) / 8**0.5, rel=1e-5)
    assert jackknife_interval(0.3, [0.3, None]) is None and jackknife_interval(None, without) is None


def test_words_are_the_clusters():
    words = [measured(PURE, seed=0), measured(BLENDS, seed=1), measured(PURE + WORD_ITSELF, seed=2)]
    numbers = overall(words)
    for key in SCORES:
        values = [word[key] for word in words]
        assert numbers[key] == pytest.approx(np.mean(values))
        half = 4.302653 * np.std(values, ddof=1) / 3**0.5
        assert numbers["ci95"][key] == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=1e-6)
        assert numbers["leave_one_out"][key] == pytest.approx(
            np.mean([word["leave_one_out"][key] for word in words], axis=0)
        )
    assert numbers["note"].startswith("3 words: read each word by itself") and numbers["missing"] == {}
    assert overall(words * 2)["note"] == ""
    assert words_interval([0.5]) is None


def test_a_word_without_a_score_is_counted():
    silent = measured([[0, 0, 0]])
    assert (silent["atomicity"], silent["atomicity_matched"], silent["blend"], silent["ami"]) == (
        None,
        None,
        None,
        pytest.approx(0),
    )
    assert (
        silent["coverage_f1"] == 0
        and silent["n_latents"] == 0
        and silent["detectors"] == {}
        and silent["l0_realised"] == 0
    )
    both = overall([silent, measured(PURE)])
    assert both["missing"] == {"atomicity": 1, "atomicity_matched": 1, "blend": 1, "blend_matched": 1}
    assert both["atomicity"] == 1 and both["ci95"]["atomicity"] is None and both["n_words"] == 2
    assert overall([silent])["atomicity"] is None and overall([silent])["leave_one_out"]["atomicity"] == [None] * 8


def test_the_same_reference_gives_the_same_numbers():
    x, sense = fires(SIZES, PURE + BLENDS)
    reference = sense_reference([word_of(x, sense), word_of(x, np.roll(sense, 1), "other")], splits=2)
    assert measure_senses(through(6), reference) == measure_senses(through(6), reference)


def test_activations_are_those_of_encode(monkeypatch):
    monkeypatch.setattr("metasae.measures.words.senses.BATCH", 7)
    sae, x = random_sae(threshold=1.5), torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    acts, latents = activations_on(sae, x)
    whole = sae.encode(x).numpy()
    assert latents.tolist() == np.flatnonzero(whole.any(0)).tolist() and len(latents) < 24
    np.testing.assert_allclose(acts.toarray(), whole[:, latents], rtol=1e-6)
    assert (acts.data > 0).all()
    with pytest.raises(ValueError, match="no threshold"):
        activations_on(random_sae(), x)
