"""The report's part about single latents, from an explorer that answers from a table."""

import html
import re

import pytest

from metasae.explore.pages import queries
from metasae.jobs.conclude import current_explorer
from metasae.report.report import latents_sections

HOSTILE = ["<script>", "\n", '"', "&amp;", "é", "‮", "x"]


def window(values, **more):
    return {"tokens": HOSTILE, "values": values, "peak": values.index(max(values)), **more}


class Table:
    columns = [{"key": "interp.detection.same_token"}, {"key": "nearest_phi"}]
    asked = []

    def __init__(self, run_folder=None):
        pass

    def is_current(self):
        return True

    def overview(self):
        return {"saes": [{"arm": "solo", "name": "solo-s0"}, {"arm": "joint", "name": "joint-s0"}]}

    def splits(self, limit):
        row = {"id": "a"}
        return {
            "rows": [row],
            "total": 1,
            "pair": "solo-s0 -> joint-s0",
            "summary": {"n_above_0.1": 1},
            "base_rate": None,
            "n_kept": 7,
            "same_seed": True,
        }

    def split(self, id):
        latent = {"sae": "solo-s0", "latent": 3, "top_tokens": HOSTILE}
        latent["lives_on"] = {"sae": "joint-s0", "latent": 2927, "phi": 0.41, "same": False}
        was = [{"sae": "solo-s0", "latent": 829, "phi": 0.92, "same": True}, None]
        children = [
            {**latent, "sae": "joint-s0", "latent": number, "share": 0.4, "phi": 0.5, "already": was[number]}
            for number in range(2)
        ]
        values = [0.0, 2.0, 0, 0, 0, 0, 1.0]
        none = [0.0] * 7
        windows = [
            {"tokens": HOSTILE, "parent": values, "children": [values, none], "fires": [0], "peak": 1},
            {"tokens": HOSTILE, "parent": values, "children": [values, none], "fires": [0], "peak": 1},
            {"tokens": HOSTILE, "parent": values, "children": [none, values], "fires": [1], "peak": 1},
        ]
        return {
            "parent": latent,
            "children": children,
            "windows": windows,
            "score": 0.3,
            "coverage": 0.8,
            "overlap": 0.0,
            "firings": 50,
        }

    def latents(self, sae, sort="rate", descending=True, limit=100):
        Table.asked.append((sae, sort, descending))
        return {"columns": self.columns, "rows": [{"latent": 7, sort: 0.5}, {"latent": 8, sort: None}][:limit]}

    def latent(self, sae, latent):
        windows = [window([0.0, 0, 3.0, 0, 0, 0, 1.0]), window([0.0] * 6 + [1e-9])]
        tokens = [{"token": token} for token in HOSTILE]
        said, scalars = {"text": "<b>words"}, {"firings": 9, "n_tokens": 90}
        return {
            "latent": latent,
            "max": 3.0,
            "tokens": tokens,
            "windows": windows,
            "explanation": said,
            "scalars": scalars,
        }


def test_a_store_of_other_weights_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(queries, "Explorer", type("Stale", (Table,), {"is_current": lambda self: False}))
    assert current_explorer(tmp_path) is None
    monkeypatch.setattr(queries, "Explorer", Table)
    assert isinstance(current_explorer(tmp_path), Table)


@pytest.fixture
def sections():
    return latents_sections(Table(), "solo")


def test_tokens_and_explanations_are_escaped(sections):
    assert (
        "<script" not in sections and "<b>" not in sections and "&lt;b&gt;words" in sections and "&crarr;" in sections
    )
    shown = [
        html.unescape(re.sub("<[^>]+>", "", line)) for line in re.findall("<div class=window>(.*?)</div>", sections)
    ]
    assert set(shown) == {"".join(HOSTILE).replace("\n", "↵")}


def test_each_child_has_its_window_and_its_colour(sections):
    marks = re.findall(r'<mark class="(child-\d)"', sections)
    assert marks == ["child-0", "child-0", "child-1", "child-1", "child-0", "child-0"]


def test_a_split_says_what_became_of_the_parent_and_what_the_children_were(sections):
    assert "the parent is gone; the closest latent apart from its children: joint-s0 2927 (phi 0.41)" in sections
    assert (
        "existed already as solo-s0 829 (phi 0.92)" in sections
        and "no latent of the other SAE fires like it" in sections
    )
    assert "7 more candidates are left out" in sections and "Both SAEs have the same seed" in sections


def test_the_worst_are_those_of_the_arm_by_its_hardest_score(sections):
    assert ("joint-s0", "interp.detection.same_token", False) in Table.asked
    assert "Least atomic latents of joint-s0" in sections and sections.count("fires on 9 of 90 tokens") == 1


def test_without_a_score_the_closest_pairs_are_the_worst(monkeypatch):
    monkeypatch.setattr(Table, "columns", [{"key": "nearest_phi"}])
    assert "largest phi with another latent" in latents_sections(Table(), "solo")


def test_a_run_without_a_store_has_no_such_part(tmp_path):
    assert current_explorer(tmp_path) is None
