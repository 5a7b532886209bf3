import json
import math

import numpy as np
import pytest
from simulated import effects, left_out

from metasae.intervals.statistics import is_clear, mean_interval, paired_difference

CASES = 500
LOW, HIGH = 0.92, 0.98


def by_seed(array):
    return dict(enumerate(array.tolist()))


def judged(a, b):
    """The difference of two arms with x [S, B]; the measure is the mean over blocks."""
    return paired_difference(by_seed(a.mean(1)), by_seed(b.mean(1)), by_seed(left_out(a)), by_seed(left_out(b)))


def covered(intervals, truth):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def test_three_seeds_by_hand():
    estimate = paired_difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 2.0})
    # differences 1, 3, 2: mean 2, s = 1, t(2 df) = 4.3027, half = 4.3027 / sqrt(3)
    half = 4.302652729911275 / math.sqrt(3)
    assert (estimate.a, estimate.b, estimate.difference, estimate.percent, estimate.n_seeds, estimate.n_blocks) == (
        4,
        2,
        2,
        100,
        3,
        0,
    )
    assert estimate.ci95 == pytest.approx((2 - half, 2 + half)) and estimate.percent_ci95 == pytest.approx(
        (100 - 50 * half, 100 + 50 * half)
    )
    assert (
        estimate.se_seeds == pytest.approx(1 / math.sqrt(3))
        and estimate.se_documents is None
        and estimate.documents_ci95 is None
    )
    # t = 2 sqrt(3), and with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    assert (
        estimate.p == pytest.approx(1 - math.sqrt(12 / 14)) and not is_clear(estimate.as_dict()) and estimate.note == ""
    )


def test_two_seeds_are_wide():
    estimate = paired_difference({0: 1.1, 1: 1.3}, {0: 1.0, 1: 1.0})
    # s = .2 / sqrt(2), t(1 df) = 12.706, half = 12.706 * .1
    assert estimate.ci95 == pytest.approx((0.2 - 1.2706204736, 0.2 + 1.2706204736))


def test_pairs_not_means_make_the_interval():
    # large spread between seeds, the same step in each: the pairing removes the spread
    estimate = paired_difference({0: 11.0, 1: 21.0, 2: 31.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert estimate.ci95 == pytest.approx((1, 1)) and is_clear(estimate.as_dict())
    assert estimate.note.startswith("the same difference in every seed, so the interval has no width")


def test_a_small_difference_of_large_numbers_is_not_lost():
    estimate = paired_difference({0: 1e6 + 1e-3, 1: 2e6 + 3e-3, 2: 3e6 + 2e-3}, {0: 1e6, 1: 2e6, 2: 3e6})
    assert estimate.difference == pytest.approx(2e-3, rel=1e-5) and estimate.se_seeds == pytest.approx(
        1e-3 / math.sqrt(3), rel=1e-5
    )


def test_one_seed_has_no_interval_over_seeds():
    estimate = paired_difference({4: 1.0}, {4: 2.0})
    assert (
        estimate.ci95 is None
        and estimate.p is None
        and estimate.percent == -50
        and estimate.note == "1 seed, no interval"
    )
    assert not is_clear(estimate.as_dict())
    # blocks with differences 1, 2, 3: mean 2, s^2 / B = 1/3, t(2 df) = 4.3027
    estimate = judged(np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]]))
    half = 4.302652729911275 / math.sqrt(3)
    assert estimate.documents_ci95 == pytest.approx((2 - half, 2 + half)) and estimate.se_documents == pytest.approx(
        1 / math.sqrt(3)
    )
    assert (
        estimate.ci95 is None
        and estimate.se_seeds is None
        and estimate.n_blocks == 3
        and estimate.note == "1 seed, no interval"
    )


def test_text_that_all_seeds_share_does_not_shrink_with_seeds():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(1, 8))
    few, many = (judged(3 + text + 0.01 * rng.normal(size=(seeds, 8)), np.ones((seeds, 8))) for seeds in (3, 100))
    assert (
        few.se_documents
        == pytest.approx(many.se_documents, rel=0.1)
        == pytest.approx(text.std(ddof=1) / math.sqrt(8), rel=0.1)
    )
    assert many.se_seeds < 0.2 * few.se_seeds + 1e-3 and many.ci95[1] - many.ci95[0] > 0.9 * (few.ci95[1] - few.ci95[0])


def test_text_that_moves_both_arms_alike_drops_out():
    rng = np.random.default_rng(1)
    b = 5 + rng.normal(size=(1, 8)) + rng.normal(size=(3, 1))
    estimate = judged(b + np.array([[0.1], [0.2], [0.3]]), b)
    assert estimate.se_documents == pytest.approx(0, abs=1e-12) and estimate.ci95 == pytest.approx(
        paired_difference({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0, 1: 0, 2: 0}).ci95
    )


def test_identical_arms():
    x = np.random.default_rng(2).normal(size=(3, 8))
    for estimate in (judged(x, x), paired_difference({0: 0.1, 1: 0.2}, {0: 0.1, 1: 0.2})):
        assert (
            estimate.difference == 0 and estimate.ci95 == (0, 0) and estimate.percent_ci95 == (0, 0) and estimate.p == 1
        )
        assert not is_clear(estimate.as_dict()) and estimate.note == ""


def test_constant_blocks_add_nothing():
    estimate = judged(np.repeat([[1.0], [2.0], [3.0]], 4, axis=1), np.zeros((3, 4)))
    assert estimate.se_documents == 0 and estimate.n_blocks == 4 and estimate.documents_ci95 == (2, 2)
    assert estimate.ci95 == pytest.approx(paired_difference({0: 1, 1: 2, 2: 3}, {0: 0, 1: 0, 2: 0}).ci95)


def test_unpaired_seeds_and_missing_numbers_are_named():
    estimate = paired_difference({0: 1.0, 1: 2.0, 2: None, 5: math.nan}, {1: 1.0, 2: 4.0, 3: 5.0, 5: 1.0})
    assert estimate.n_seeds == 1 and estimate.a == 2
    assert estimate.note == "1 seed, no interval; no pair for seed 0, 2, 3; not a finite number for seed 5"
    empty = paired_difference({}, {})
    assert empty.difference is None and empty.note == "no seeds" and empty.p is None
    assert paired_difference({0: 1.0}, {1: 1.0}).note == "no pair for seed 0, 1"


@pytest.mark.parametrize("blocks, words", [
    ({0: [1.0, 2.0], 1: None, 2: [1.0, 2.0]}, "no document blocks for seed 1"),
    ({0: [1.0, 2.0], 2: [1.0, 2.0]}, "no document blocks for seed 1"),
    ({0: [1.0, 2.0], 1: [1.0, None], 2: [math.inf, 2.0]}, "a document block without a number for seed 1, 2"),
    ({0: [1.0], 1: [1.0], 2: [1.0]}, "1 document block"),
])  # fmt: skip
def test_without_usable_blocks_the_interval_is_over_seeds(blocks, words):
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.5, 1: 0.6, 2: 0.7}
    estimate, alone = paired_difference(a, b, blocks, blocks), paired_difference(a, b)
    assert (
        estimate.ci95 == alone.ci95
        and estimate.n_blocks == 0
        and estimate.se_documents is None
        and estimate.note == f"text error left out: {words}"
    )


def test_blocks_that_do_not_match_are_an_error():
    a, b = {0: 1.0, 1: 2.0}, {0: 0.5, 1: 0.6}
    with pytest.raises(ValueError, match="same document blocks, not 2, 3"):
        paired_difference(a, b, {0: [1.0, 2.0], 1: [1.0, 2.0]}, {0: [1.0, 2.0], 1: [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="both arms or for neither"):
        paired_difference(a, b, {0: [1.0, 2.0], 1: [1.0, 2.0]})


def test_zero_and_negative_baselines():
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}).percent is None
    estimate = paired_difference({0: -1.0, 1: -1.0}, {0: -2.0, 1: -2.0})
    assert estimate.percent == 50 and estimate.ci95 == (1, 1) and estimate.percent_ci95 == pytest.approx((50, 50))
    one, mirrored = (
        paired_difference({0: 3.0 * s, 1: 4.0 * s, 2: 5.0 * s}, {0: 2.9 * s, 1: 3.0 * s, 2: 3.1 * s}) for s in (1, -1)
    )
    assert mirrored.percent == pytest.approx(-one.percent) and mirrored.percent_ci95 == pytest.approx(
        (-one.percent_ci95[1], -one.percent_ci95[0])
    )


def test_a_baseline_not_told_apart_from_0_has_no_percentage():
    estimate = paired_difference({0: 1.0, 1: 1.2, 2: 1.1}, {0: 0.1, 1: -0.1, 2: 0.2})
    assert estimate.percent is None and estimate.percent_ci95 is None and estimate.ci95 is not None
    assert estimate.note == "no percentage, as the baseline's interval includes 0"


def test_the_percentage_and_the_difference_agree_about_0():
    rng = np.random.default_rng(3)
    clear = 0
    for _ in range(300):
        estimate = paired_difference(by_seed(rng.normal(6, 1, 4)), by_seed(rng.normal(4, 1, 4)))
        if estimate.percent_ci95 is not None:
            clear += is_clear(estimate.as_dict())
            assert (
                is_clear(estimate.as_dict())
                == (not estimate.percent_ci95[0] <= 0 <= estimate.percent_ci95[1])
                == (estimate.p < 0.05)
            )
    assert 50 < clear < 250


def test_as_json():
    estimate = judged(2 + effects(1, 3, 8, 4, text=0.3)[0], np.ones((3, 8))).as_dict()
    assert json.loads(json.dumps(estimate)) == estimate
    assert set(estimate) == {
        "a", "b", "difference", "percent", "ci95", "percent_ci95", "documents_ci95", "se_seeds", "se_documents",
        "se_critics", "p", "p_holm", "smallest", "n_seeds", "n_blocks", "n_critics", "values", "note",
    }  # fmt: skip
    assert (
        estimate["p_holm"] is None and len(estimate["values"]) == 3 and set(estimate["values"][0]) == {"seed", "a", "b"}
    )


def test_one_arms_own_mean():
    estimate = mean_interval({0: 1.0, 1: 3.0, 2: 2.0, 3: None, 4: math.nan})
    half = 4.302652729911275 / math.sqrt(3)
    assert estimate.mean == 2 and estimate.ci95 == pytest.approx((2 - half, 2 + half)) and estimate.n_seeds == 3
    assert estimate.note == "no value for seed 3; not a finite number for seed 4"
    assert mean_interval({0: 1.0}).ci95 is None and mean_interval({0: 1.0}).note == "1 seed, no interval"
    assert mean_interval({}).mean is None
    x = effects(1, 3, 8, 5, text=0.5)[0]
    estimate, difference = mean_interval(by_seed(x.mean(1)), by_seed(left_out(x))), judged(x, np.zeros((3, 8)))
    assert (
        estimate.ci95 == difference.ci95
        and estimate.documents_ci95 == difference.documents_ci95
        and estimate.n_blocks == 8
    )
    assert json.loads(json.dumps(estimate.as_dict())) == estimate.as_dict()


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_over_seeds_alone(seeds):
    rng = np.random.default_rng(10)
    b = rng.normal(5, 1, (CASES, seeds))
    a = b + 0.3 + rng.normal(0, 0.2, (CASES, seeds))
    estimate = [paired_difference(by_seed(x), by_seed(y)) for x, y in zip(a, b, strict=True)]
    share = covered([entry.ci95 for entry in estimate], 0.3)
    assert LOW <= share <= HIGH, f"covers {share:.1%} of {CASES} cases"
    own = covered([mean_interval(by_seed(y)).ci95 for y in b], 5)
    assert LOW <= own <= HIGH, f"the mean's covers {own:.1%}"
    percent = covered([entry.percent_ci95 or (-math.inf, math.inf) for entry in estimate], 6)
    assert LOW <= percent <= HIGH, f"the percentage's covers {percent:.1%}"


def test_coverage_over_seeds_and_text():
    # a mean; of the variance of the difference a fifth is text, three tenths are text that each seed sees in its own
    # way
    b = 5 + effects(CASES, 3, 8, 11, text=0.6)
    a = b + 1 + effects(CASES, 3, 8, 12, text=0.2, both=0.3)
    estimate = [judged(x, y) for x, y in zip(a, b, strict=True)]
    share = covered([entry.ci95 for entry in estimate], 1)
    assert LOW <= share <= HIGH, f"covers {share:.1%} of {CASES} cases"


def fvu_arms(cases, seeds, blocks, text, seed):
    """Squared errors of two arms [cases, S, B] and the variance of the text [cases, 1, B], so FVU = .2 and .25 in the
    long run."""
    variance = np.random.default_rng(seed).lognormal(0, 0.4, (cases, 1, blocks))
    b = variance * (0.2 + 0.01 * effects(cases, seeds, blocks, seed + 1, text=0.8))
    return b + variance * (0.05 + 0.01 * effects(cases, seeds, blocks, seed + 2, text, both=0.1)), b, variance


def fvu_difference(a, b, variance):
    full_a, full_b = (x.sum(1) / variance.sum() for x in (a, b))
    without_a, without_b = ((x.sum(1, keepdims=True) - x) / (variance.sum() - variance) for x in (a, b))
    return paired_difference(by_seed(full_a), by_seed(full_b), by_seed(without_a), by_seed(without_b))


def test_coverage_of_a_ratio_of_sums():
    estimate = [fvu_difference(*case) for case in zip(*fvu_arms(CASES, 3, 8, 0.3, 13), strict=True)]
    share = covered([entry.ci95 for entry in estimate], 0.05)
    assert LOW <= share <= HIGH, f"covers {share:.1%} of {CASES} cases"
    percent = covered([entry.percent_ci95 or (-math.inf, math.inf) for entry in estimate], 25)
    assert LOW <= percent <= HIGH, f"the percentage's covers {percent:.1%}"


def test_over_seeds_alone_text_error_would_be_missed():
    estimate = [fvu_difference(*case) for case in zip(*fvu_arms(CASES, 5, 8, 0.7, 14), strict=True)]
    assert covered([entry.ci95 for entry in estimate], 0.05) >= LOW
    alone = [paired_difference({s: a for s, a, _ in e.values}, {s: b for s, _, b in e.values}).ci95 for e in estimate]
    assert covered(alone, 0.05) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "text, both", [(0.02, 0), (0.1, 0), (0.5, 0), (0.9, 0), (1, 0), (0, 1), (0, 0.5), (0.5, 0.5), (0.3, 0.4)]
)
def test_never_too_sure_whatever_the_shares(seeds, text, both):
    # conservative where text and seeds matter alike: up to 99% with two seeds
    cases = 2000
    estimate = [
        mean_interval(by_seed(x.mean(1)), by_seed(left_out(x))).ci95 for x in effects(cases, seeds, 8, 15, text, both)
    ]
    share = covered(estimate, 0)
    assert 0.935 <= share <= 0.995, f"covers {share:.1%} of {cases} cases"


def test_coverage_over_documents_alone():
    # one seed: these very SAEs, other text
    estimate = [judged(x + 2, np.ones_like(x)) for x in effects(CASES, 1, 8, 16, text=1)]
    share = covered([entry.documents_ci95 for entry in estimate], 1)
    assert LOW <= share <= HIGH, f"covers {share:.1%} of {CASES} cases"


def test_p_values_under_the_null():
    alone = np.array(
        [
            paired_difference(by_seed(x), dict.fromkeys(range(4), 0.0)).p
            for x in np.random.default_rng(17).normal(size=(CASES, 4))
        ]
    )
    below = [float(np.mean(alone < level)) for level in (0.05, 0.2, 0.5)]
    assert below == pytest.approx([0.05, 0.2, 0.5], abs=0.045), f"below .05, .2, .5: {below}"
    crossed = np.array([judged(x, np.zeros_like(x)).p for x in effects(CASES, 3, 8, 18, text=0.2, both=0.2)])
    assert 0.02 <= np.mean(crossed < 0.05) <= 0.07, f"{np.mean(crossed < 0.05):.1%} of true nulls below .05"


def test_one_seed_gives_no_percentage_of_a_negative_baseline():
    estimate = paired_difference({0: 0.005}, {0: -0.007})
    assert estimate.percent is None and estimate.difference == pytest.approx(0.012)
    assert "no percentage, as the baseline is negative" in estimate.note
    assert paired_difference({0: 0.007}, {0: 0.014}).percent == pytest.approx(-50)
