import gzip
import json
import re
import sqlite3

import pytest

pytest.importorskip("plotly", reason="the explorer draws with plotly")
pytest.importorskip("starlette", reason="the explorer needs starlette")

from explored import numbered, random_firings, write_arm
from fake_explorer import F1, FakeExplorer, words_of

from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build
from metasae.explore.web.page_files import STATIC_TAG
from metasae.explore.web.slim import slim_latent
from metasae.explore.web.static_export import static_export


def packed(path):
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def explorer():
    return FakeExplorer(n=130, arms=("solo", "joint"), seeds=(0,))


@pytest.fixture(scope="module")
def out(explorer, tmp_path_factory):
    return static_export(explorer, tmp_path_factory.mktemp("export") / "pages", splits=40).parent


def test_every_answer_is_in_a_file(explorer, out):
    api = out / "data" / "api"
    assert json.loads((api / "overview.json").read_text()) == json.loads(json.dumps(explorer.overview()))
    index = json.loads((api / "index.json").read_text())
    for name in explorer.names:
        table = packed(api / "latents" / f"{index['saes'][name]}.json.gz")
        rows = [
            {key: values[i] for key, values in table["values"].items() if values[i] is not None}
            for i in range(table["n"])
        ]
        given = explorer.latents(name, sort="latent", descending=False, dead=True, limit=500)["rows"]
        assert rows == [{key: value for key, value in row.items() if value is not None} for row in given]
        assert table["searched"][3] == [[token, F1(place, 3)] for place, token in enumerate(words_of(3)[:8])]
        for i in (0, 63, 64, 129):
            assert packed(api / "latent" / index["saes"][name] / f"{i // 64}.json.gz")[str(i)] == json.loads(
                json.dumps(slim_latent(explorer.latent(name, i), with_text=False))
            )
    for kind in ("splits", "merges"):
        for pair, stem in index["pairs"][kind].items():
            answer = packed(api / "splits" / f"{stem}.json.gz")
            assert (
                answer["rows"] == explorer.splits(pair, kind=kind, limit=40, kept=True)["rows"]
                and answer["total"] == 40
                and answer["found"] == 120
            )
            for row in answer["rows"][::13]:
                split = packed(api / "split" / f"{index['splits'][row['id']]}.json.gz")[row["id"]]
                assert split == json.loads(json.dumps(explorer.split(row["id"])))


def test_the_pages_are_the_servers_with_one_tag_and_relative_addresses(out):
    page = (out / "index.html").read_text()
    assert page.count(STATIC_TAG) == 1
    assert 'src="app.js"' in page and 'href="style.css"' in page and '="/' not in page
    assert (out / "plotly.min.js").stat().st_size > 1_000_000
    for script in [*out.glob("*.js"), *out.glob("pages/*.js")]:
        assert script.name == "plotly.min.js" or not re.search(
            r"""["'`]/(api|data|pages|plotly)""", script.read_text()
        ), script.name


def test_opened_from_the_disk_the_page_says_what_to_run(out):
    page = (out / "index.html").read_text()
    assert page.index("<main") < page.index("python -m http.server 8000") < page.index("</main>")


def test_exporting_again_replaces_the_answers_and_nothing_else(explorer, tmp_path):
    out = tmp_path / "pages"
    static_export(FakeExplorer(n=70), out, splits=3)
    (out / "notes.txt").write_text("mine")
    static_export(FakeExplorer(n=3, arms=("solo", "joint"), seeds=(0,)), out, splits=3)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "data" / "api" / "latent" / "solo-s1").exists()


def test_an_export_that_was_cut_off_is_done_again(tmp_path):
    explorer, out = FakeExplorer(n=70), tmp_path / "pages"

    def stop(*given):
        raise KeyboardInterrupt

    explorer.split = stop
    with pytest.raises(KeyboardInterrupt):
        static_export(explorer, out, splits=3)
    assert not (out / "index.html").exists()
    assert STATIC_TAG in static_export(FakeExplorer(n=3), out, splits=3).read_text()


def test_equal_runs_give_equal_files(explorer, tmp_path):
    exports = []
    for name in ("a", "b"):
        static_export(FakeExplorer(n=3), tmp_path / name, splits=3)
        exports.append(
            {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name / "data").rglob("*.*")}
        )
    assert exports[0] == exports[1]


def test_several_processes_write_the_same_files(tmp_path):
    run, exports = tmp_path / "run", []
    for seed, name in enumerate(("solo-s0", "joint-s0")):
        write_arm(run, name, random_firings(seed, n=70), seed=seed)
    build(run, strings=numbered)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        static_export(run, out, processes=processes)
        exports.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()})
    assert exports[0] == exports[1]
    assert len([path for path in exports[0] if path.parts[:3] == ("data", "api", "latent")]) == 4
    served = Explorer(run)
    for name in served.store.saes:
        blocks = [packed(tmp_path / "2" / "data" / "api" / "latent" / name / f"{number}.json.gz") for number in (0, 1)]
        assert blocks == [
            {str(i): json.loads(json.dumps(slim_latent(served.latent(name, i), with_text=True))) for i in part}
            for part in (range(64), range(64, 70))
        ]


def test_the_text_is_there_once_and_gives_the_windows_their_tokens_back(tmp_path):
    run = tmp_path / "run"
    write_arm(run, "solo-s0", random_firings(0, n=20))
    build(run, strings=numbered)
    api, served = static_export(run, tmp_path / "out").parent / "data" / "api", Explorer(run)
    index = json.loads((api / "index.json").read_text())
    chunk = packed(api / "text" / str(index["texts"]["solo-s0"]) / "0.json.gz")
    latents = packed(api / "latent" / "solo-s0" / "0.json.gz")
    assert len(chunk["pieces"]) == served.store.sae("solo-s0").n_tokens < index["chunk"]
    for i in range(20):
        for slim, whole in zip(latents[str(i)]["windows"], served.latent("solo-s0", i)["windows"], strict=True):
            place = slim["place"]
            assert chunk["pieces"][place : place + len(slim["values"])] == whole["tokens"]
            assert "tokens" not in slim and slim["values"] == whole["values"]


def test_an_error_in_a_process_is_the_callers(tmp_path):
    run = tmp_path / "run"
    write_arm(run, "solo-s0", random_firings())
    store = sqlite3.connect(build(run, strings=numbered))
    store.execute("UPDATE windows SET data = zeroblob(9)")
    store.commit()
    store.close()
    with pytest.raises(UserError, match="delete it and build it again"):
        static_export(run, tmp_path / "out", processes=2)


def test_a_folder_of_something_else_is_left_alone(explorer, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="choose another folder"):
        static_export(explorer, tmp_path)
    (tmp_path / "index.html").write_text("a page of mine")
    with pytest.raises(UserError):
        static_export(explorer, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine" and (tmp_path / "index.html").read_text() == "a page of mine"
    with pytest.raises(UserError):
        static_export(explorer, tmp_path / "thesis.tex")


def test_names_that_no_file_can_have_get_numbers(tmp_path):
    explorer = FakeExplorer(n=2, arms=("solo", "joint"), seeds=(0,))
    explorer.names = ["solo-s0", "../ev:il"]
    overview = explorer.overview()
    for sae, name in zip(overview["saes"], explorer.names, strict=True):
        sae["name"] = name
    explorer.overview = lambda: overview
    out = static_export(explorer, tmp_path / "pages", splits=2).parent
    assert json.loads((out / "data" / "api" / "index.json").read_text())["saes"] == {
        "solo-s0": "solo-s0",
        "../ev:il": "1",
    }
    assert (out / "data" / "api" / "latent" / "1" / "0.json.gz").is_file()
