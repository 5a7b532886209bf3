"""What the pages ask, against slow twins over the firings; hostile text and hostile questions."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from explored import of_latent, phi_by_hand, random_firings, sae_of, text, words_of, write_arm

from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build
from metasae.sae.sae import SAE
from sparse_firings import firings_from

ONE, OTHER = random_firings(0), random_firings(1)
INTERP = {
    "conditions": {},
    "scores": {"embedding": {"chance": 0.5, "parts": {"random": {"estimate": 0.4, "ci95": None}}}},
    "latents": {
        "5": {
            "own": True,
            "embedding": {"random": 0.8, "same_token": None},
            "explanation": 'says "river" OR <b>bank</b>',
            "judge": "a model",
        },
        "6": {"own": False, "embedding": {"random": 0.6, "same_token": 0.7}, "explanation": "the bank of a river"},
    },
}
SENSES = {
    "senses": {"words": {"bank": {"detectors": {"river": {"latent": 5, "recall": 0.5, "precision": 0.25, "f1": 0.3}}}}}
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_arm(folder, "solo-s0", ONE, seed=0, interp=INTERP, measures=SENSES)
    write_arm(folder, "joint-s0", OTHER, seed=1, meta=True)
    build(folder, strings=words_of(ONE))
    return folder


@pytest.fixture
def explorer(run):
    return Explorer(run)


def test_windows_hold_the_firings_of_their_place(explorer):
    for i in range(ONE.n_latents):
        tokens, values = of_latent(ONE, i)
        fired = dict(zip(tokens.tolist(), values.tolist(), strict=True))
        for window in explorer.latent("solo-s0", i)["windows"]:
            places = range(window["place"], window["place"] + len(window["tokens"]))
            assert window["tokens"] == [f" w{ONE.tokens[place]}" for place in places]
            assert window["values"] == [fired.get(place, 0.0) for place in places]
            assert window["document"] == ONE.documents[window["place"]]
            assert window["start"] == ONE.positions[window["place"]]
            assert window["values"][window["peak"]] > 0


def test_scalars_tokens_and_histogram_equal_counting(explorer):
    in_text = Counter(ONE.tokens.tolist())
    for i in range(ONE.n_latents):
        page, (tokens, values) = explorer.latent("solo-s0", i), of_latent(ONE, i)
        assert page["scalars"]["firings"] == len(tokens)
        assert page["scalars"]["rate"] == len(tokens) / ONE.n_tokens
        assert page["max"] == (max(values) if len(values) else None)
        counted = Counter(ONE.tokens[tokens].tolist())
        assert {row["id"]: row["with"] for row in page["tokens"]} == dict(counted)
        for row in page["tokens"]:
            share = counted[row["id"]] / len(tokens)
            assert row["token"] == f" w{row['id']}"
            assert row["count"] == in_text[row["id"]]
            assert row["share"] == pytest.approx(share, rel=5e-6)  # six digits
            assert row["lift"] == pytest.approx(share / (in_text[row["id"]] / ONE.n_tokens), rel=5e-6)
        if len(values):
            assert page["histogram"]["edges"][0] == 0.5  # the threshold
            assert page["histogram"]["counts"] == np.histogram(values, bins=page["histogram"]["edges"])[0].tolist()
        else:
            assert page["histogram"] is None
            assert page["windows"] == []


def test_neighbours_by_phi_equal_correlations(explorer):
    live = [j for j in range(12) if j not in (0, 1)]  # dead and always on have no correlation
    for i in range(ONE.n_latents):
        neighbours = explorer.latent("solo-s0", i)["neighbours"]
        for neighbour_rows, firings, among in (
            (neighbours["phi"], ONE, [j for j in live if j != i]),
            (neighbours["other"]["joint-s0"]["phi"], OTHER, live),
        ):
            expected = sorted((phi_by_hand(ONE, i, firings, j) for j in among), reverse=True)[:10] if i in live else []
            assert [row["value"] for row in neighbour_rows] == pytest.approx(expected, abs=1e-6)
            for row in neighbour_rows:
                assert row["value"] == pytest.approx(phi_by_hand(ONE, i, firings, row["latent"]), abs=1e-6)


def test_neighbours_by_cosine_equal_products(explorer):
    rows, columns, others = (
        sae_of(12, seed=0).W_dec.detach().numpy(),
        sae_of(12, seed=0).W_enc.detach().numpy().T,
        sae_of(12, seed=1).W_dec.detach().numpy(),
    )

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for i in range(12):
        page = explorer.latent("solo-s0", i)
        for kind, matrix in (("cosine", rows), ("encoder_cosine", columns)):
            expected = sorted(((cosine(matrix[i], matrix[j]), j) for j in range(12) if j != i), reverse=True)[:10]
            assert [row["value"] for row in page["neighbours"][kind]] == pytest.approx(
                [value for value, _ in expected], abs=1e-5
            )
            assert [row["latent"] for row in page["neighbours"][kind]] == [j for _, j in expected]
        across = page["neighbours"]["other"]["joint-s0"]["cosine"]
        assert [row["value"] for row in across] == pytest.approx(
            sorted((cosine(rows[i], v) for v in others), reverse=True)[:10], abs=1e-5
        )
        assert page["scalars"]["nearest_cosine"] == pytest.approx(page["neighbours"]["cosine"][0]["value"], abs=1e-5)
        assert page["scalars"]["encoder_cosine"] == pytest.approx(cosine(rows[i], columns[i]), abs=1e-6)


def test_matches_are_one_to_one_among_live_latents(explorer):
    partner = {i: explorer.latent("solo-s0", i)["matches"] for i in range(12)}
    assert partner.pop(0) == []  # dead
    partners = [matches[0]["latent"] for matches in partner.values()]
    assert len(set(partners)) == 11
    assert 0 not in partners
    for i, ((match,)) in partner.items():
        assert match["how"] == "match"
        (back,) = explorer.latent("joint-s0", match["latent"])["matches"]
        assert back["latent"] == i


def test_meta_latents_are_those_of_the_meta_sae(explorer, run):
    from metasae.measures.rows.decomposability import own_meta

    sae, meta = (SAE.load(run / "arms" / "joint-s0" / name) for name in ("primary", "meta"))
    pages = [explorer.latent("joint-s0", i) for i in range(12)]
    # rows have unit length, so the mean of e is what measures.json has
    assert np.mean([page["scalars"]["meta_e"] for page in pages]) == pytest.approx(
        own_meta(sae, meta)["own_meta_e"], rel=1e-5
    )
    pre = (sae.W_dec - meta.b_dec) @ meta.W_enc + meta.b_enc
    flat = pre.detach().flatten()
    on = {divmod(int(place), meta.n_latents) for place in flat.argsort(descending=True)[: 2 * 12] if flat[place] > 0}
    assert {(i, row["meta_latent"]) for i, page in enumerate(pages) for row in page["meta"]} == on
    for i, page in enumerate(pages):
        for row in page["meta"]:
            assert row["weight"] == pytest.approx(float(pre[i, row["meta_latent"]]), rel=1e-4)
            expected = sorted((float(pre[j, m]) for j, m in on if m == row["meta_latent"]), reverse=True)[:10]
            assert [sibling["weight"] for sibling in row["siblings"]] == pytest.approx(expected, rel=1e-4)
    assert explorer.latent("solo-s0", 3)["meta"] == []


PAIRS = [
    (("solo-s0", 3), ("joint-s0", 5)),
    (("solo-s0", 3), ("solo-s0", 4)),  # alike
    (("solo-s0", 0), ("solo-s0", 1)),  # dead, always on
    (("joint-s0", 7), ("joint-s0", 7)),
]


def test_two_latents_side_by_side(explorer):
    for a, b in PAIRS:
        page = explorer.compare_latents(a, b)
        sides = [ONE if name == "solo-s0" else OTHER for name, _ in (a, b)]
        fired = [set(of_latent(side, i)[0].tolist()) for side, (_, i) in zip(sides, (a, b), strict=True)]
        assert (page["n_a"], page["n_b"], page["n_both"]) == (len(fired[0]), len(fired[1]), len(fired[0] & fired[1]))
        expected = phi_by_hand(sides[0], a[1], sides[1], b[1])
        assert page["phi"] is None if expected is None else page["phi"] == pytest.approx(expected)
        groups = {"only_a": fired[0] - fired[1], "only_b": fired[1] - fired[0], "both": fired[0] & fired[1]}
        for name, places in groups.items():
            assert bool(page[name]) == bool(places)
            for window in page[name]:
                assert window["place"] + window["peak"] in places
                assert [value > 0 for value in window["a"]] == [
                    window["place"] + t in fired[0] for t in range(len(window["tokens"]))
                ]
                assert [value > 0 for value in window["b"]] == [
                    window["place"] + t in fired[1] for t in range(len(window["tokens"]))
                ]


def test_the_table_is_sorted_filtered_and_cut(explorer):
    every = explorer.latents("solo-s0", sort="latent", descending=False, dead=True)
    assert [row["latent"] for row in every["rows"]] == list(range(12))
    assert explorer.latents("solo-s0")["total"] == 11
    for column in (header["key"] for header in every["columns"]):
        for descending in (True, False):
            rows = explorer.latents("solo-s0", sort=column, descending=descending, dead=True)["rows"]
            values = [row.get(column) for row in rows if row.get(column) is not None]
            if column != "top_tokens":
                assert values == sorted(values, reverse=descending), column
            assert all(row.get(column) is None for row in rows[len(values) :]), "missing numbers come last"
            assert sorted(row["latent"] for row in rows) == list(range(12))
    low, high = 0.1, 0.3
    kept = [row["latent"] for row in every["rows"] if low <= row["rate"] <= high]
    assert sorted(row["latent"] for row in explorer.latents("solo-s0", min_rate=low, max_rate=high)["rows"]) == kept
    page = explorer.latents("solo-s0", sort="latent", descending=False, offset=3, limit=4)
    assert [row["latent"] for row in page["rows"]] == [4, 5, 6, 7]
    assert page["total"] == 11
    for offset, limit, expected in ((10_000, 100, 0), (-5, 100, 11), (0, 0, 0), (0, -3, 0), (0, 10**9, 11)):
        assert len(explorer.latents("solo-s0", offset=offset, limit=limit)["rows"]) == expected
    empty = {header["key"] for header in every["columns"] if header["empty"]}
    assert "rate" not in empty
    numbers = [header["key"] for header in every["columns"] if header["kind"] == "number"]
    assert empty == {key for key in numbers if all(row.get(key) is None for row in every["rows"])}
    with pytest.raises(ValueError, match="no column"):
        explorer.latents("solo-s0", sort="rate; DROP TABLE latents")


def test_search_finds_words_of_explanations_and_the_beginning_of_tokens(explorer):
    def latents_with(search):
        return sorted(row["latent"] for row in explorer.latents("solo-s0", search=search, dead=True)["rows"])

    assert latents_with("river") == latents_with("RIV") == [5, 6]
    assert latents_with("bank says") == [5]
    assert latents_with("the river") == [6]
    assert latents_with("nothing like it") == []
    by_token = latents_with("w1")  # w1 and w10
    top = {i: Counter(ONE.tokens[of_latent(ONE, i)[0]].tolist()) for i in range(12)}
    first = {
        i: sorted(counts, key=lambda token, counts=counts: (-counts[token], token))[:8] for i, counts in top.items()
    }
    assert by_token == [i for i in range(12) if {1, 10} & set(first[i])]
    for row in explorer.latents("solo-s0", search="w1", dead=True)["rows"]:
        beside = [f" w{token}" for token in first[row["latent"]] if token in (1, 10) or 10 <= token < 20]
        assert row["found"] == (None if set(beside) & set(row["top_tokens"]) else beside[0])
    (group,) = explorer.search("riv")["groups"]
    assert group["sae"] == "solo-s0" and group["total"] == 2
    found = [(row["latent"], row["where"], row["specific"]) for row in group["rows"]]
    # "the bank of a river" has five words, 'says "river" OR <b>bank</b>' six
    assert found == [(6, "explanation", 1 / 5), (5, "explanation", 1 / 6)]
    groups = explorer.search("w3")["groups"]
    assert [group["sae"] for group in groups] == ["solo-s0", "joint-s0"]
    assert all(row["text"] == " w3" and row["where"] == "token" for group in groups for row in group["rows"])
    assert [len(group["rows"]) for group in explorer.search("w", limit=3)["groups"]] == [3, 3]


def test_every_order_is_the_one_sqlite_would_give(explorer):
    """Equals in the order of latents, what lacks the number last; numbers are read to their last digit."""
    for number, name in ((facts.id, facts.name) for facts in explorer.store.saes.values()):
        for column in (header["key"] for header in explorer.latents(name)["columns"] if header["key"] != "label"):
            if column.startswith("interp."):
                _, score, part = column.split(".")
                value = f"""(SELECT value FROM scores s
                    WHERE s.sae = l.sae AND s.latent = l.latent AND s.score = '{score}' AND s.part = '{part}')"""
            else:
                value = "(SELECT text FROM explanations e WHERE e.key = l.key)" if column == "explanation" else column
            for descending in (True, False):
                order = "DESC" if descending else "ASC"
                sql = f"SELECT latent FROM latents l WHERE sae = ? ORDER BY {value} {order} NULLS LAST, latent"
                latents = [
                    row["latent"]
                    for row in explorer.latents(name, sort=column, descending=descending, dead=True)["rows"]
                ]
                assert latents == [latent for (latent,) in explorer.store.ask(sql, (number,))], (name, column)
        for (rate,) in explorer.store.ask("SELECT rate FROM latents WHERE sae = ? AND firings > 0", (number,)):
            same = [
                latent
                for (latent,) in explorer.store.ask(
                    "SELECT latent FROM latents WHERE sae = ? AND rate = ? ORDER BY latent", (number, rate)
                )
            ]
            assert [row["latent"] for row in explorer.latents(name, min_rate=rate, max_rate=rate)["rows"]] == same


def test_a_search_puts_the_most_specific_latents_first(explorer):
    """F1 of firing as a detector of the token, times the share of the token that was typed, by hand."""
    for search in ("w1", "w3", "w"):
        for group in explorer.search(search, limit=500)["groups"]:
            side = {"solo-s0": ONE, "joint-s0": OTHER}[group["sae"]]
            expected = {}
            for i in range(12):
                places = of_latent(side, i)[0]
                on = Counter(side.tokens[places].tolist())
                for token in sorted(on, key=lambda entry, on=on: (-on[entry], entry))[:8]:
                    if f"w{token}".startswith(search):
                        f1 = 2 * on[token] / (len(places) + (side.tokens == token).sum())
                        expected[i] = max(expected.get(i, 0), f1 * len(search) / len(f"w{token}"))
            assert {row["latent"]: row["specific"] for row in group["rows"]} == pytest.approx(expected, rel=1e-6)
            specific = [row["specific"] for row in group["rows"]]
            assert specific == sorted(specific, reverse=True) and group["total"] == len(expected)


def test_the_match_of_a_latent_is_told_and_listed_by_its_cosine(explorer):
    told = explorer.matches("solo-s0", "joint-s0", range(12))
    rows = {row["latent"]: row for row in explorer.latents("solo-s0", dead=True)["rows"]}
    assert told and {i: row["match_cosine"] for i, row in rows.items() if row["match_cosine"] is not None} == {
        int(i): match["cosine"] for i, match in told.items()
    }
    back = explorer.matches("joint-s0", "solo-s0", [match["latent"] for match in told.values()])
    assert all(back[str(match["latent"])]["latent"] == int(i) for i, match in told.items())
    assert "0" not in told, "a latent that never fires has no match"
    with pytest.raises(KeyError):
        explorer.matches("solo-s0", "nobody", [1])


def test_the_document_round_a_token_is_shown_with_what_the_latent_does(explorer):
    fired, values = of_latent(ONE, 3)
    documents = np.asarray(ONE.documents)
    for place in (0, int(fired[0]), int(fired[-1]), ONE.n_tokens - 1):
        page = json.loads(json.dumps(explorer.document("solo-s0", 3, place)))
        own = np.flatnonzero(documents == documents[place])
        assert page["n_tokens"] == len(own) == len(page["tokens"]) and page["document"] == documents[place]
        assert own[0] + page["peak"] == place
        on = dict(zip(fired.tolist(), values.tolist(), strict=True))
        assert page["values"] == pytest.approx([on.get(int(token), 0) for token in own], rel=1e-5)
    assert explorer.document("solo-s0", 3, ONE.n_tokens - 1)["breaks"], "text that was not read leaves a break"
    with pytest.raises(KeyError):
        explorer.document("solo-s0", 3, ONE.n_tokens)


@pytest.mark.parametrize(
    "search",
    ["", " ", '"', "''", '""', "*", "a*", "AND", "OR", "NOT", "NEAR(a b)", "text:river", "-river", "^a", "a + b", "(",
     "\0", "a\0b", "\ud800", "🧪", "'; DROP TABLE latents; --", "x" * 100_000, "{a}", "\u202eabc", "%", "_"],
)  # fmt: skip
def test_no_search_breaks_anything(explorer, search):
    assert json.dumps(explorer.latents("solo-s0", search=search)).encode()
    assert json.dumps(explorer.search(search)).encode()
    assert explorer.latents("solo-s0")["total"] == 11


def test_an_empty_search_is_no_search(explorer):
    assert explorer.latents("solo-s0", search="")["total"] == 11
    assert explorer.search("")["groups"] == []


def test_what_is_not_there_is_a_key_error(explorer):
    for ask in (
        lambda: explorer.latents("solo-s9"),
        lambda: explorer.latent("solo-s9", 0),
        lambda: explorer.latent("solo-s0", 12),
        lambda: explorer.latent("solo-s0", -1),
        lambda: explorer.latent("solo-s0", "1"),
        lambda: explorer.latent("solo-s0", True),
        lambda: explorer.splits(pair="solo-s0 -> nobody"),
        lambda: explorer.splits(kind="nothing"),
        lambda: explorer.split("solo-s0.1.nobody"),
        lambda: explorer.compare_latents(("solo-s0", 1), ("solo-s0", 99)),
        lambda: explorer.briefs("solo-s0", [99]),
    ):
        with pytest.raises(KeyError):
            ask()


def test_the_overview_says_whose_scores_tell_nothing(explorer):
    (judge,) = explorer.overview()["judges"]
    doubt = "this encoder cannot tell: not above the floor: random 0.400 against 0.500"
    assert judge == {
        "sae": "solo-s0", "score": "embedding", "agreement": None, "doubt": doubt,
        "line": f"solo-s0, embedding: {doubt}",
    }  # fmt: skip


def test_explanations_scores_and_senses(explorer):
    page = explorer.latent("solo-s0", 5)
    assert page["explanation"] == {"text": 'says "river" OR <b>bank</b>', "judge": "a model"}
    assert page["scores"] == [{"score": "embedding", "part": "random", "value": 0.8, "chance": 0.5}]
    assert page["senses"] == [{"word": "bank", "sense": "river", "recall": 0.5, "share": 0.25, "f1": 0.3}]
    row = explorer.latents("solo-s0", sort="interp.embedding.random")["rows"][0]
    assert (row["latent"], row["interp.embedding.random"]) == (5, 0.8)
    assert explorer.latents("solo-s0", sort="interp.embedding.same_token")["rows"][0]["latent"] == 6
    assert explorer.briefs("solo-s0", [6])["6"]["explanation"] == "the bank of a river"


def test_hostile_text_survives(tmp_path):
    nasty = [
        "<script>alert(1)</script>",
        "\U0001f9ea",
        "a\0b",
        "\ud800",
        "\ud83e\uddea",
        "\u202e\u05e9\u05dc\u05d5\u05dd",
        "x" * 10_000,
        "",
        "\n",
    ]
    nasty += ["\"'\\", "&amp;"]
    documents, tokens, positions = text((10_000, 5), vocabulary=len(nasty), gap=False)
    on = np.random.default_rng(0).random((len(tokens), 3)) < 0.2
    write_arm(tmp_path, "solo-s0", firings_from(on, np.ones(on.shape), documents, tokens, positions))
    build(tmp_path, strings=lambda places: [nasty[tokens[place]] for place in places])
    explorer = Explorer(tmp_path)
    # a lone surrogate is no text; two that belong together are one character
    shown = [string.replace("\ud800", "\ufffd") if string != "\ud83e\uddea" else "\U0001f9ea" for string in nasty]
    page = json.loads(json.dumps(explorer.latent("solo-s0", 1), ensure_ascii=False).encode())
    for window in page["windows"]:
        assert window["tokens"] == [
            shown[tokens[place]] for place in range(window["place"], window["place"] + len(window["tokens"]))
        ]
    assert {row["id"]: row["token"] for row in page["tokens"]} == dict(enumerate(shown))
    assert {row["latent"] for row in explorer.latents("solo-s0", search="<script>")["rows"]} <= {0, 1, 2}


def test_readers_in_many_threads_see_the_same(explorer):
    def read(number):
        i = number % 12
        return i, json.dumps(
            [explorer.latent("solo-s0", i), explorer.latents("joint-s0", offset=i), explorer.search(f"w{i % 9}")]
        )

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(read, range(96)))
    assert len({answer for _, answer in answers}) == len({(i, answer) for i, answer in answers}) == 12


def test_questions_need_no_torch(run):
    code = (
        "import sys; from metasae.explore.pages.queries import Explorer; e = Explorer(sys.argv[1]); e.overview(); "
        "e.latents('solo-s0'); "
        "e.latent('solo-s0', 5); e.splits(); e.compare_latents(('solo-s0', 3), ('joint-s0', 4)); e.search('w1'); "
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)]).returncode == 0


def test_the_view_of_the_firings_is_the_one_that_is_written():
    from metasae.explore.pages.run_files import VIEW
    from metasae.measures.firing import by_latent

    assert by_latent.VIEW == VIEW


def test_a_searched_list_can_be_in_the_order_of_the_search(explorer):
    text = "w"
    (group,) = [group for group in explorer.search(text, limit=100)["groups"] if group["sae"] == "solo-s0"]
    listed = explorer.latents("solo-s0", search=text, sort="specific", dead=True)["rows"]
    assert [row["latent"] for row in listed] == [row["latent"] for row in group["rows"]]
    narrower = explorer.latents("solo-s0", search=text, sort="specific", min_rate=0.1)["rows"]
    assert [row["latent"] for row in narrower] == [row["latent"] for row in listed if row["rate"] >= 0.1] != []
    without = explorer.latents("solo-s0", sort="specific")["rows"]
    assert without == explorer.latents("solo-s0", sort="rate")["rows"]
