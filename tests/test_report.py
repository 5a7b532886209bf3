import html.parser
import json
import re

import pytest

from metasae.errors import UserError
from metasae.latex import escaped
from metasae.recipe import Recipe
from metasae.report import write_report
from runs import write_arm


def whole_run(run, seeds=2):
    run.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        write_arm(run, "solo", seed, fidelity__fvu=0.2 + 0.01 * seed)
        write_arm(run, "control", seed, fidelity__fvu=0.2 + 0.01 * seed)
        write_arm(run, "joint", seed, fidelity__fvu=0.22 + 0.012 * seed)
    Recipe.load({"description": "a <b>bold</b> & risky one"}).save(run / "recipe.toml")


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_file_that_needs_nothing_else(tmp_path):
    whole_run(tmp_path / "r")
    path = write_report(tmp_path / "r")
    text = path.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and path.name == "report.html"
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object"} and "//" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    images = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert len(images) == 4 and all(source.startswith("data:image/png;base64,") for source in images)
    drawn = {f"{name}.{kind}" for name in ("differences", "phi", "rates", "training") for kind in ("png", "svg")}
    assert {file.name for file in (path.parent / "figures").iterdir()} == drawn
    assert (path.parent / "compare.json").is_file() and "prefers-color-scheme: dark" in text
    for words in ("Co-occurrence", "train.lambda2", "5,000 evaluation tokens", "mean |phi|", "Judged on"):
        assert words in text


def test_everything_is_escaped(tmp_path):
    run = tmp_path / "<script>alert(1)<"
    whole_run(run)
    write_arm(run, "<img src=x>", 0)
    text = write_report(run).read_text()
    assert "<script" not in text and "<img src=x" not in text and "<b>bold" not in text and "&lt;b&gt;bold&lt;/b&gt; &amp; risky" in text


SCORES = {
    "embedding": {
        "chance": 0.5,
        "parts": {"random": {"estimate": 0.6, "ci95": [0.5, 0.7], "shuffled": {"estimate": 0.49}}, "same_token": {"estimate": None, "ci95": None}},
    }
}


def test_auto_interp_is_drawn_and_compared_where_a_run_has_it(tmp_path):
    whole_run(tmp_path / "r")
    arms = {f"{arm}-s{seed}": {"interp": {"scores": SCORES}} for arm in ("solo", "joint") for seed in range(2)}
    (tmp_path / "r" / "interp.json").write_text(json.dumps({"arms": arms}))
    write_report(tmp_path / "r")
    assert (tmp_path / "r" / "figures" / "scores.svg").is_file()
    pair = json.loads((tmp_path / "r" / "compare.json").read_text())["pairs"]["joint vs solo"]
    entry = pair["interp.scores.embedding.parts.random.estimate"]
    assert (entry["a"], entry["b"], entry["n_seeds"]) == (0.6, 0.6, 2)
    assert not any("same_token" in key for key in pair)


def test_the_tables_for_latex_hold_the_numbers_and_their_conditions(tmp_path):
    whole_run(tmp_path / "r_1")
    write_arm(tmp_path / "r_1", "odd_50%", 0)
    write_report(tmp_path / "r_1")
    text = (tmp_path / "r_1" / "compare.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\end{table}") == 3
    assert r"odd\_50\% against solo" in text and "5,000 evaluation tokens" in text and "2 seeds" not in text and "seeds 0, 1" in text
    assert r"mean \textbar{}phi\textbar{} & $\downarrow$" in text
    # nothing that LaTeX reads as its own is left: each % stands behind a backslash, each row has five cells
    assert not re.search(r"(?<!\\)[%#]", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert rows and all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)


def test_special_letters_come_out_as_they_are():
    assert escaped("a_b & 5% {x} \\") == r"a\_b \& 5\% \{x\} \textbackslash{}"


def test_the_same_run_gives_the_same_report(tmp_path):
    whole_run(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_solo_alone_without_metrics_or_recipe(tmp_path):
    write_arm(tmp_path, "solo", 0, metrics=False)
    text = write_report(tmp_path).read_text()
    assert "nothing to compare yet" in text and {file.stem for file in (tmp_path / "figures").iterdir()} == {"rates"}


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    write_arm(tmp_path, "solo", 0)
    (tmp_path / "recipe.toml").write_text("= broken")
    with pytest.raises(UserError, match="not valid TOML"):
        write_report(tmp_path)
