import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the explorer needs starlette")
pytest.importorskip("httpx", reason="starlette's test client needs httpx")

from fake_explorer import FakeExplorer, fake_steer, fake_try
from starlette.testclient import TestClient

from metasae.errors import UserError
from metasae.explore.web import server
from metasae.explore.web.application import run_app
from metasae.explore.web.page_files import STATIC


@pytest.fixture
def explorer():
    return FakeExplorer()


@pytest.fixture
def client(explorer):
    return TestClient(run_app(explorer, fake_try, "127.0.0.1"), base_url="http://127.0.0.1:8000")


def test_the_page_and_its_files_are_served_with_the_policy(client):
    page = client.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
    for name in ("app.js", "style.css", "plotly.css", "icon.svg", "pages/latent.js"):
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff", name
    assert "javascript" in client.get("/app.js").headers["content-type"]


def test_no_page_has_inline_scripts_styles_or_foreign_addresses():
    for path in STATIC.rglob("*"):
        if path.suffix in (".html", ".js", ".css", ".svg"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text and "https://" not in text and "//cdn" not in text, path.name
            assert not any(
                word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
            ), path.name
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
    assert all("src=" in part.split(">")[0] for part in page.split("<script")[1:])


def test_plotly_comes_from_the_installed_package(client):
    pytest.importorskip("plotly")
    answer = client.get("/plotly.min.js")
    assert (
        answer.status_code == 200 and "javascript" in answer.headers["content-type"] and len(answer.content) > 1_000_000
    )


def test_every_answer_is_the_explorers(client, explorer):
    told = {**explorer.overview(), "steers": False}
    assert client.get("/api/overview").json() == json.loads(json.dumps(told))
    assert client.get("/api/latent/solo-s0/17").json() == json.loads(json.dumps(explorer.latent("solo-s0", 17)))
    assert client.get("/api/splits?kind=merges&offset=3&limit=2").json() == explorer.splits(
        kind="merges", offset=3, limit=2
    )
    assert client.get("/api/split/s0-5").json() == json.loads(json.dumps(explorer.split("s0-5")))
    assert client.get("/api/compare?a=solo-s0:17&b=joint-s0:4").json()["n_both"] == 11
    assert client.get("/api/search?q=bank&limit=3").json() == explorer.search("bank", limit=3)
    assert set(client.get("/api/briefs/solo-s0?ids=1,2").json()) == {"1", "2"}
    assert client.get("/api/matches/solo-s0/joint-s0?ids=3,4").json() == {"3": {"latent": 3, "cosine": 0.9}}
    assert client.get("/api/document/solo-s0/3/25").json() == explorer.document("solo-s0", 3, 25)


def test_filters_reach_the_explorer(client, explorer):
    asked = client.get(
        "/api/latents/joint-s0?sort=max&desc=0&search=bank&min_rate=0.0001&max_rate=0.1&offset=2&limit=5"
    ).json()
    assert asked == explorer.latents(
        "joint-s0", sort="max", descending=False, search="bank", min_rate=0.0001, max_rate=0.1, offset=2, limit=5
    )
    assert client.get("/api/latents/joint-s0").json() == explorer.latents("joint-s0")
    assert client.get("/api/latents/joint-s0?dead=1").json()["total"] == explorer.n


@pytest.mark.parametrize(
    "path",
    ["/api/latent/none-s0/1", "/api/latent/solo-s0/700", "/api/latents/none", "/api/split/x", "/api/split/12",
     "/api/splits?pair=x", "/api/nothing",
     "/api/compare?a=solo-s0:1&b=no:3"],
)  # fmt: skip
def test_what_is_not_there_is_404_in_one_line(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"} and answer.json()["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["/api/latents/solo-s0?sort=x", "/api/latents/solo-s0?offset=x", "/api/latents/solo-s0?min_rate=x",
     "/api/compare?a=1&b=2",
     "/api/briefs/solo-s0?ids=a"],
)  # fmt: skip
def test_wrong_parameters_are_400_in_one_line(client, path):
    answer = client.get(path)
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "named", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "8.8.8.8"]
)
def test_other_host_names_are_refused(client, named):
    for path in ("/", "/api/overview", "/app.js"):
        assert client.get(path, headers={"host": named}).status_code == 400


@pytest.mark.parametrize(
    "named", ["localhost", "localhost:9999", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"]
)
def test_names_of_this_machine_are_answered(client, named):
    assert client.get("/api/overview", headers={"host": named}).status_code == 200


def test_a_server_on_a_network_answers_to_addresses_but_not_to_foreign_names(explorer):
    client = TestClient(run_app(explorer, fake_try, "0.0.0.0"))
    assert client.get("/api/overview", headers={"host": "192.168.1.7:80"}).status_code == 200
    assert client.get("/api/overview", headers={"host": "evil.example"}).status_code == 400


STEER = {"sae": "solo-s0", "latent": 3, "text": "I think", "value": 2.5}


def test_steering_is_offered_where_the_model_is_causal_and_asked_for_by_a_known_latent(client, explorer):
    steers = TestClient(run_app(explorer, fake_try, "127.0.0.1", fake_steer), base_url="http://127.0.0.1:8000")
    assert steers.get("/api/overview").json()["steers"] is True
    assert steers.post("/api/steer", json=STEER).json() == fake_steer(**STEER)
    assert steers.post("/api/steer", json={**STEER, "latent": 700}).status_code == 404
    for wrong in ({"value": "2"}, {"value": True}, {"text": " "}, {"latent": "3"}, {"sae": 3}):
        assert steers.post("/api/steer", json={**STEER, **wrong}).status_code == 400
    refused = client.post("/api/steer", json=STEER)
    assert refused.status_code == 404 and "does not steer" in refused.json()["error"]


LABEL = {"target": {"kind": "latent", "sae": "solo-s0", "latent": 3}, "label": "junk", "note": "a note"}


def test_a_label_is_saved_and_taken_away(client, explorer):
    assert client.post("/api/label", json=LABEL).status_code == 200
    assert client.get("/api/latent/solo-s0/3").json()["labels"][0]["label"] == "junk"
    assert len(client.get("/api/labels").json()["labels"]) == 1
    client.post("/api/label", json={**LABEL, "label": None})
    assert explorer.given == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8001", "http://localhost:8000"])
def test_posts_from_other_origins_are_refused(client, explorer, origin):
    for path, body in (("/api/label", LABEL), ("/api/try", {"text": "a"})):
        assert client.post(path, json=body, headers={"origin": origin}).status_code == 403
    assert explorer.given == []


def test_posts_from_our_own_page_are_taken(client):
    assert (
        client.post(
            "/api/label", json=LABEL, headers={"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
        ).status_code
        == 200
    )
    assert client.post("/api/label", json=LABEL, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_posts_must_be_json(client, explorer):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/api/label", content=json.dumps(LABEL), headers={"content-type": kind}).status_code == 415
    json_kind = {"content-type": "application/json"}
    targets = [{"kind": "latent"}, {"kind": "x"}, {"kind": "split", "id": 3}, 3]
    wrong = [json.dumps({**LABEL, "target": target}) for target in targets]
    for body in (
        *wrong,
        "{",
        "[]",
        '"x"',
        json.dumps({"label": 3, "target": {}}),
        json.dumps({"label": "junk"}),
        b"\xff\xfe",
    ):
        assert client.post("/api/label", content=body, headers=json_kind).status_code == 400
    assert client.post("/api/label", json={**LABEL, "label": "made up"}).status_code == 400
    assert (
        client.post(
            "/api/label", json={"target": {"kind": "latent", "sae": "no", "latent": 1}, "label": "junk"}
        ).status_code
        == 404
    )
    assert client.post("/api/label", content=b" " * 1_100_000, headers=json_kind).status_code == 413
    assert explorer.given == []


def test_only_labels_and_texts_are_posted(client):
    for path in ("/api/overview", "/api/latents/solo-s0", "/"):
        assert client.post(path, json={}).status_code == 405
    assert client.delete("/api/label", headers={"content-type": "application/json"}).status_code == 405


def test_a_text_is_tried(client):
    answer = client.post("/api/try", json={"text": "one two"})
    assert answer.json() == fake_try("one two")
    for body in ({}, {"text": "  "}, {"text": 3}):
        assert client.post("/api/try", json=body).status_code == 400


def test_without_a_model_a_text_is_404_with_the_reason(explorer):
    def refused(text):
        raise UserError("this run's activations are planted")

    client = TestClient(run_app(explorer, refused, "127.0.0.1"), base_url="http://localhost")
    answer = client.post("/api/try", json={"text": "a"})
    assert answer.status_code == 404 and "planted" in answer.json()["error"]


def test_a_bug_is_500_in_one_line(explorer):
    def broken():
        raise RuntimeError("two\nlines")

    explorer.overview = broken
    application = run_app(explorer, fake_try, "127.0.0.1")
    client = TestClient(application, base_url="http://localhost", raise_server_exceptions=False)
    answer = client.get("/api/overview")
    assert answer.status_code == 500 and answer.json() == {"error": "RuntimeError: two lines"}


def test_files_outside_the_static_folder_are_not_served(client):
    for path in ("/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/static/../../server.py"):
        assert client.get(path).status_code == 404


def test_a_port_in_use_is_an_error_of_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            server.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError):
        server.listen("127.0.0.1", 99_999)
    with pytest.raises(UserError):
        server.listen("203.0.113.1", 0)


def test_answers_are_sent_at_once():
    with server.listen("127.0.0.1", 0) as listening:
        # by this asyncio knows that it may switch off waiting for acknowledgements
        assert listening.proto == socket.IPPROTO_TCP


SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_explorer import FakeExplorer
from metasae.explore.web import server
server.is_sweep = lambda folder: False
server.build = lambda *given, **named: None
server.Explorer = lambda run: FakeExplorer()
server.serve("a-run", open_browser=False)
"""


def test_it_says_where_it_is_and_stops_cleanly_on_ctrl_c():
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = child.stdout.readline()
        assert first, child.stderr.read()
        name, address = first.split()[:2]
        assert name == "a-run:" and address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}api/overview", timeout=60) as answer:
            assert json.load(answer)["run"]
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0 and said == ""
    finally:
        child.kill()
