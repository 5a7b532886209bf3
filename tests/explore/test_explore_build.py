"""Building the store: resumed, skipped, changed, refused; arms that lack something."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
import torch
from explored import numbered, random_firings, words_of, write_arm

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.store import edges, schema, writing
from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.build import WORKING, build
from sparse_firings import firings_from

FIRINGS = random_firings()


def run_of(folder, *names, firings=FIRINGS, **options):
    for seed, name in enumerate(names):
        write_arm(folder, name, firings, seed=seed, meta=not name.startswith("solo"), **options)
    return folder


def built_parts(path):
    store = sqlite3.connect(path)
    seconds = dict(store.execute("SELECT name, seconds FROM parts"))
    store.close()
    return seconds


def everything(run):
    """All that the pages of a small run show."""
    explorer = Explorer(run)
    pages = {name: [explorer.latent(name, i) for i in range(facts.n)] for name, facts in explorer.store.saes.items()}
    lists = {name: explorer.latents(name, dead=True) for name in explorer.store.saes}
    return json.dumps(
        [pages, lists, explorer.splits(), explorer.splits(kind="merges"), explorer.overview()], sort_keys=True
    )


def test_a_killed_build_goes_on_with_the_next_sae(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", "solo-s0", "joint-s0")
    whole = run_of(tmp_path / "whole" / "run", "solo-s0", "joint-s0")
    build(whole, strings=numbered)
    plain, written = writing.Writer._write_sae, []

    def killed(writer, arm):
        if written:
            plain(writer, arm)
            raise KeyboardInterrupt
        written.append(arm.label)
        plain(writer, arm)

    monkeypatch.setattr(writing.Writer, "_write_sae", killed)
    with pytest.raises(KeyboardInterrupt):
        build(run, strings=numbered)
    assert not (run / schema.STORE).exists()
    assert set(built_parts(run / WORKING)) >= {"sae:solo-s0"}
    assert "sae:joint-s0" not in built_parts(run / WORKING)

    def counted(writer, arm):
        written.append(arm.label)
        plain(writer, arm)

    monkeypatch.setattr(writing.Writer, "_write_sae", counted)
    build(run, strings=numbered)
    assert written == ["solo-s0", "joint-s0"]
    assert not (run / WORKING).exists()
    assert everything(run) == everything(whole)


def test_an_unchanged_run_is_not_built_again(tmp_path):
    run = run_of(tmp_path, "solo-s0", "joint-s0")
    path = build(run, strings=numbered)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert build(run, strings=numbered) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_only_what_changed_is_built_again(tmp_path):
    run = run_of(tmp_path, "solo-s0", "joint-s0", "solo-s1")
    before = built_parts(build(run, strings=numbered))
    scores = {
        "conditions": {},
        "scores": {"embedding": {"chance": 0.5}},
        "latents": {"3": {"own": True, "embedding": {"random": 0.75}}},
    }
    (run / "arms" / "solo-s1" / "interp.json").write_text(json.dumps(scores))
    after = built_parts(build(run, strings=numbered))
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"interp:solo-s1", "overview"}
    write_arm(run, "solo-s1", random_firings(7), seed=2)
    later = built_parts(build(run, strings=numbered))
    changed = {name for name in later if later[name] != after.get(name)}
    assert changed == {"sae:solo-s1", "interp:solo-s1", "pair:solo-s0|solo-s1", "splits:solo-s0|solo-s1",
                       "splits:solo-s1|solo-s0", "overview"}  # fmt: skip
    assert Explorer(run).latent("solo-s1", 3)["scores"] == [
        {"score": "embedding", "part": "random", "value": 0.75, "chance": 0.5}
    ]


def test_a_changed_run_shows_what_a_new_store_would(tmp_path):
    run = run_of(tmp_path / "run", "solo-s0", "joint-s0", "control-s0")
    build(run, strings=numbered)
    shutil.rmtree(run / "arms" / "control-s0")
    shutil.rmtree(run / "arms" / "joint-s0")
    write_arm(run, "joint-s0", random_firings(5), seed=9, meta=True)
    build(run, strings=numbered)
    assert set(Explorer(run).store.saes) == {"solo-s0", "joint-s0"}
    updated = everything(run)
    (run / schema.STORE).unlink()
    build(run, strings=numbered)
    assert everything(run) == updated


def test_labels_survive_a_new_store(tmp_path):
    run = run_of(tmp_path, "solo-s0")
    build(run, strings=numbered)
    Explorer(run).set_label({"kind": "latent", "sae": "solo-s0", "latent": 4}, "junk", "why")
    (run / schema.STORE).unlink()
    build(run, strings=numbered)
    assert Explorer(run).latent("solo-s0", 4)["label"] == "junk"


def test_an_arm_without_firings_has_weights_only(tmp_path):
    write_arm(tmp_path, "solo-s0", None, seed=1)
    write_arm(tmp_path, "joint-s0", None, seed=2, meta=True)
    build(tmp_path)
    explorer = Explorer(tmp_path)
    page = explorer.latent("joint-s0", 3)
    assert page["windows"] == page["tokens"] == []
    assert page["histogram"] is None
    assert page["scalars"]["rate"] is None
    assert page["scalars"]["meta_e"] is not None
    assert len(page["neighbours"]["cosine"]) == 10
    assert page["neighbours"]["phi"] == []
    assert page["matches"]
    assert explorer.latents("solo-s0")["total"] == 12
    assert explorer.splits()["rows"] == []
    both = explorer.compare_latents(("solo-s0", 1), ("joint-s0", 1))
    assert both["phi"] is None
    assert both["cosine"] is not None


def test_one_arm_alone(tmp_path):
    build(run_of(tmp_path, "solo-s0"), strings=numbered)
    explorer = Explorer(tmp_path)
    assert explorer.splits() | {"rows": []} == {
        "pairs": [], "base_pairs": [], "pair": None, "kind": "splits", "same_seed": False, "total": 0, "n_kept": 0,
        "offset": 0, "summary": None, "base_rate": None, "rows": []
    }  # fmt: skip
    page = explorer.latent("solo-s0", 5)
    assert page["matches"] == page["meta"] == page["splits"] == page["senses"] == page["scores"] == []
    assert page["neighbours"]["other"] == {}
    assert page["explanation"] is None
    assert page["logits"] is None


def test_arms_on_different_text_are_not_counted_together(tmp_path):
    write_arm(tmp_path, "solo-s0", FIRINGS)
    write_arm(tmp_path, "joint-s0", random_firings(lengths=(90, 90)), seed=1)
    build(tmp_path, strings=numbered)
    explorer = Explorer(tmp_path)
    assert explorer.latent("solo-s0", 3)["neighbours"]["other"]["joint-s0"]["phi"] == []
    assert len(explorer.latent("solo-s0", 3)["neighbours"]["other"]["joint-s0"]["cosine"]) == 10
    assert explorer.compare_latents(("solo-s0", 3), ("joint-s0", 3))["n_both"] is None


def test_a_planted_run_shows_its_features(tmp_path):
    (tmp_path / "recipe.toml").write_text('[text]\nsource = "planted"\n[planted]\nd = 16\nindependent = 4\nwords = 2\n')
    from metasae.data.planted.planted_cache import PlantedCache
    from metasae.recipe.recipe import Recipe

    recipe = Recipe.load(tmp_path / "recipe.toml")
    split = PlantedCache(recipe.planted, {"evaluation": 300}).split("evaluation")
    rng_on = split.activations.toarray() > 0
    write_arm(
        tmp_path,
        "solo-s0",
        firings_from(rng_on, split.activations.toarray(), split.documents, split.tokens, split.positions),
    )
    build(tmp_path)
    explorer = Explorer(tmp_path)
    live = explorer.latents("solo-s0")["rows"][0]
    page = explorer.latent("solo-s0", live["latent"])
    window = page["windows"][0]
    assert f"/f{live['latent']}:" in window["tokens"][window["peak"]]
    assert all("/" not in row["token"] for row in page["tokens"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        build(tmp_path)
    (tmp_path / "arms").mkdir()
    with pytest.raises(UserError, match="trained yet"):
        build(tmp_path)
    with pytest.raises(UserError, match="build it"):
        Explorer(tmp_path)


def test_firings_of_another_sae_are_refused(tmp_path):
    write_arm(tmp_path, "solo-s0", FIRINGS)
    write_arm(tmp_path / "other", "solo-s0", random_firings(n=20))
    shutil.rmtree(tmp_path / "arms" / "solo-s0" / "firings")
    shutil.copytree(tmp_path / "other" / "arms" / "solo-s0" / "firings", tmp_path / "arms" / "solo-s0" / "firings")
    with pytest.raises(UserError, match="another SAE"):
        build(tmp_path, strings=numbered)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "not a database", "other version"])
def test_a_damaged_store_says_what_to_do(tmp_path, damage):
    path = build(run_of(tmp_path, "solo-s0"), strings=words_of(FIRINGS))
    whole = path.read_bytes()
    if damage == "other version":
        store = sqlite3.connect(path)
        store.execute("PRAGMA user_version = 99")
        store.close()
    else:
        path.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "overwritten": whole[:4096] + b"\x07" * (len(whole) - 4096),
                "not a database": b"no",
            }[damage]
        )
    with pytest.raises(UserError, match="delete it and build it again"):
        explorer = Explorer(tmp_path)
        for i in range(12):
            explorer.latent("solo-s0", i)
        explorer.overview()
    build(tmp_path, strings=words_of(FIRINGS))
    assert Explorer(tmp_path).latent("solo-s0", 3)["windows"]


def test_a_damaged_blob_says_what_to_do(tmp_path):
    path = build(run_of(tmp_path, "solo-s0"), strings=numbered)
    store = sqlite3.connect(path)
    store.execute("UPDATE windows SET data = zeroblob(9)")
    store.commit()
    store.close()
    with pytest.raises(UserError, match=r"damaged.*delete it and build it again"):
        Explorer(tmp_path).latent("solo-s0", 3)


def test_a_copied_run_is_not_built_again(tmp_path):
    run = run_of(tmp_path / "run", "solo-s0", "joint-s0")
    before = built_parts(build(run, strings=numbered))
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copyfile)
    assert built_parts(build(tmp_path / "copy", strings=numbered)) == before


def test_a_damaged_working_file_is_started_anew(tmp_path):
    run = run_of(tmp_path, "solo-s0")
    (run / WORKING).write_bytes(b"SQLite format 3\0" + b"\x01" * 5000)
    build(run, strings=numbered)
    assert Explorer(run).latent("solo-s0", 3)["windows"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    run = run_of(tmp_path, "solo-s0")

    def full(store, *_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(writing.firing_rows, "write_text", full)
    with pytest.raises(UserError, match=r"disk is full.*free some space"):
        build(run, strings=numbered)
    monkeypatch.undo()
    build(run, strings=numbered)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    run = run_of(tmp_path, "solo-s0")
    (run / WORKING).mkdir()
    with pytest.raises(UserError, match="cannot write"):
        build(run, strings=numbered)


def test_two_builds_at_once_do_not_mix(tmp_path, monkeypatch):
    run = run_of(tmp_path, "solo-s0")
    plain = writing.Writer._write_sae

    def second(writer, arm):
        monkeypatch.setattr(writing.Writer, "_write_sae", plain)
        with pytest.raises(UserError, match="another process builds"):
            build(run, strings=numbered)
        plain(writer, arm)

    monkeypatch.setattr(writing.Writer, "_write_sae", second)
    build(run, strings=numbered)
    assert Explorer(run).latent("solo-s0", 3)["windows"]


@pytest.mark.parametrize("known", [False, True])
def test_above_a_size_the_nearest_live_row_stands_for_a_match(tmp_path, monkeypatch, known):
    """Also where none of the ten nearest rows is of a live latent."""
    monkeypatch.setattr(edges, "MATCHED_UP_TO", 3)
    store, rng = schema.create(tmp_path / "store"), np.random.default_rng(0)
    rows = [torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32)) for _ in range(2)]
    rows[0][5] = 0
    live = tuple(rng.random(30) < share for share in (0.6, 0.1))
    near = (edges.nearest_rows(*rows), edges.nearest_rows(*rows[::-1])) if known else None
    edges.write_matches(store, (1, 2), tuple(rows), live, near)
    units = [
        row / np.maximum(np.linalg.norm(row, axis=1, keepdims=True), 1e-9)
        for row in (matrix.numpy() for matrix in rows)
    ]
    usable = [np.flatnonzero(on & (np.linalg.norm(unit, axis=1) > 0)) for on, unit in zip(live, units, strict=True)]
    for side, other in ((0, 1), (1, 0)):
        edges_of_side = store.execute(
            "SELECT key, other, kind, data FROM edges WHERE other = ? ORDER BY key", (other + 1,)
        ).fetchall()
        assert [key for key, *_ in edges_of_side] == [schema.key_of(side + 1, i) for i in usable[side].tolist()]
        for i, (_, _, kind, data) in zip(usable[side], edges_of_side, strict=True):
            cosines = units[side][i] @ units[other][usable[other]].T
            (partner,), (value,) = unpack_edges(data)
            assert kind == "nearest"
            assert partner == usable[other][cosines.argmax()]
            assert value == pytest.approx(cosines.max(), abs=1e-5)
    store.close()


def test_an_sae_that_never_fires_is_searched_in_vain(tmp_path):
    firings = random_firings()
    on = np.zeros((firings.n_tokens, 12), bool)
    silent = firings_from(on, on, firings.documents, firings.tokens, firings.positions)
    write_arm(tmp_path, "solo-s0", silent)
    build(tmp_path, strings=words_of(firings))
    explorer = Explorer(tmp_path)
    assert explorer.latents("solo-s0", search="w1", dead=True)["total"] == 0
    assert explorer.latents("solo-s0")["total"] == 0
    assert explorer.search("w")["groups"] == []


def test_a_store_knows_whether_the_weights_are_still_those(tmp_path):
    run = run_of(tmp_path, "solo-s0", "joint-s0")
    build(run, strings=numbered)
    assert Explorer(run).is_current()
    write_arm(run, "joint-s0", FIRINGS, seed=5)
    assert not Explorer(run).is_current()
