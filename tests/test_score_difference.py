import json

import numpy as np
import pytest

from metasae.interp.differences import BINS, score_differences
from metasae.report import score_figures

# (solo's latent, joint's latent); solo's latent 3 lacks windows
PAIRS = [[0, 0], [2, 1], [1, 999], [2, 3], [3, 2]]


def mean(estimate, half=0.02, n=4):
    return {
        "estimate": estimate,
        "ci95": None if half is None else [estimate - half, estimate + 2 * half],
        "n_values": n,
    }


def write(run, values, parts=("random", "same_token"), pairs=False):
    """values: SAE -> its own latents' scores, None where it lacks windows.

    Each SAE has a partner, which is no latent of its own sample.
    """
    arms = {}
    for name, numbers in values.items():
        known = [number for number in numbers if number is not None]
        entry = mean(float(np.mean(known)) if known else None, None if not known else 0.02, len(known))
        scores = {"embedding": {"chance": 0.5, "parts": dict.fromkeys(parts, entry), "judge": "an encoder"}}
        arm, seed = name.split("-s")
        interp = {
            "conditions": {"of": {"sae": name}, "matched_with": {"sae": f"solo-s{seed}"} if arm == "joint" else None},
            "scores": scores,
        }
        arms[name] = {"interp": interp}
        latents = {
            str(i): {"own": True, "token": i, "embedding": dict.fromkeys(parts, number)}
            for i, number in enumerate(numbers)
        }
        latents["999"] = {"own": False, "token": 0, "embedding": dict.fromkeys(parts, 0.99)}
        folder = run / "arms" / name
        folder.mkdir(parents=True)
        (folder / "interp.json").write_text(
            json.dumps({**interp, "latents": latents, "pairs": PAIRS if pairs and arm == "joint" else []})
        )
    over = {"difference": 0.1, "ci95": None, "n_seeds": 1}
    by_seed = {
        "0": {"difference": 0.05, "ci95": [0.01, 0.09], "n_values": 7},
        "1": {"difference": None, "ci95": None, "n_values": 0},
    }
    pairs = {
        "joint vs solo": {
            "embedding": {part: {"unpaired": over, "matched": over, "matched_by_seed": by_seed} for part in parts}
        }
    }
    (run / "interp.json").write_text(json.dumps({"baseline": "solo", "arms": arms, "pairs": pairs}))
    return score_differences(run)


SCORED = {"solo-s0": [0.1, 0.1, 0.9, None], "solo-s1": [0.1, 0.5, 0.5, 0.5], "joint-s0": [0.9, 0.9, 0.9, 0.1]}


def test_shares_are_of_own_latents_and_subtracted_within_a_seed(tmp_path):
    (entry,) = write(tmp_path, SCORED)
    assert (entry["score"], entry["part"], entry["judge"], entry["chance"]) == (
        "embedding",
        "same_token",
        "an encoder",
        0.5,
    )
    assert entry["n"] == {
        "solo-s0": 3,
        "solo-s1": 4,
        "joint-s0": 4,
    }  # the latent without windows is left out, and so are partners
    assert entry["edges"][0] == 0.1 and entry["edges"][-1] == 0.9 and len(entry["edges"]) == BINS + 1
    # by hand: in the lowest bin 1/4 of joint's against 2/3 of solo's, in the highest 3/4 against 1/3
    change = entry["changes"]["joint"]
    assert change[0] == pytest.approx(1 / 4 - 2 / 3) and change[-1] == pytest.approx(3 / 4 - 1 / 3)
    assert sum(change) == pytest.approx(0) and np.count_nonzero(change) == 2
    (null,) = entry["null"]
    assert null["of"] == ["solo-s1", "solo-s0"] or null["of"] == ["solo-s0", "solo-s1"]
    assert sum(null["change"]) == pytest.approx(0) and max(null["change"]) > 0


def test_the_rows_have_what_is_known_and_the_baselines_own_difference(tmp_path):
    (entry,) = write(tmp_path, SCORED)
    kinds = [(row["kind"], row["n"], row["unit"]) for row in entry["rows"]]
    assert kinds == [("seeds", 1, "seeds"), ("seeds", 1, "seeds"), ("pairs", 7, "pairs"), ("null", 7, "latents")]
    null = entry["rows"][-1]
    assert null["what"].startswith("solo-s1 − solo-s0") and null["difference"] == pytest.approx(0.4 - 1.1 / 3)
    # intervals of -0.02 and +0.04 about each mean: below 0.02 and 0.04 from the other's upper end, above the reverse
    reach = np.hypot(0.02, 0.04)
    assert null["ci95"] == pytest.approx([null["difference"] - reach, null["difference"] + reach])


def test_within_pairs_every_matched_latent_has_a_difference_of_its_own(tmp_path):
    (entry,) = write(tmp_path, SCORED, pairs=True)
    pairs = entry["paired"]["joint"]
    # by hand: .9 - .1, .9 - .9, .99 - .1, .1 - .9; the fifth pair has a side without windows
    assert (pairs["n"], pairs["higher"], pairs["tied"], pairs["lower"]) == (4, 2, 1, 1)
    edges, share = pairs["edges"], np.array(pairs["share"])
    assert edges[0] == pytest.approx(-0.89) and edges[-1] == pytest.approx(0.89) and len(edges) == BINS + 2
    assert share[-1] == 0.25 and share[BINS // 2] == 0.25 and share.sum() == pytest.approx(1)
    np.testing.assert_allclose(pairs["mirrored"], share[::-1])
    drawn = score_figures.score_difference([entry])
    assert (
        len(drawn.axes) == 3
        and drawn.axes[1].get_title(loc="left") == "joint higher in 50.0% of 4 pairs, tied in 25.0%"
    )
    # matched with other weights of solo than those scored now: no pairs, and as many panels as there is to show
    path = tmp_path / "arms" / "joint-s0" / "interp.json"
    scores = json.loads(path.read_text())
    scores["conditions"]["matched_with"] = {"sae": "an earlier solo"}
    path.write_text(json.dumps(scores))
    (entry,) = score_differences(tmp_path)
    assert entry["paired"] == {} and len(score_figures.score_difference([entry]).axes) == 2


def test_one_value_for_all_and_sae_without_any(tmp_path):
    (entry,) = write(tmp_path, {"solo-s0": [0.5, 0.5], "joint-s0": [0.5], "joint-s1": [None]})
    assert entry["n"] == {"solo-s0": 2, "joint-s0": 1} and entry["changes"]["joint"][0] == 0 and entry["null"] == []


def test_a_run_without_scores_has_none(tmp_path):
    assert score_differences(tmp_path) == []
    assert write(tmp_path, {"solo-s0": [None]}) == []
    assert score_figures.score_difference([]) is None


def test_the_figure_names_score_judge_and_count(tmp_path):
    differences = write(tmp_path, SCORED)
    drawn = score_figures.score_difference(differences + differences)
    words = [axes.get_xlabel() + axes.get_title(loc="left") for axes in drawn.axes]
    assert (
        len(drawn.axes) == 4
        and "embedding, same token silent" in words[0]
        and "3 to 4 latents per SAE" in words[0]
        and "an encoder" in words[0]
    )
    assert drawn.axes[0].get_legend() is not None
    assert score_figures.score_difference([{**differences[0], "changes": {}}]) is None
