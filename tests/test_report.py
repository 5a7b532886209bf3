import html.parser
import json
import re

import numpy as np
import pytest

from metasae.compare.catalogue import CATALOGUE
from metasae.compare.compare import compare, read_measured
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.report import figures
from metasae.report.report import between, escaped, row_mean, without_equal_arms, write_report
from runs import write_arm


def whole_run(run, seeds=2):
    run.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        write_arm(run, "solo", seed, fidelity__fvu=0.2 + 0.01 * seed)
        write_arm(run, "control", seed, fidelity__fvu=0.2 + 0.01 * seed)
        write_arm(run, "joint", seed, fidelity__fvu=0.22 + 0.012 * seed)
    Recipe.load({"description": "a <b>bold</b> & risky one"}).save(run / "recipe.toml")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run folder with its report. Not to be changed."""
    folder = tmp_path_factory.mktemp("reported") / "r"
    whole_run(folder)
    write_report(folder, compare(folder))
    return folder


def test_figures_and_captions_name_the_baseline_that_was_asked_for(tmp_path):
    whole_run(tmp_path / "r")
    comparison = compare(tmp_path / "r", "joint")
    assert "change against joint" in figures.relative_differences(comparison["pairs"], "joint").axes[-1].get_xlabel()
    measured, _ = read_measured(tmp_path / "r")
    (axes,) = figures.phi_difference(measured, "joint").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["solo - joint", "control - joint"]
    page = write_report(tmp_path / "r", comparison).read_text()
    assert (
        "What changes against joint" in page and "in percent of the mean of joint" in page and "{baseline}" not in page
    )


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_file_that_needs_nothing_else(reported):
    path = reported / "report.html"
    text = path.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = {tag for tag, _ in tags.tags}
    assert not names & {"script", "link", "iframe", "object"} and "//" not in re.sub(
        r"data:image/png;base64,[\w+/=]+", "", text
    )
    images = [attributes["src"] for tag, attributes in tags.tags if tag == "img"]
    assert len(images) == 4 and all(source.startswith("data:image/png;base64,") for source in images)
    drawn = {f"{name}.{kind}" for name in ("differences", "phi", "rates", "training") for kind in ("png", "svg")}
    assert {file.name for file in (path.parent / "figures").iterdir()} == drawn
    assert (path.parent / "compare.json").is_file() and "prefers-color-scheme: dark" in text
    for words in ("Co-occurrence", "train.lambda2", "5,000 evaluation tokens", "mean |phi|", "held-out tokens"):
        assert words in text


def test_everything_is_escaped(tmp_path):
    run = tmp_path / "<script>alert(1)<"
    whole_run(run)
    write_arm(run, "<img src=x>", 0)
    text = write_report(run, compare(run)).read_text()
    assert (
        "<script" not in text
        and "<img src=x" not in text
        and "<b>bold" not in text
        and "&lt;b&gt;bold&lt;/b&gt; &amp; risky" in text
    )


SCORES = {
    "embedding": {
        "chance": 0.5,
        "parts": {
            "random": {"estimate": 0.6, "ci95": [0.5, 0.7], "n_values": 9, "shuffled": {"estimate": 0.49}},
            "same_token": {"estimate": None, "ci95": None},
        },
    }
}


def test_auto_interp_is_drawn_and_compared_where_a_run_has_it(tmp_path):
    whole_run(tmp_path / "r")
    arms = {f"{arm}-s{seed}": {"interp": {"scores": SCORES}} for arm in ("solo", "joint") for seed in range(2)}
    (tmp_path / "r" / "interp.json").write_text(json.dumps({"arms": arms}))
    for number, name in enumerate(arms):
        latents = {str(i): {"own": True, "embedding": {"random": 0.5 + 0.01 * (i + number)}} for i in range(9)}
        (tmp_path / "r" / "arms" / name / "interp.json").write_text(
            json.dumps({"conditions": {}, "scores": SCORES, "latents": latents})
        )
    text = write_report(tmp_path / "r", compare(tmp_path / "r")).read_text()
    assert "Which scores become more common" in text
    doubt = "this encoder cannot tell: not above the floor: random 0.600 [0.500, 0.700] against 0.500"
    assert text.count(f"-s0, embedding: {doubt}.") == text.count(f"-s1, embedding: {doubt}.") == 2
    for name in ("scores", "score_difference"):
        assert (tmp_path / "r" / "figures" / f"{name}.svg").is_file() and (
            tmp_path / "r" / "figures" / f"{name}.png"
        ).is_file()
    pair = json.loads((tmp_path / "r" / "compare.json").read_text())["pairs"]["joint vs solo"]
    entry = pair["interp.scores.embedding.parts.random.estimate"]
    assert (entry["a"], entry["b"], entry["n_seeds"]) == (0.6, 0.6, 2)
    assert not any("same_token" in key for key in pair) and "earlier SAE" not in text


def test_scores_of_earlier_weights_are_left_out_and_named(no_drawing, tmp_path):
    whole_run(tmp_path / "r")
    arms = {
        name: {"interp": {"scores": SCORES, "conditions": {"of": {"sae": sae}}}}
        for name, sae in (("solo-s0", "an earlier one"),)
    }
    (tmp_path / "r" / "interp.json").write_text(json.dumps({"arms": arms}))
    text = write_report(tmp_path / "r", compare(tmp_path / "r")).read_text()
    compared = json.loads((tmp_path / "r" / "compare.json").read_text())
    assert compared["stale"] == ["solo-s0"] and "Auto-interp scores of solo-s0" in text
    assert (
        "Auto-interp scores of solo-s0 are left out, as they are of an earlier SAE; run `metasae interp` again"
        in (tmp_path / "r" / "compare.md").read_text()
    )
    assert not any("interp" in key for key in compared["arms"]["solo"]["values"])


def test_the_tables_for_latex_hold_the_numbers_and_their_conditions(no_drawing, tmp_path):
    whole_run(tmp_path / "r_1")
    write_arm(tmp_path / "r_1", "odd_50%", 0)
    write_report(tmp_path / "r_1", compare(tmp_path / "r_1"))
    text = (tmp_path / "r_1" / "compare.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\end{table}") == 3
    assert (
        r"odd\_50\% against solo" in text
        and "5,000 evaluation tokens" in text
        and "2 seeds" not in text
        and "seeds 0, 1" in text
    )
    assert r"FVU & $\downarrow$" in text and r"mean \textbar{}phi\textbar{} &  &" in text
    # nothing that LaTeX reads as its own is left: each % stands behind a backslash, each row has five cells
    assert not re.search(r"(?<!\\)[%#]", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert rows and all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)


def entry(value, clear, p_holm):
    ends = [value - 0.01, value + 0.01] if clear else [value - 1, value + 1]
    return {
        "difference": value,
        "ci95": ends,
        "percent": 100 * value,
        "percent_ci95": [100 * end for end in ends],
        "p_holm": p_holm,
    }


def test_the_differences_have_a_panel_for_pp_and_fill_only_what_is_clear_after_holm():
    relative = [q for q in CATALOGUE if q.main and q.relative][:3]
    share = next(q for q in CATALOGUE if q.main and not q.relative)
    nothing = {**entry(0.1, True, 0.01), "percent": None, "percent_ci95": None}
    pair = {
        relative[0].key: entry(0.1, True, 0.01),
        relative[1].key: entry(0.1, True, None),
        relative[2].key: nothing,
        share.key: entry(0.2, True, 0.04),
    }
    percent, pp = figures.relative_differences({"joint vs solo": pair}).axes
    fills = [
        line.get_markerfacecolor() == line.get_color()
        for line in percent.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert fills == [True, False]
    assert [label.get_text().split("  ")[0] for label in pp.get_yticklabels()] == [share.label]
    assert any(list(line.get_xdata()) == [20.0] for line in pp.lines) and "(pp)" in pp.get_xlabel()
    assert "clear after Holm's correction" in pp.get_xlabel() and relative[2].label in pp.get_xlabel()


def test_the_means_of_a_row_are_of_the_seeds_of_its_change(tmp_path):
    for seed in range(3):
        write_arm(tmp_path, "solo", seed, fidelity__fvu=0.1 + 0.1 * seed)
    write_arm(tmp_path, "joint", 1, fidelity__fvu=0.25)
    comparison = compare(tmp_path)
    assert row_mean(comparison, "solo", "fidelity.fvu") == (pytest.approx(0.2), [1])
    comparison["arms"]["solo"]["means"].pop("fidelity.fvu")
    comparison["arms"]["solo"]["values"].pop("fidelity.fvu")  # as of a measure that two SAEs have together
    assert row_mean(comparison, "solo", "fidelity.fvu") == (pytest.approx(0.2), [1])
    assert row_mean(comparison, "joint", "fidelity.fvu") == (pytest.approx(0.25), None)
    entry = comparison["pairs"]["joint vs solo"]["fidelity.fvu"]
    assert between(entry, [0.25, 0.2]) == "" and between(entry, [0.25, 0.15]) == "0.2500 against 0.2000"


def test_one_sentence_and_how_to_read_stand_first_then_figures_then_tables(reported):
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", (reported / "report.html").read_text())
    assert "<p class=lead>Joint against solo, 2 seeds:" in text.split("</header>")[0]
    parts = ["How to read this", "<p class=trained>", "<p class=truth>Joint against solo", "What changes against solo",
             "Which pairs of latents", "<h2>Main measures", "<h2>Fidelity", "<h2>Recipe"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_an_arm_that_equals_the_baseline_is_named_and_is_no_column_of_zeros(reported):
    text = (reported / "report.html").read_text()
    assert "control: equal to solo in every measure" in text
    assert "<th>control" not in text and "control vs solo" not in text
    comparison = compare(reported)
    shown, equal = without_equal_arms(comparison)
    assert (
        equal == ["control"] and set(shown["arms"]) == {"joint", "solo"} and list(shown["pairs"]) == ["joint vs solo"]
    )
    only = {**comparison, "pairs": {"control vs solo": comparison["pairs"]["control vs solo"]}}
    assert without_equal_arms(only) == (only, []), "where nothing else is left it is shown"


def test_the_picture_of_pairs_has_even_bins_that_hold_every_pair_inside():
    edges = np.concatenate([-np.logspace(0, -6, 40), [0], np.logspace(-6, 0, 40)])
    counts = np.random.default_rng(0).integers(0, 90, len(edges) - 1)
    even = figures.even_phi_counts({"edges": edges.tolist(), "counts": counts.tolist()})
    assert len(even) == 45 and np.allclose(np.diff(figures.PHI_EDGES), 0.02)
    inside = np.interp([-0.3, 0.6], edges, np.concatenate([[0], np.cumsum(counts)]))
    assert even.sum() == pytest.approx(inside[1] - inside[0]) and (even >= 0).all()


def test_special_letters_come_out_as_they_are():
    assert escaped("a_b & 5% {x} \\") == r"a\_b \& 5\% \{x\} \textbackslash{}"


def test_the_same_run_gives_the_same_report(reported, tmp_path):
    whole_run(tmp_path / "r")
    path = write_report(tmp_path / "r", compare(tmp_path / "r"))
    assert path.name == "report.html" and path.read_bytes() == (reported / "report.html").read_bytes()


def test_solo_alone_without_metrics_or_recipe(tmp_path):
    write_arm(tmp_path, "solo", 0, metrics=False)
    text = write_report(tmp_path, compare(tmp_path)).read_text()
    assert "nothing to compare yet" in text and {file.stem for file in (tmp_path / "figures").iterdir()} == {"rates"}


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path, compare(tmp_path))
    write_arm(tmp_path, "solo", 0)
    (tmp_path / "recipe.toml").write_text("= broken")
    with pytest.raises(UserError, match="not valid TOML"):
        write_report(tmp_path, compare(tmp_path))
