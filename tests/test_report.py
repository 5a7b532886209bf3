import html.parser
import re

import pytest

from metasae.errors import UserError
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
    assert sorted(file.name for file in (path.parent / "figures").iterdir()) == ["differences.png", "phi.png", "rates.png", "training.png"]
    assert (path.parent / "compare.json").is_file() and "prefers-color-scheme: dark" in text
    for words in ("Co-occurrence", "train.lambda2", "5,000 evaluation tokens", "mean |phi|", "Judged on"):
        assert words in text


def test_everything_is_escaped(tmp_path):
    run = tmp_path / "<script>alert(1)<"
    whole_run(run)
    write_arm(run, "<img src=x>", 0)
    text = write_report(run).read_text()
    assert "<script" not in text and "<img src=x" not in text and "<b>bold" not in text and "&lt;b&gt;bold&lt;/b&gt; &amp; risky" in text


def test_the_same_run_gives_the_same_report(tmp_path):
    whole_run(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_solo_alone_without_metrics_or_recipe(tmp_path):
    write_arm(tmp_path, "solo", 0, metrics=False)
    text = write_report(tmp_path).read_text()
    assert "nothing to compare yet" in text and [file.name for file in (tmp_path / "figures").iterdir()] == ["rates.png"]


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    write_arm(tmp_path, "solo", 0)
    (tmp_path / "recipe.toml").write_text("= broken")
    with pytest.raises(UserError, match="not valid TOML"):
        write_report(tmp_path)
