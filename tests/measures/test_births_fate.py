"""What became of births: against a plain loop over tokens, and on births whose fate is known."""

import numpy as np
import pytest
from firing_tables import firings_of, random_on

from metasae.compare.tables import births_lines
from metasae.measures.cofiring import births as module
from metasae.measures.cofiring.births import fate_of_births


def birth(step, parent, child, promised=2.0, saved=1.0):
    return {"step": step, "parent": parent, "child": child, "promised": promised, "saved": saved}


def slow_fate(records, number, on):
    """The page's definitions for one birth, token by token and record by record."""
    record = records[number]
    i, j = record["parent"], record["child"]
    on_i = on_j = on_both = 0
    for row in on.tolist():
        on_i, on_j, on_both = on_i + row[i], on_j + row[j], on_both + (row[i] and row[j])
    after = records[number + 1 :]
    taken = {latent: [later["step"] for later in after if later["child"] == latent] for latent in (i, j)}
    gone = taken[i] or taken[j]
    return {
        "rate": on_j / len(on),
        "parent_rate": on_i / len(on),
        "with_parent": None if gone or not on_i else on_both / on_i,
        "alive": on_j > 0 and not taken[j],
        "replaced_at": taken[j][0] if taken[j] else None,
    }


@pytest.mark.parametrize("tile", [3, 256])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_plain_loop(seed, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    rng, on = np.random.default_rng(seed), random_on(90, 12, seed)
    records = []
    for step in (10, 20, 30, 40):
        latents = rng.permutation(12)
        records += [birth(step, int(latents[2 * pair]), int(latents[2 * pair + 1])) for pair in range(3)]
    result = fate_of_births({"stopped_at": 40, "records": records}, firings_of(on))
    wanted = [slow_fate(records, number, on) for number in range(len(records))]
    assert result["fates"] == wanted
    alive = [fate for fate in wanted if fate["alive"]]
    assert result["made"] == 12 and result["alive"] == len(alive) and result["stopped_at"] == 40
    assert result["replaced"] == sum(fate["replaced_at"] is not None for fate in wanted)
    assert result["median_rate"] == (np.median([fate["rate"] for fate in alive]) if alive else None)


def test_births_whose_fate_is_known():
    on = np.zeros((20, 8), bool)
    # 0 -> 0 and 1, which fires on a quarter of what 0 fires on; 2 -> 2 and 3, which is dead; 4 -> 4 and 5, whose place
    # is taken by the birth of 6
    on[:8, 0], on[:2, 1], on[10:, 2], on[:3, 4], on[:4, 5], on[:, 6] = True, True, True, True, True, True
    records = [birth(10, 0, 1, saved=2.0), birth(10, 2, 3, saved=-1.0), birth(10, 4, 5), birth(20, 6, 5, saved=None)]
    result = fate_of_births({"stopped_at": None, "records": records}, firings_of(on))
    assert [fate["with_parent"] for fate in result["fates"]] == [0.25, 0.0, None, 0.2]
    assert [fate["alive"] for fate in result["fates"]] == [True, False, False, True]
    assert [fate["replaced_at"] for fate in result["fates"]] == [None, None, 20, None]
    # the last birth was followed by no window, so it has no part in the median
    assert result["median_saved"] == 0.5 and result["alive"] == 2 and result["replaced"] == 1
    assert result["median_rate"] == pytest.approx(0.15) and result["median_with_parent"] == pytest.approx(0.225)


def test_no_births_have_no_medians_and_are_a_line():
    result = fate_of_births({"stopped_at": None, "records": []}, firings_of(np.ones((4, 2), bool)))
    assert result["made"] == 0 and result["fates"] == []
    assert result["median_saved"] is None and result["median_rate"] is None
    other = {"made": 72, "alive": 70, "median_saved": 0.614, "stopped_at": 3516}
    assert births_lines({"births": {"atomic": {"0": result, "2": other}}}) == [
        "Births of atomic (seeds 0, 2): 0, 72 made, 0, 70 newborns alive at the end; median of error saved over error "
        "promised: -, 61%; stopped by themselves at step: never, 3,516."
    ]
    assert births_lines({}) == []
