"""Groups of solo SAEs presented as solo and joint, and what is counted of their comparisons, on made-up arms."""

import numpy as np
import pytest

from metasae.arms.folder import RunFolder
from metasae.compare.compare import compare
from metasae.errors import UserError
from runs import write_arm
from tools.null_claims import SIZES, Across, all_claims, as_table, by_row, claims_of, draw_groups, present, wilson

RECOVERED = "spikes.recovery_f1"


def twelve(run, recovered, fvu=None):
    for seed in range(12):
        write_arm(
            run, "solo", seed, spikes__recovery_f1=recovered[seed], fidelity__fvu=0.2 if fvu is None else fvu[seed]
        )
    return RunFolder(run).arms()


def test_groups_are_disjoint_and_of_both_sizes(tmp_path):
    arms = twelve(tmp_path, [0.4] * 12)
    groups = list(draw_groups(arms, 40))
    assert [len(one) for one, _ in groups[:4]] == [len(other) for _, other in groups[:4]] == [*SIZES, *SIZES]
    assert all(len({arm.seed for arm in one + other}) == 2 * len(one) for one, other in groups)
    assert {arm.seed for one, _ in groups for arm in one} == set(range(12))
    assert groups == list(draw_groups(arms, 40)) != list(draw_groups(arms, 40, draw=1))
    with pytest.raises(UserError, match="9 measured solo SAEs; two groups of 5 take 10"):
        next(draw_groups(arms[:9], 1))


def test_a_difference_between_the_groups_is_counted(tmp_path):
    recovered = np.array([0.4, 0.41, 0.39, 0.4] + [0.5, 0.52, 0.49, 0.51] + [0.4] * 4)
    arms = twelve(tmp_path / "run", recovered)
    folder = tmp_path / "presented"
    shown = present(tmp_path / "run", (tuple(arms[:4]), tuple(arms[4:8])), folder)
    assert [arm.label for arm in shown] == [f"{name}-s{seed}" for name in ("solo", "joint") for seed in range(4)]
    Across().bring_up_to_date(folder, shown)
    claims = claims_of(compare(folder))
    # without firings r is not known, so the comparison itself names none
    assert (claims.enough, claims.direction, claims.passed) == (None, "", "more")
    assert {RECOVERED} == claims.outside == claims.established == claims.named
    assert "fidelity.fvu" in claims.known
    lines = as_table([claims, claims]).splitlines()
    assert lines[0].startswith("| of 2 comparisons")
    assert "| name a direction | 0 | 0.0% | 0.0 to 65.8% |" in lines
    assert "| name a direction, the gate taken as passed | 2 | 100.0% | 34.2 to 100.0% |" in lines
    row = next(line for line in by_row([claims], tmp_path / "run").splitlines() if "spike-ins recovered" in line)
    assert row.startswith("| spike-ins recovered, F1 | truth | 0.435, 0.052 | 1 | 100.0%") and row.endswith("| 1 |")


def test_equals_are_seldom_told_apart(tmp_path):
    generator = np.random.default_rng(0)
    twelve(tmp_path, generator.normal(0.4, 0.02, 12), generator.normal(0.2, 0.01, 12))
    claims = all_claims(tmp_path, 20)
    assert len(claims) == 20 and {RECOVERED, "fidelity.fvu"} <= claims[0].known
    assert sum(bool(one.passed) for one in claims) <= 3
    assert claims == all_claims(tmp_path, 20)


def test_wilson():
    assert wilson(0, 200) == pytest.approx((0.0, 0.01885), abs=1e-4)
    assert wilson(10, 200) == pytest.approx((0.0274, 0.0896), abs=1e-4)
