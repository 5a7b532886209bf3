"""The pages of a sweep: what they are told, how they are served, and what a browser makes of them."""

import contextlib
import json
import shutil

import pytest

pytest.importorskip("starlette", reason="the explorer needs starlette")
pytest.importorskip("httpx", reason="starlette's test client needs httpx")

from made_sweep import FVU, L0, LIFT, NASTY, PHI, ROWS, result, write_sweep
from starlette.testclient import TestClient

from metasae.errors import UserError
from metasae.explore.pages.sweep_pages import cells_that_open, is_sweep, sweep_page
from metasae.explore.web import page_files, server
from metasae.explore.web.static_export import static_export

# a test waits for many things in the browser, each for as long as PATIENCE says
pytestmark = pytest.mark.timeout(300)
# Milliseconds that a page is waited for. A busy machine is slow, a page that is wrong never comes.
PATIENCE = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "a grid")


@pytest.fixture
def client(folder):
    return TestClient(server.app(folder), base_url="http://127.0.0.1:8000")


def test_a_folder_is_a_run_a_sweep_or_neither(folder, tmp_path):
    assert is_sweep(folder)
    (tmp_path / "run" / "arms").mkdir(parents=True)
    assert not is_sweep(tmp_path / "run")
    with pytest.raises(UserError, match=r"not a run folder \(no arms/\) nor a sweep \(no sweep.json\)"):
        is_sweep(tmp_path)
    (tmp_path / "begun" / "cells").mkdir(parents=True)
    (tmp_path / "begun" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="without a result yet"):
        is_sweep(tmp_path / "begun")


def test_neither_is_refused_in_one_line_by_both_ways_in(tmp_path):
    for attempt in (
        lambda: server.serve(tmp_path / "absent", open_browser=False),
        lambda: static_export(tmp_path / "absent", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="nor a sweep") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_page_has_every_cell_in_the_words_of_the_report(folder):
    page = sweep_page(folder)
    assert [cell["name"] for cell in page["cells"]] == ["aaa111", "bbb222", "ccc333", "ddd444", "eee555"]
    assert page["columns"] == [PHI, FVU, LIFT] and {LIFT, L0, ROWS} <= {
        quantity["key"] for quantity in page["quantities"]
    }
    worst = page["cells"][2]
    assert (
        worst["changes"][FVU]["clear"]
        and worst["changes"][FVU]["way"] == "worse"
        and worst["changes"][FVU]["change"].startswith("+13.3% [+12.3")
    )
    assert not worst["changes"][LIFT]["clear"] and worst["kappa"] == pytest.approx(1 / 3)
    assert page["cells"][4]["changes"] == {} and NASTY in page["cells"][4]["why"] and page["cells"][4]["kappa"] is None
    assert (page["tokens"], page["train_tokens"], page["best"], page["baseline"]) == (
        200_000,
        1_000_000,
        "bbb222",
        "solo of the same cell",
    )
    rows = page["equal_fvu"]["kinds"]
    assert rows["ortsae"][LIFT]["change"].startswith("-5.0%") and rows["c2r"][LIFT]["difference"] is None


def test_commands_are_for_the_folder_as_it_lies_now(folder, tmp_path):
    page = sweep_page(folder)
    assert page["cells"][0]["command"] == f"metasae explore '{folder}/cells/aaa111'" and page["cells"][0]["firings"]
    assert page["cells"][3]["command"] is None and not page["cells"][1]["firings"]
    assert page["confirm"]["command"] == f"metasae run '{folder}/best.toml' --out '{folder}-confirmed'"
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "best.toml").unlink()
    assert sweep_page(moved)["confirm"] is None
    assert sweep_page(folder, shown_as="grid")["cells"][0]["command"] == "metasae explore grid/cells/aaa111"


@pytest.mark.parametrize("broken", ["[]", "{}", '{"cells": 3}', "{"])
def test_a_damaged_result_is_one_line(tmp_path, broken):
    (tmp_path / "sweep.json").write_text(broken)
    with pytest.raises(UserError, match="again"):
        sweep_page(tmp_path)


def test_a_sweep_without_anything_done_has_a_page(tmp_path):
    nothing_done = {
        **result(),
        "cells": [],
        "front": [],
        "best": None,
        "confirm": None,
        "equal_fvu": None,
        "parallel": {"cells": [], "dimensions": []},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(nothing_done))
    page = sweep_page(tmp_path)
    assert page["cells"] == [] and page["columns"] == [] and page["confirm"] is None


def test_it_is_served_with_the_policy_and_only_to_this_machine(client, folder):
    page = client.get("/")
    assert (
        page.status_code == 200
        and page_files.OF_A_SWEEP in page.text
        and "unsafe" not in page.headers["content-security-policy"]
    )
    assert client.get("/api/sweep").json() == json.loads(json.dumps(sweep_page(folder)))
    assert client.get("/pages/sweep.js").status_code == 200 and client.get("/api/overview").status_code == 404
    assert client.get("/api/sweep", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_cells_own_pages_are_under_its_name(client, folder, monkeypatch):
    opened = []

    def build(cell, progress):
        opened.append(cell.name)
        if cell.name == "bbb222":
            raise UserError("the disk is full")

    monkeypatch.setattr(server, "build", build)
    monkeypatch.setattr(server, "Explorer", lambda cell: None)
    monkeypatch.setattr(server, "run_app", lambda explorer, try_text, host, steer: TellsItsPath())
    page = client.get("/cell/aaa111/")
    assert page_files.OF_A_CELL in page.text and client.get("/cell/aaa111/app.js").status_code == 200 and opened == []
    assert (
        client.get("/cell/aaa111/api/latent/solo-s0/1").text
        == client.get("/cell/aaa111/api/latent/solo-s0/1").text
        == "/api/latent/solo-s0/1"
    )
    assert opened == ["aaa111"]
    refused = client.get("/cell/bbb222/api/overview")
    assert refused.status_code == 400 and refused.json() == {"error": "the disk is full"}
    for name in ("eee555", "none", "..", "%2e%2e"):
        assert client.get(f"/cell/{name}/api/overview").status_code == 404, name
    assert set(cells_that_open(folder)) == {"aaa111", "bbb222", "ccc333"}


class TellsItsPath:
    async def __call__(self, scope, receive, send):
        path = scope["path"][len(scope["root_path"]) :].encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": path})


# ---- in a browser


@contextlib.contextmanager
def open_page(browser, address, width=1280, theme="light"):
    """A page of the browser; nothing may go to its console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    context.set_default_timeout(PATIENCE)
    page, problems = context.new_page(), []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(address)
    page.wait_for_selector("main h1")
    page.wait_for_function("document.getElementById('run').textContent !== 'metasae'")
    yield page
    assert problems == []
    context.close()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("plotly", reason="the explorer draws with plotly")
    pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    from playwright.sync_api import sync_playwright

    from tools.screenshots import OPTIONS, find_chromium

    try:
        chromium = find_chromium()
    except UserError as error:
        pytest.skip(str(error))
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=list(OPTIONS), timeout=PATIENCE)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def base(folder):
    from tools.screenshots import served

    with served(server.app(folder)) as address:
        yield address


def names(page):
    return page.locator(".cells tbody tr").evaluate_all("rows => rows.map(row => row.dataset.cell)")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_both_pages_load_fit_their_width_and_show_names_as_text(browser, base, width, theme):
    with open_page(browser, base, width, theme) as page:
        page.wait_for_selector(".chart .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        text = page.inner_text("main")
        shown = (
            "made by hand",
            NASTY,
            "behind after the first seed",
            "FVU not reached",
            "cofiring is not done",
            "Judged on other documents",
        )
        for words in (*shown, "200,000", "15 SAEs by 2 workers"):
            assert words in text, words
        assert page.locator("main script").count() == 0
        assert page.locator("#nav a:visible").all_inner_texts() == ["Sweep"] and page.inner_text("#run") == "a grid"
        page.goto(f"{base}#/cell/eee555")
        page.wait_for_selector("main:has-text('no latents to show')")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_table_is_sorted_and_the_address_keeps_it(browser, base):
    with open_page(browser, base) as page:
        assert names(page) == ["aaa111", "bbb222", "ccc333", "ddd444", "eee555"]
        page.click(".sort:has-text('dependence of firing')")
        assert names(page) == [
            "bbb222",
            "ccc333",
            "aaa111",
            "ddd444",
            "eee555",
        ]  # those without the number come last, either way
        page.click(".sort:has-text('dependence of firing')")
        assert names(page) == ["aaa111", "ccc333", "bbb222", "ddd444", "eee555"]
        assert page.get_attribute("th[aria-sort]", "aria-sort") == "descending"
        assert page.evaluate("document.activeElement.textContent").startswith("dependence of firing")
        page.reload()
        page.wait_for_selector(".cells")
        assert names(page) == ["aaa111", "ccc333", "bbb222", "ddd444", "eee555"]
        assert page.locator("tr[data-cell=ccc333] b.worse").inner_text().startswith("+13.3%")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:has-text('train.lambda2 0.1')")
        page.keyboard.press("]")
        page.wait_for_selector("h1:has-text('train.lambda2 0.3')")
        assert "nearest to the ideal" in page.inner_text("h1 + .tag + .tag") and "clearly worse" in page.inner_text(
            "main"
        )
        assert "/cells/bbb222'" in page.inner_text(".command code")
        page.click("nav a[data-page=sweep]")
        page.locator("tr[data-cell=ccc333] td >> nth=3").click()  # anywhere in the row
        page.wait_for_selector("h1:has-text('train.lambda2 1')")


def test_brushing_an_axis_keeps_the_cells_that_cross_there(browser, base):
    with open_page(browser, base) as page:
        axis = page.locator(f"[data-axis='{FVU}']")
        axis.scroll_into_view_if_needed()
        box = axis.bounding_box()
        x, bottom = box["x"] + box["width"] / 2, box["y"] + box["height"] - 8
        page.mouse.move(x, bottom - 0.3 * (box["height"] - 16))
        page.mouse.down()
        page.mouse.move(x, bottom - 0.7 * (box["height"] - 16), steps=3)
        page.mouse.up()
        assert names(page) == ["bbb222"] and "1 of 5 cells" in page.inner_text("main")
        assert (
            page.locator(".parallel polyline.on").count() == 1
            and page.get_attribute(f"[data-axis='{FVU}']", "aria-valuetext") == "keeps 0.16"
        )
        page.reload()
        page.wait_for_selector(".parallel .brush")
        assert names(page) == ["bbb222"]  # the address keeps the brush
        page.locator(f"[data-axis='{FVU}']").click()  # a click keeps all
        assert len(names(page)) == 5
        page.locator("[data-axis='train.lambda2']").focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Shift+ArrowUp")
        assert names(page) == ["aaa111", "bbb222"]
        page.keyboard.press("Escape")
        assert len(names(page)) == 5 and not page.locator("button:has-text('show all')").is_visible()
        page.select_option("[aria-label='Colour of the lines']", ROWS)
        assert (
            page.locator(".parallel polyline.none").count() == 1 and f"colour={ROWS}" in page.url
        )  # a cell without that number


def test_a_static_copy_shows_the_same_and_leaves_the_cells_out(browser, folder, base, tmp_path):
    from test_explore_browser import served_files

    out = static_export(folder, tmp_path / "pages").parent
    index = (out / "index.html").read_text()
    assert (
        page_files.STATIC_TAG in index
        and page_files.OF_A_SWEEP in index
        and str(folder) not in (out / "data" / "api" / "sweep.json").read_text()
    )
    static_export(folder, out)  # again, over itself
    with served_files(out) as address, open_page(browser, base) as one, open_page(browser, address) as other:
        texts = [page.inner_text("table.cells") for page in (one, other)]
        assert texts[0] == texts[1] and "static copy" in other.inner_text(".name")
        other.goto(f"{address}#/cell/aaa111")
        other.wait_for_selector('body[data-shown="#/cell/aaa111"]')
        assert (
            "not part of this static copy" in other.inner_text("main")
            and other.locator("a:has-text('Open them')").count() == 0
        )
