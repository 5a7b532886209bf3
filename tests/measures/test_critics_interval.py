"""The error of critics in intervals: what their spread adds to a number of one SAE and to a difference between arms."""

import json
import math
from statistics import fmean, stdev, variance

import numpy as np
import pytest
from scipy.stats import t as student

from metasae.compare.compare import compare, without_a_critic
from metasae.intervals.statistics import mean_interval, paired_difference
from metasae.sweep.equal_fvu import _difference, _measured
from metasae.sweep.plan import QUANTITIES
from runs import measures_of, write_arm

KEY = "decomposability.meta_ve_excess"
QUANTITY = QUANTITIES[KEY]
# by SAE seed, what each of five critics says
SOLO = [[0.101, 0.104, 0.099, 0.097, 0.102], [0.100, 0.105, 0.098, 0.096, 0.104], [0.103, 0.106, 0.097, 0.099, 0.103]]
JOINT = [[0.095, 0.091, 0.094, 0.097, 0.090], [0.096, 0.090, 0.095, 0.094, 0.092], [0.094, 0.093, 0.091, 0.096, 0.091]]


def judged(critics):
    """A measures.json whose number is the mean over critics."""
    measures = measures_of(decomposability__meta_ve_excess=fmean(critics))
    measures["decomposability"]["critics"] = {"meta_ve_excess": critics}
    return measures


def written(tmp_path, seeds=3):
    for arm, by_seed in (("solo", SOLO), ("joint", JOINT)):
        for seed in range(seeds):
            folder = write_arm(tmp_path, arm, seed)
            (folder / "measures.json").write_text(json.dumps(judged(by_seed[seed])))
    return compare(tmp_path)


def test_one_saes_number_has_the_variance_of_its_critics_over_their_count():
    without = without_a_critic(judged(SOLO[0]), QUANTITY)
    assert without[1] == pytest.approx(fmean([0.101, 0.099, 0.097, 0.102]))
    mean = mean_interval({0: fmean(SOLO[0])}, {0: without}, blocks_of="critics")
    assert mean.se_critics == pytest.approx(math.sqrt(variance(SOLO[0]) / 5)) and mean.n_critics == 5
    # one SAE: no interval, and nothing of documents
    assert mean.ci95 is mean.documents_ci95 is mean.se_documents is None and mean.note == "1 seed, no interval"
    assert mean.n_blocks == 0


def test_a_difference_has_the_critics_part_beside_the_seeds(tmp_path):
    entry = written(tmp_path)["pairs"]["joint vs solo"][KEY]
    x = np.array(JOINT) - np.array(SOLO)
    seeds = x.mean(1).var(ddof=1) / 3
    residual = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    critics = max(0.0, x.mean(0).var(ddof=1) / 5 - (residual**2).sum() / (2 * 4) / 15)
    assert entry["difference"] == pytest.approx(x.mean())
    assert entry["se_seeds"] == pytest.approx(math.sqrt(seeds))
    assert entry["se_critics"] == pytest.approx(math.sqrt(critics)) and critics > 0
    half = math.sqrt(student.ppf(0.975, 2) ** 2 * seeds + student.ppf(0.975, 4) ** 2 * critics)
    assert entry["ci95"] == pytest.approx([x.mean() - half, x.mean() + half])
    assert (entry["n_critics"], entry["n_blocks"], entry["se_documents"]) == (5, 0, None)


def test_with_one_seed_there_is_no_interval(tmp_path):
    comparison = written(tmp_path, 1)
    entry = comparison["pairs"]["joint vs solo"][KEY]
    assert entry["ci95"] is None and entry["note"] == "1 seed, no interval"
    assert entry["se_critics"] == pytest.approx(stdev(np.subtract(JOINT[0], SOLO[0]).tolist()) / math.sqrt(5))
    assert comparison["arms"]["solo"]["intervals"][KEY]["n_critics"] == 5
    # compare.json keeps blocks of documents alone
    assert KEY not in comparison["arms"]["solo"]["blocks"]


@pytest.mark.parametrize("critics", [[], [0.1], [0.1, None, 0.2]])
def test_too_few_critics_leave_their_error_out(critics):
    measures = judged([0.1])
    measures["decomposability"]["critics"] = {"meta_ve_excess": critics} if critics else {}
    assert without_a_critic(measures, QUANTITY) is None


def test_the_critics_error_that_is_left_out_is_said():
    numbers = {seed: fmean(critics) for seed, critics in enumerate(SOLO)}
    some = {seed: without_a_critic(judged(SOLO[seed]), QUANTITY) for seed in (0, 1)}
    mean = mean_interval(numbers, some, blocks_of="critics")
    assert mean.note == "error of critics left out: no critics for seed 2" and mean.se_critics is None
    with pytest.raises(ValueError, match="the same critics, not 3, 5"):
        paired_difference(numbers, numbers, {0: [1, 2, 3]}, {0: [1, 2, 3, 4, 5]}, blocks_of="critics")


def test_a_sweep_has_the_same_interval(tmp_path):
    sides = [{seed: _measured(judged(critics), QUANTITY) for seed, critics in enumerate(arm)} for arm in (JOINT, SOLO)]
    entry = written(tmp_path)["pairs"]["joint vs solo"][KEY]
    assert _difference(*sides).as_dict() | {"p_holm": entry["p_holm"]} == entry
