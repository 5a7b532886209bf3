"""The explorer of a finished store starts without torch.

torch takes seconds to import, and is needed for nothing but trying a text.
"""

import json
import subprocess
import sys

from explored import numbered, random_firings, write_arm

from metasae.explore.store.build import build

HEAVY = ("torch", "transformers", "scipy", "matplotlib", "plotly")
CHILD = """
import json, sys
from starlette.testclient import TestClient
from metasae.explore.web import server
from metasae.explore.store.build import build
run, heavy, addresses = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
build(run)
client = TestClient(server.app(run), base_url="http://localhost")
codes = {address: client.get(address).status_code for address in addresses}
print(json.dumps([codes, [name for name in heavy if name in sys.modules]]))
"""
ADDRESSES = (
    "/",
    "/api/overview",
    "/api/latents/solo-s0",
    "/api/latent/solo-s0/3",
    "/api/splits",
    "/api/compare?a=solo-s0:3&b=joint-s0:4",
)


def started(run):
    command = [sys.executable, "-c", CHILD, str(run), json.dumps(HEAVY), json.dumps(ADDRESSES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_finished_store_is_served_without_torch(tmp_path):
    for number, name in enumerate(("solo-s0", "joint-s0")):
        write_arm(tmp_path, name, random_firings(number), seed=number, meta=True)
    build(tmp_path, strings=numbered)
    codes, imported = started(tmp_path)
    assert set(codes.values()) == {200}, codes
    assert imported == []


def test_a_store_that_is_stale_is_built_anew(tmp_path):
    """With torch: whether there is something to do is looked at without it, and done with it."""
    write_arm(tmp_path, "solo-s0", None)
    write_arm(tmp_path, "joint-s0", None)
    before = build(tmp_path).stat().st_mtime_ns
    assert build(tmp_path).stat().st_mtime_ns == before
    (tmp_path / "compare.json").write_text(json.dumps({"baseline": "joint", "pairs": {}}))
    assert build(tmp_path).stat().st_mtime_ns != before
