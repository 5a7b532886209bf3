import io
import json
import math

import pytest
from rich.console import Console

from metasae.compare.catalogue import CATALOGUE, Pair, by_pair, change
from metasae.compare.compare import compare
from metasae.compare.tables import summary_table
from metasae.errors import UserError
from metasae.intervals.statistics import paired_difference
from metasae.report.report import as_latex
from runs import write_arm

PHI, NEAREST, FVU = "cooccurrence.mean_abs_phi", "cooccurrence.nearest_phi", "fidelity.fvu"
RECOVERED, APART = "spikes.recovery_f1", "spikes.told_apart"


def three_arms(
    run,
    phi=(0.0028, 0.0027, 0.0029),
    recovered=(0.45, 0.451, 0.449),
    apart=(0.1, 0.101, 0.099),
    fvu=(0.21, 0.211, 0.209),
    solo_phi=(0.003, 0.0029, 0.0031),
    r=0.7,
):
    """Joint against solo and control over the seeds given; r: of solo's seeds, None leaves it unknown."""
    for seed in range(len(phi)):
        write_arm(run, "solo", seed, cooccurrence__mean_abs_phi=solo_phi[seed])
        write_arm(run, "control", seed, cooccurrence__mean_abs_phi=solo_phi[seed])
        write_arm(
            run,
            "joint",
            seed,
            cooccurrence__mean_abs_phi=phi[seed],
            spikes__recovery_f1=recovered[seed],
            spikes__told_apart=apart[seed],
            fidelity__fvu=fvu[seed],
        )
    if r is not None:
        across(run, {"solo-s0": {"seeds": {"mean_r": r, "with": "solo-s1"}}})


def across(run, parts):
    (run / "across.json").write_text(json.dumps(parts))


def told(run) -> dict[str, str]:
    """kind -> what the verdict says of it."""
    return {line["kind"]: line["text"] for line in compare(run)["verdict"][:4]}


def test_a_pair_is_written_and_read():
    pair = Pair("joint", "solo")
    assert str(pair) == "joint vs solo" and list(by_pair({"joint vs solo": {}})) == [pair]
    assert by_pair({"joint vs solo": {}}) == {pair: {}}


def test_pairs_and_files(tmp_path):
    three_arms(tmp_path)
    comparison = compare(tmp_path)
    assert list(comparison["arms"]) == ["solo", "control", "joint"] and list(comparison["pairs"]) == [
        "joint vs solo",
        "control vs solo",
    ]
    entry = comparison["pairs"]["joint vs solo"][PHI]
    assert {"a", "b", "difference", "percent", "ci95", "n_seeds"} <= set(entry)
    assert (
        entry["a"] == pytest.approx(0.0028)
        and entry["b"] == pytest.approx(0.003)
        and entry["percent"] == pytest.approx(-100 / 15)
    )
    assert entry["ci95"] == pytest.approx([-0.0002, -0.0002]) and entry["n_seeds"] == 3
    assert entry["values"][1] == {"seed": 1, "a": 0.0027, "b": 0.0029}
    assert json.loads((tmp_path / "compare.json").read_text()) == comparison
    markdown = (tmp_path / "compare.md").read_text()
    for words in (
        "## Fidelity: joint vs solo",
        "## Co-occurrence: control vs solo",
        "## Decomposability",
        "5,000 evaluation tokens",
        "realised L0 8.00",
    ):
        assert words in markdown
    assert "| mean \\|phi\\| |  | 0.003000 | 0.002800 | -6.7%" in markdown


def test_the_verdict_has_a_sentence_and_three_lines_for_a_pair(tmp_path):
    three_arms(tmp_path)
    verdict = compare(tmp_path)["verdict"]
    kinds = [line["kind"] for line in verdict]
    assert kinds == ["trained", "truth", "description", "fidelity", "fidelity"]
    assert verdict[0]["text"].startswith("Trained enough: r with another seed 0.70 (0.4 or more)")
    assert "Joint against solo (3 seeds, 5,000 held-out tokens, realised L0 8.00 and 8.00)" in verdict[1]["text"]
    assert "equals solo" not in verdict[3]["text"] and "equals solo exactly in every measure" in verdict[4]["text"]


def test_truth_alone_names_a_direction(tmp_path):
    three_arms(tmp_path)
    lines = told(tmp_path)
    assert "its latents are more atomic by spike-ins recovered, F1" in lines["truth"]
    assert "clearly better: spike-ins recovered, F1 +12.5%" in lines["truth"]
    assert "mean |phi| -6.7%" in lines["description"] and "atomic" not in lines["description"]
    assert "clearly worse: FVU +5.0%" in lines["fidelity"]


def test_the_other_way_is_said_as_plainly(tmp_path):
    three_arms(tmp_path, recovered=(0.36, 0.361, 0.359), fvu=(0.19, 0.191, 0.189))
    lines = told(tmp_path)
    assert "its latents are less atomic" in lines["truth"]
    assert "clearly worse: spike-ins recovered" in lines["truth"] and "clearly better: FVU -5.0%" in lines["fidelity"]


def test_known_features_that_disagree_name_no_direction(tmp_path):
    three_arms(tmp_path, apart=(0.04, 0.041, 0.039))
    lines = told(tmp_path)
    assert "measures of known features disagree" in lines["truth"] and "more atomic" not in lines["truth"]


def test_nothing_told_apart_says_what_could_have_been(tmp_path):
    three_arms(tmp_path, recovered=(0.38, 0.41, 0.42), fvu=(0.21, 0.19, 0.2))
    lines = told(tmp_path)
    assert "there is no clear difference in atomicity" in lines["truth"]
    assert "no clear difference: spike-ins recovered, F1 +0.83%" in lines["truth"]
    assert "a change would be clear from " in lines["truth"] and "no clear difference: FVU" in lines["fidelity"]
    three_arms(tmp_path / "wide", apart=(0.0, 1.0, 0.2))
    assert "no change could be clear with 3 seeds" in told(tmp_path / "wide")["truth"]


def test_what_is_too_small_to_matter_names_no_direction(tmp_path):
    three_arms(tmp_path, recovered=(0.40200, 0.40201, 0.40199))
    lines = told(tmp_path)
    assert "clear, but too small to matter: spike-ins recovered, F1 +0.50%" in lines["truth"]
    assert "there is no clear difference in atomicity" in lines["truth"]


@pytest.mark.parametrize(
    "r, opening", [(0.31, "Not trained enough: r with another seed 0.31"), (None, "Not known if trained enough")]
)
def test_arms_that_are_not_trained_enough_have_no_direction(tmp_path, r, opening):
    three_arms(tmp_path, r=r)
    comparison = compare(tmp_path)
    verdict = comparison["verdict"]
    assert verdict[0]["text"].startswith(opening) and comparison["trained"]["enough"] is (None if r is None else False)
    assert "more atomic latents" not in verdict[1]["text"].split(":")[2] and "clearly" not in verdict[1]["text"]
    assert "spike-ins recovered, F1 +12.5%" in verdict[1]["text"]
    # tables say as little
    assert "clearly better" not in (tmp_path / "compare.md").read_text().split("## Fidelity")[0]


def test_a_recovery_far_below_its_ceiling_or_a_falling_fvu_is_not_trained_enough(tmp_path):
    three_arms(tmp_path / "deaf")
    for path in (tmp_path / "deaf" / "arms").glob("solo-s*/measures.json"):
        path.write_text(path.read_text().replace('"recovery_f1": 0.4', '"recovery_f1": 0.2'))
    trained = compare(tmp_path / "deaf")["trained"]
    assert trained["enough"] is False and trained["share"] == pytest.approx(0.2 / 0.75)
    three_arms(tmp_path / "falls")
    rows = [{"step": step, "fvu": 0.2 - 0.00005 * step} for step in range(10, 1001, 10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "falls" / "arms" / "joint-s1" / "metrics.jsonl").write_text(text)
    trained = compare(tmp_path / "falls")["trained"]
    # the tenths' means are at steps 855 and 955
    assert trained["enough"] is False and trained["fall"] == pytest.approx(0.005 / 0.15725)
    # an arm whose margin falls in these steps has an FVU that falls with it
    (tmp_path / "falls" / "arms" / "joint-s1").rename(tmp_path / "falls" / "arms" / "atomic-s1")
    (tmp_path / "falls" / "arms" / "joint-s0").rename(tmp_path / "falls" / "arms" / "atomic-s0")
    assert compare(tmp_path / "falls")["trained"]["fall"] is None


def test_one_seed_establishes_nothing(tmp_path):
    three_arms(tmp_path, phi=(0.0028,), fvu=(0.21,), r=None)
    comparison = compare(tmp_path)
    entry = comparison["pairs"]["joint vs solo"][PHI]
    assert entry["ci95"] is None and entry["note"] == "1 seed, no interval"
    assert "no direction is named, as one seed gives no interval" in comparison["verdict"][1]["text"]
    assert "spike-ins recovered, F1 +12.5%" in comparison["verdict"][1]["text"]
    assert "1 seed, no interval" in (tmp_path / "compare.md").read_text()


def test_all_that_is_put_into_words_is_one_family(tmp_path):
    three_arms(tmp_path)
    entries = compare(tmp_path)["pairs"]["joint vs solo"]
    adjusted = {key for key, entry in entries.items() if entry["p_holm"] is not None}
    assert adjusted == {q.key for q in CATALOGUE if q.in_words and entries.get(q.key, {}).get("p") is not None}
    assert RECOVERED in adjusted and FVU in adjusted and PHI not in adjusted
    assert all(entries[key]["smallest"] > 0 for key in (RECOVERED, APART, FVU))


def test_a_control_that_differs_is_called_out(tmp_path):
    three_arms(tmp_path)
    path = tmp_path / "arms" / "control-s1" / "measures.json"
    path.write_text(path.read_text().replace('"fvu": 0.2', '"fvu": 0.26'))
    control = compare(tmp_path)["verdict"][-1]["text"]
    assert "Control (lambda2 = 0) differs from solo, which it must not. The largest difference: FVU +10.0%" in control


def test_other_arms_unpaired_seeds_and_unmeasured_arms(tmp_path):
    three_arms(tmp_path)
    write_arm(tmp_path, "sequential", 1)
    (tmp_path / "arms" / "joint-s7").mkdir()
    (tmp_path / "arms" / "notes").mkdir()
    comparison = compare(tmp_path)
    assert comparison["missing"] == ["joint-s7"]
    entry = comparison["pairs"]["sequential vs solo"][PHI]
    assert entry["n_seeds"] == 1 and "no pair for seed 0, 2" in entry["note"]
    assert "Not measured yet: joint-s7." in (tmp_path / "compare.md").read_text()


def test_only_solo(tmp_path):
    write_arm(tmp_path, "solo", 0)
    comparison = compare(tmp_path)
    assert comparison["pairs"] == {} and "nothing to compare yet" in comparison["verdict"][1]["text"]
    assert summary_table(comparison).row_count > 5


def test_measures_one_side_lacks_are_left_out(tmp_path):
    write_arm(tmp_path, "solo", 0, cooccurrence__nearest_phi=None)
    write_arm(tmp_path, "joint", 0)
    assert NEAREST not in compare(tmp_path)["pairs"]["joint vs solo"]


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        compare(tmp_path)
    (tmp_path / "arms" / "joint-s0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no arm in .* is measured yet"):
        compare(tmp_path)
    write_arm(tmp_path, "solo", 0)
    for content, words in (("[]", "must hold a JSON object"), ("{}", "holds no measures")):
        (tmp_path / "arms" / "joint-s0" / "measures.json").write_text(content)
        with pytest.raises(UserError, match=words):
            compare(tmp_path)
    assert not (tmp_path / "compare.json").exists()


def test_arms_judged_on_different_tokens_are_refused(tmp_path):
    write_arm(tmp_path, "solo", 0)
    write_arm(tmp_path, "joint", 0, conditions__n_tokens=4000)
    with pytest.raises(UserError, match="measured differently \\(n_tokens: 5000 and 4000\\)"):
        compare(tmp_path)


def test_a_number_that_both_arms_lack_for_a_seed_is_named(tmp_path):
    for seed, phi in enumerate((0.0028, None, 0.0029)):
        write_arm(tmp_path, "solo", seed, cooccurrence__mean_abs_phi=phi and 0.003)
        write_arm(tmp_path, "joint", seed, cooccurrence__mean_abs_phi=phi)
    comparison = compare(tmp_path)
    entry = comparison["pairs"]["joint vs solo"][PHI]
    assert entry["n_seeds"] == 2 and entry["note"] == "no pair for seed 1"
    assert comparison["arms"]["joint"]["intervals"][PHI]["note"] == "no value for seed 1" and set(
        comparison["arms"]["joint"]["values"][PHI]
    ) == {"0", "2"}


def test_numbers_that_share_seeds_have_the_wider_interval(tmp_path):
    three_arms(tmp_path)
    # both arms' splits are of solo's SAE and one of the next seed
    others = {arm: [f"{arm}-s{(seed + 1) % 3}" for seed in range(3)] for arm in ("solo", "joint")}
    stored = {
        f"{arm}-s{seed}": {
            "seeds": {"mean_r": 0.5 + 0.01 * seed - joint * (0.1 + 0.01 * seed**2), "with": f"{arm}-s{(seed + 1) % 3}"},
            "splits": {
                "mean_score": 0.1 + 0.01 * seed + joint * 0.01 * seed**2,
                "with": others[arm][seed],
                "n_kept": 0,
            },
        }
        for joint, arm in enumerate(others)
        for seed in range(3)
    }
    across(tmp_path, stored)
    comparison = compare(tmp_path)
    for key in ("seeds.mean_r", "splits.mean_score"):
        entry = comparison["pairs"]["joint vs solo"][key]
        alone = paired_difference(*({value["seed"]: value[side] for value in entry["values"]} for side in "ab"))
        assert (
            entry["n_seeds"] == 3
            and entry["note"] == ""
            and entry["se_seeds"] == pytest.approx(2 * alone.se_seeds)
            and alone.se_seeds > 0
        )
    spread = {arm: comparison["arms"][arm]["intervals"]["splits.mean_score"]["se_seeds"] for arm in ("joint", "solo")}
    assert spread["joint"] == pytest.approx(2 * math.sqrt(0.0028 / 9))
    assert spread["solo"] == pytest.approx(2 * 0.01 / math.sqrt(3))


def test_two_seeds_make_one_pair_and_files_that_do_not_name_it_are_said(tmp_path):
    three_arms(tmp_path / "two", phi=(0.0028, 0.0027))
    across(
        tmp_path / "two", {f"{arm}-s0": {"seeds": {"mean_r": 0.5, "with": f"{arm}-s1"}} for arm in ("solo", "joint")}
    )
    entry = compare(tmp_path / "two")["pairs"]["joint vs solo"]["seeds.mean_r"]
    assert entry["ci95"] is None and entry["note"] == "1 pair of seeds, no interval"
    three_arms(tmp_path / "old")
    across(
        tmp_path / "old",
        {f"{arm}-s{seed}": {"seeds": {"mean_r": 0.5 + seed / 10}} for arm in ("solo", "joint") for seed in range(3)},
    )
    entry = compare(tmp_path / "old")["pairs"]["joint vs solo"]["seeds.mean_r"]
    assert (
        entry["n_seeds"] == 3
        and entry["ci95"] is None
        and entry["difference"] == 0
        and "not recorded which seeds each number takes" in entry["note"]
    )
    assert "r with another seed" in (tmp_path / "old" / "compare.md").read_text()


def test_side_effects_are_of_the_two_saes_compared(tmp_path):
    numbers = {"solo": 0.9, "joint": 0.5, "mine": 0.7}
    parts = {}
    for arm in numbers:
        for seed in (0, 1):
            write_arm(tmp_path, arm, seed, conditions__sae=f"{arm}{seed}")
            if arm != "solo":
                entry = {
                    "with": f"solo-s{seed}",
                    "of": [f"{arm}{seed}", f"solo{seed}"],
                    "spill_a": numbers[arm],
                    "spill_b": numbers["solo"],
                }
                parts[f"{arm}-s{seed}"] = {"side_effects": entry}
    across(tmp_path, parts)
    pairs = compare(tmp_path)["pairs"]
    spills = {name: pair["side_effects.spill"] for name, pair in pairs.items()}
    assert {name: (spill["a"], spill["b"]) for name, spill in spills.items()} == {
        "joint vs solo": (0.5, 0.9),
        "mine vs solo": (0.7, 0.9),
    }
    # against another baseline nothing was worked out
    assert all("side_effects.spill" not in pair for pair in compare(tmp_path, "joint")["pairs"].values())
    # one arm trained anew since: its number is of another SAE
    path = tmp_path / "arms" / "joint-s1" / "measures.json"
    path.write_text(path.read_text().replace('"joint1"', '"anew"'))
    entry = compare(tmp_path)["pairs"]["joint vs solo"]["side_effects.spill"]
    assert entry["n_seeds"] == 1 and entry["note"] == "1 seed, no interval; no pair for seed 1"


def test_a_change_that_does_not_survive_holm_is_not_named(tmp_path):
    three_arms(tmp_path, recovered=(0.405, 0.411, 0.417))
    comparison = compare(tmp_path)
    entry = comparison["pairs"]["joint vs solo"][RECOVERED]
    assert entry["p"] < 0.1 and entry["p_holm"] > 0.05
    assert "no clear difference: spike-ins recovered" in comparison["verdict"][1]["text"]


def test_latex_prints_bold_what_holm_was_applied_to(tmp_path):
    three_arms(tmp_path)
    comparison = compare(tmp_path)
    described = comparison["pairs"]["joint vs solo"][PHI]
    assert described["p_holm"] is None and described["p"] < 0.001
    text = as_latex(comparison)
    bold = [line.split(" & ")[0] for line in text.splitlines() if "textbf" in line]
    assert bold == ["spike-ins recovered, F1", "FVU"] and r"mean \textbar{}phi\textbar{} &" in text


def test_summary_table(tmp_path):
    three_arms(tmp_path / "r")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(compare(tmp_path / "r")))
    text = console.export_text()
    for words in (
        "mean |phi|",
        "-6.7% [-7.3, -6.2]",
        "solo 3, control 3, joint 3",
        "joint vs solo",
        "5,000 held-out tokens",
        "FVU",
    ):
        assert words in text


@pytest.mark.parametrize("percent, ci, text", [
    (-6.66, [-8.21, -5.1], "-6.7% [-8.2, -5.1]"),
    (0.0312, None, "+0.03%"),
    (0.00002, None, "+0.00002%"),
    (250.0, [-1200.4, 3.0], "+250% [-1200, +3.0]"),
])  # fmt: skip
def test_how_a_change_is_written(percent, ci, text):
    entry = {
        "difference": 1.0,
        "percent": percent,
        "percent_ci95": ci,
        "ci95": ci,
        "values": [{"seed": 0, "a": 2.0, "b": 1.0}],
    }
    assert change(CATALOGUE[0], entry) == text
    excess = next(q for q in CATALOGUE if not q.relative)
    assert change(excess, {**entry, "difference": 0.0123, "ci95": [-0.01, 0.2]}) == "+1.2 pp [-1.0, +20.0]"
    assert change(CATALOGUE[0], {**entry, "percent": None, "ci95": [-0.01, 0.2]}) == "+1 [-0.01, +0.2]"
    assert change(CATALOGUE[0], {**entry, "values": [{"seed": 0, "a": 2.0, "b": 2.0}]}) == "0"


def test_the_catalogue_names_each_measure_once():
    assert len({q.key for q in CATALOGUE}) == len(CATALOGUE) == len({q.label for q in CATALOGUE})
    assert all(q.better is not None and q.main and q.kind != "description" for q in CATALOGUE if q.in_words)
    assert all(q.meaning and not q.meaning.endswith(".") for q in CATALOGUE)


def test_blocks_of_documents_widen_the_interval(tmp_path):
    for seed, value in enumerate((0.00280, 0.00281, 0.00279)):
        for arm, phi in (("solo", 0.003), ("joint", value)):
            folder = write_arm(tmp_path, arm, seed, cooccurrence__mean_abs_phi=phi)
            measures = json.loads((folder / "measures.json").read_text())
            without = [phi + (block - 3.5) * 2e-5 * (arm == "joint") for block in range(8)]
            measures["cooccurrence"]["leave_one_out"] = {"mean_abs_phi": without}
            (folder / "measures.json").write_text(json.dumps(measures))
    comparison = compare(tmp_path)
    entry = comparison["pairs"]["joint vs solo"]["cooccurrence.mean_abs_phi"]
    assert entry["n_blocks"] == 8 and entry["se_documents"] > 3 * entry["se_seeds"] > 0
    assert comparison["arms"]["joint"]["intervals"]["cooccurrence.mean_abs_phi"]["ci95"][0] < 0.0028
    # of one arm alone, the difference is over seeds only
    measures = json.loads((folder.parent / "solo-s0" / "measures.json").read_text())
    for seed in range(3):
        without = {**measures, "cooccurrence": {**measures["cooccurrence"], "leave_one_out": {}}}
        (folder.parent / f"solo-s{seed}" / "measures.json").write_text(json.dumps(without))
    assert compare(tmp_path)["pairs"]["joint vs solo"]["cooccurrence.mean_abs_phi"]["n_blocks"] == 0


def test_arms_of_other_l0_have_no_direction(tmp_path):
    three_arms(tmp_path)
    for path in (tmp_path / "arms").glob("joint-s*/measures.json"):
        path.write_text(path.read_text().replace('"l0": 8.0, "dead"', '"l0": 7.0, "dead"'))
    assert "no direction is named, as the realised L0 differ" in told(tmp_path)["truth"]


def test_an_interval_without_text_error_says_so(tmp_path):
    three_arms(tmp_path)
    assert "spike-ins recovered, F1 +12.5% [+11.9, +13.1] (interval over seeds alone)" in told(tmp_path)["truth"]
    assert "| nearest decoder cosine |  | 0.5000 | 0.5000 | 0 | 3 |  |" in (tmp_path / "compare.md").read_text()
