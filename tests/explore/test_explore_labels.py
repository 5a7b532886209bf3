"""What people say of latents and splits: kept, counted, bound to the weights it was about."""

import sqlite3

import pytest
from explored import random_firings, words_of, write_arm

from metasae.errors import UserError
from metasae.explore.pages import labels
from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build

FIRINGS = random_firings()


@pytest.fixture
def explorer(tmp_path):
    write_arm(tmp_path, "solo-s0", FIRINGS)
    build(tmp_path, strings=words_of(FIRINGS))
    return Explorer(tmp_path)


def latent(number):
    return {"kind": "latent", "sae": "solo-s0", "latent": number}


def test_the_last_saying_counts_and_all_are_kept(explorer):
    explorer.set_label(latent(3), "junk", "noise")
    explorer.set_label(latent(3), "keep", "<b>no</b> \ud800")
    explorer.set_label(latent(5), "unsure")
    page = explorer.latent("solo-s0", 3)
    assert page["label"] == page["scalars"]["label"] == "keep"
    assert [(saying["label"], saying["note"]) for saying in page["labels"]] == [
        ("junk", "noise"),
        ("keep", "<b>no</b> \ufffd"),
    ]
    assert [row["latent"] for row in explorer.latents("solo-s0", label="keep")["rows"]] == [3]
    assert explorer.latents("solo-s0", sort="label", descending=False)["rows"][0]["label"] == "keep"
    assert [(saying["latent"], saying["label"], saying["stale"]) for saying in explorer.labels()] == [
        (3, "junk", False),
        (3, "keep", False),
        (5, "unsure", False),
    ]


def test_an_empty_label_takes_it_away(explorer):
    explorer.set_label(latent(3), "junk")
    explorer.set_label(latent(3), None)
    assert explorer.latent("solo-s0", 3)["label"] is None
    assert explorer.latents("solo-s0", label="junk")["rows"] == []
    assert len(explorer.labels()) == 2


def test_a_label_does_not_pass_to_other_weights(explorer, tmp_path):
    explorer.set_label(latent(3), "junk")
    write_arm(tmp_path, "solo-s0", None, seed=8)
    build(tmp_path, strings=words_of(FIRINGS))
    later = Explorer(tmp_path)
    assert later.latent("solo-s0", 3)["label"] is None
    assert [saying["stale"] for saying in later.labels()] == [True]


def test_what_cannot_be_labelled_is_refused(explorer):
    with pytest.raises(UserError, match="did you mean 'junk'"):
        explorer.set_label(latent(3), "jnk")
    with pytest.raises(UserError, match="no label"):
        explorer.set_label(latent(3), ["junk"])
    with pytest.raises(UserError, match="at most"):
        explorer.set_label(latent(3), "junk", "x" * 20_000)
    for target in (
        latent(99),
        {"kind": "split", "id": "none"},
        {"kind": "split"},
        {"kind": "word"},
        {"kind": "latent"},
        {},
        {"kind": "latent", "sae": [1]},
    ):
        with pytest.raises(KeyError):
            explorer.set_label(target, "junk")
    assert explorer.labels() == []


def test_a_file_that_cannot_be_used_is_one_line(explorer, tmp_path):
    (tmp_path / labels.FILE).write_bytes(b"no database at all, but long enough to be taken for one" * 50)
    with pytest.raises(UserError, match=r"labels\.sqlite is damaged"):
        explorer.labels()
    with pytest.raises(UserError, match="cannot write"):
        explorer.set_label(latent(3), "junk")
    (tmp_path / labels.FILE).unlink()
    (tmp_path / labels.FILE).mkdir()
    with pytest.raises(UserError, match="cannot write"):
        explorer.set_label(latent(3), "junk")


def test_another_database_has_no_labels(explorer, tmp_path):
    sqlite3.connect(tmp_path / labels.FILE).execute("CREATE TABLE other (a)").connection.close()
    assert explorer.labels() == []
    explorer.set_label(latent(1), "keep")
    assert len(explorer.labels()) == 1
