"""The pages in a real browser: one Chromium, one server on made-up numbers, and the same as a static export."""

import contextlib
import functools
import http.server
import socketserver
import threading

import pytest

pytest.importorskip("starlette", reason="the explorer needs starlette")
pytest.importorskip("uvicorn", reason="the explorer needs uvicorn")
pytest.importorskip("plotly", reason="the explorer draws with plotly")
pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")

from fake_explorer import NASTY, FakeExplorer, fake_steer, fake_try
from playwright.sync_api import TimeoutError, sync_playwright

from metasae.errors import UserError
from metasae.explore.web.application import run_app
from metasae.explore.web.static_export import static_export
from tools.screenshots import OPTIONS, find_chromium, served

# a test waits for many things, each for as long as PATIENCE says
pytestmark = pytest.mark.timeout(300)

PAGES = ["overview", "latents/solo-s0", "latent/joint-s0/17", "splits", "split/s0-5", "merges", "split/m0-2",
         "compare", "compare/solo-s0:17/joint-s0:4", "try", "search/bank"]  # fmt: skip
SAME = [
    "overview", "latents/solo-s0", "latents/solo-s0?sort=interp.detection.random", "search/money", "search/ban",
    "latents/solo-s0?search=bank&sort=max&min_rate=0.001", "latents/solo-s0?search=money",
    "latent/joint-s0/17", "latent/solo-s1/199", "splits", "merges", "split/s0-5", "split/m0-100",
]  # fmt: skip
# Milliseconds that a page is waited for. A busy machine is slow, a page that is wrong never comes.
PATIENCE = 60_000
# what a static copy leaves out on purpose, and figures, whose words come when they are drawn
LEFT_OUT = (
    ".labels, .toolbar, .pick, .chart, main > .page > p.note, .heads, .window button, section:has(> form), "
    "li:has([href='#/try'])"
)


@contextlib.contextmanager
def served_files(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as host:
        host.daemon_threads = True
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_address[1]}/"
        host.shutdown()


class Reader:
    """A page of the browser, with what its console said."""

    def __init__(self, browser, base, width=1280, theme="light"):
        self.base, self.problems = base, []
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.page.on(
            "console", lambda said: self.problems.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def open(self, path):
        self.page.goto(f"{self.base}#/{path}")
        self.arrived(path)
        return self.page

    def arrived(self, path, patience=PATIENCE):
        shown = "wanted => decodeURIComponent(document.body.dataset.shown || '') === wanted"
        self.page.wait_for_function(shown, arg=f"#/{path}", timeout=patience)

    def jump(self, key, path):
        """Presses g and the key.

        A busy machine may take longer between the two than the page waits, so it is tried again.
        """
        for patience in (5_000, 10_000, 20_000, PATIENCE):
            self.page.keyboard.press("g")
            self.page.keyboard.press(key)
            try:
                return self.arrived(path, patience)
            except TimeoutError:
                pass
        raise AssertionError(f"g {key} does not go to {path}")

    def text(self):
        return self.page.inner_text("main")


@pytest.fixture(scope="module")
def browser():
    try:
        chromium = find_chromium()
    except UserError as error:
        pytest.skip(str(error))
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=list(OPTIONS), timeout=PATIENCE)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def explorer():
    return FakeExplorer(n=200)


@pytest.fixture(scope="module")
def base(explorer):
    with served(run_app(explorer, fake_try, "127.0.0.1", fake_steer)) as address:
        yield address


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "deep" / "pages"
    static_export(FakeExplorer(n=200), folder)
    with served_files(folder.parent) as address:
        yield f"{address}pages/"


@pytest.fixture(scope="module")
def one_reader(browser, base):
    opened = Reader(browser, base)
    yield opened
    opened.context.close()


@pytest.fixture
def reader(one_reader):
    """One page for all tests that change nothing of it, as a new one reads all its scripts anew. Each begins with
    nothing kept and nothing open.
    """
    yield one_reader
    problems = list(one_reader.problems)
    one_reader.page.evaluate("localStorage.clear()")
    one_reader.page.goto("about:blank")
    one_reader.page.mouse.move(0, 0)
    one_reader.problems.clear()
    assert problems == []


NEEDS_A_NAME = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "spinbutton", "table", "image"}


def assert_a_screen_reader_hears_a_name_for_everything(reader, session, path):
    """And one heading. session: the browser's protocol."""
    page = reader.page
    if path == "try":
        page.click("button:has-text('an example')")
        page.wait_for_selector(".lines tbody tr")
    for summary in page.locator("main summary").all():
        summary.click()
    # a figure is drawn after the page is there
    page.wait_for_function(
        "() => [...document.querySelectorAll('.chart')].every((c) => c.querySelector('svg[aria-hidden]'))"
    )
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert [role for role, name in told if role in NEEDS_A_NAME and not name.strip()] == [], path
    assert page.locator("main h1").count() == 1, path


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_every_page_loads_without_errors_fits_its_width_and_is_named_for_a_screen_reader(browser, base, width, theme):
    reader = Reader(browser, base, width, theme)
    session = reader.context.new_cdp_session(reader.page)
    for path in PAGES:
        page = reader.open(path)
        if page.locator(".chart").count():
            page.wait_for_selector(".chart .main-svg")
        assert page.inner_text("h1, .toolbar >> nth=0"), path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than {width}"
        assert page.locator(".error").count() == 0, path
        # what is named does not depend on the width
        if width == 1280:
            assert_a_screen_reader_hears_a_name_for_everything(reader, session, path)
    assert reader.page.evaluate("document.documentElement.dataset.theme") == theme
    assert reader.problems == []
    reader.context.close()


def test_differences_within_pairs_are_drawn_where_a_score_has_pairs(reader):
    page = reader.open("overview")
    page.click("summary:has-text('Figures')")
    card = page.locator("section.card:has-text('Which scores become more common')")
    card.scroll_into_view_if_needed()
    pairs = card.locator(".chart[aria-label*='matched latents']")
    pairs.locator(".main-svg").first.wait_for()
    assert (
        "joint higher in 52.5% of 40 pairs, tied in 2.50%" in card.inner_text()
        and "a <b>judge</b>" in card.inner_text()
    )
    page.select_option("[aria-label=Score]", label="detection, random silent text")
    assert not pairs.is_visible() and "joint higher" not in card.inner_text()
    page.select_option("[aria-label=Score]", index=0)
    assert pairs.is_visible() and pairs.locator(".scatterlayer .trace").count() == 2


def test_tokens_are_text_whatever_they_hold(reader):
    page = reader.open("latent/joint-s0/8")
    shown = page.locator(".window").all_inner_texts()
    for token in (
        "<script>alert(1)</script>",
        "\U0001f9ea",
        "<0xE2>",
        "שלום",
        "<img src=x onerror=alert(2)>",
        '"quoted" & <b>',
        "↵",
    ):
        assert any(token in text for text in shown), token
    assert any("x" * 10_000 in text for text in shown)
    assert page.locator("main script, main img, main b").count() == 0
    assert page.locator(".window .text").first.get_attribute("dir") == "auto"
    assert len(NASTY) == 8


def test_a_space_that_belongs_to_a_token_is_seen(reader):
    reader.open("compare")
    told = """(tokens) => import(new URL("dom.js", document.querySelector("script[src]").src))
        .then(({ apart }) => apart(tokens).map((chip) => chip.textContent))"""
    assert reader.page.evaluate(told, [" bar", "bar", " x", "  ", "", "\n", "y", "y"]) == [
        "␣bar",
        "bar",
        "␣x",
        "␣␣",
        "∅",
        "↵",
        "y",
        "y",
    ]


def test_a_wrong_address_says_so_and_the_way_back_works(browser, base):
    reader = Reader(browser, base)
    wrong = {
        "latent/solo-s0/100000": "no latent 100000", "latents/none": "no SAE 'none'", "split/none": "no split 'none'",
        "nothing": "no page 'nothing'", "latent/solo-s0/x": "address", "compare/a/b": "is no latent",
    }  # fmt: skip
    for path, words in wrong.items():
        page = reader.open(path)
        assert words in reader.text(), path
    page.click("text=Go to the overview")
    reader.arrived("overview")
    assert all("404" in said for said in reader.problems)  # the browser's own word for what is not there
    reader.context.close()


def test_the_keyboard_goes_everywhere(reader):
    page = reader.open("overview")
    for key, path in (
        ("l", "latents"),
        ("s", "splits"),
        ("m", "merges"),
        ("c", "compare"),
        ("t", "try"),
        ("o", "overview"),
    ):
        reader.jump(key, path)
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("bank?")
    assert page.input_value("#search") == "bank?"
    page.keyboard.press("Escape")
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") != before

    reader.open("latents/solo-s0?sort=rate")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.locator(".row.chosen").get_attribute("data-row") == "1"
    page.keyboard.press("Enter")
    reader.arrived("latent/solo-s0/1")
    page.go_back()
    reader.arrived("latents/solo-s0?sort=rate")
    assert page.locator(".row.chosen").get_attribute("data-row") == "1"
    page.keyboard.press("Enter")
    reader.arrived("latent/solo-s0/1")
    page.keyboard.press("]")
    reader.arrived("latent/solo-s0/2")
    page.keyboard.press("[")
    reader.arrived("latent/solo-s0/1")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className").startswith("window")
    reader.open("splits")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    reader.arrived("split/s0-0")


def test_latents_are_searched_filtered_and_sorted_and_the_address_keeps_it(reader):
    page = reader.open("latents/solo-s0?sort=rate")
    assert page.inner_text(".toolbar .note") == "199 latents"
    page.fill("[data-search]", "about number 33")
    page.wait_for_function("() => document.querySelector('.toolbar .note').textContent === '1 latent'")
    assert page.locator(".vspace .id").inner_text() == "33" and "sort=specific" in page.url
    assert "search=about+number+33" in page.url
    page.reload()
    page.wait_for_function("() => document.querySelector('.toolbar .note')?.textContent === '1 latent'")
    page.fill("[data-search]", "")
    page.click("summary:has-text('Filters')")
    page.locator(".toolbar input[type=number]").first.fill("0.05")
    page.wait_for_function("() => document.querySelector('.toolbar .note').textContent === '4 latents'")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.toolbar .note').textContent === '199 latents'")
    page.click(".heads button:has-text('latent')")
    page.wait_for_function(
        "() => document.querySelector('.heads [aria-sort]').getAttribute('aria-sort') === 'ascending'"
    )
    page.click(".heads button:has-text('latent')")
    page.wait_for_function("() => document.querySelector('.vspace .row[data-row=\"0\"] .id')?.textContent === '198'")


def test_a_list_of_65536_rows_holds_only_those_in_sight(browser):
    with served(run_app(FakeList(), fake_try, "127.0.0.1")) as address:
        reader = Reader(browser, address)
        page = reader.open("latents/solo-s0?sort=rate")
        assert page.inner_text(".toolbar .note") == "65,536 latents"
        assert page.locator(".vspace .row").count() < 60
        page.evaluate("document.querySelector('.vlist').scrollTop = 1e9")
        page.wait_for_selector(".vspace .row[data-row='65535'] .id:has-text('65535')")
        assert page.locator(".vspace .row").count() < 60
        assert reader.problems == []
        reader.context.close()


class FakeList(FakeExplorer):
    def __init__(self):
        super().__init__(n=65_536, arms=("solo",), seeds=(0,))

    def latents(self, sae, *, offset=0, limit=100, **filters):
        rows = [self._row(sae, i) for i in range(offset, min(offset + limit, self.n))]
        return {
            "sae": sae,
            "total": self.n,
            "offset": offset,
            "columns": [{"key": "rate", "label": "rate", "kind": "number"}],
            "rows": rows,
        }


def test_what_is_outside_the_corrected_measures_is_not_drawn_as_clear_and_a_measure_of_pairs_is_shown(browser):
    with served(run_app(FakeMeasures(), fake_try, "127.0.0.1")) as address:
        reader = Reader(browser, address)
        page = reader.open("overview")
        page.click("summary:has-text('All measures')")
        # the words of a row that is not shown yet are empty
        page.wait_for_selector("[aria-label^='Measures of'] tbody tr:has-text('nearest-partner')")
        rows = {
            row.inner_text().split("\t")[0].split(" ")[0]: row
            for row in page.locator("[aria-label^='Measures of'] tbody tr:not(.group)").all()
        }
        assert {name: row.locator("circle.clear").count() for name, row in rows.items()} == {
            "FVU": 1,
            "mean": 0,
            "nearest-partner": 0,
        }
        assert "1.01" in rows["nearest-partner"].inner_text() and "seed 1" in rows["nearest-partner"].inner_text()
        reader.open("latents/control-s0")
        assert "Same weights as solo-s0" in " ".join(reader.text().split())
        assert reader.problems == []
        reader.context.close()


class FakeMeasures(FakeExplorer):
    """mean |phi| is outside the family; nearest-partner phi exists in the pair and for seed 1 only.

    control is solo without firings.
    """

    def __init__(self):
        super().__init__(arms=("solo", "joint", "control"))

    def overview(self):
        overview = super().overview()
        pair = overview["pairs"]["joint vs solo"]
        pair["cooccurrence.mean_abs_phi"]["p_holm"] = None
        pair["cooccurrence.nearest_phi"] |= {"n_seeds": 1, "values": [{"seed": 1, "a": 1.01, "b": 1.0}]}
        for arm in overview["arms"].values():
            arm["means"] = {key: value for key, value in arm["means"].items() if key != "cooccurrence.nearest_phi"}
        for sae in overview["saes"]:
            sae |= {"weights": sae["name"].replace("control", "solo"), "has_firings": sae["arm"] != "control"}
        return overview


def test_a_token_filters_the_windows_and_shows_its_value(reader):
    page = reader.open("latent/joint-s0/17")
    assert page.locator(".window").count() == 40
    page.hover(".window .t.on >> nth=0")
    assert "3 (100% of its largest)" in page.inner_text("#tip")
    peak = page.locator(".window .t.peak").first
    token = peak.inner_text().strip()
    peak.click()
    assert 0 < page.locator(".window").count() < 40
    assert all(text.strip() == token for text in page.locator(".window .t.peak").all_inner_texts())
    page.keyboard.press("Escape")
    assert page.locator(".window").count() == 40


def test_a_label_is_saved_and_there_after_a_reload(reader, explorer):
    page = reader.open("split/s0-7")
    page.fill(".labels input", "two banks")
    page.click(".labels button:has-text('sense split')")
    page.wait_for_selector(".labels :text('saved')")
    page.reload()
    reader.arrived("split/s0-7")
    assert page.locator("[aria-label=Label] button[aria-pressed=true]").inner_text() == "sense split"
    assert page.input_value(".labels input") == "two banks"
    reader.open("splits")
    assert page.locator(".item >> nth=7").locator(".tag").inner_text() == "sense split"
    reader.open("latent/solo-s0/3")
    page.click(".labels button:has-text('junk')")
    page.wait_for_selector(".labels :text('saved')")
    reader.open("latents/solo-s0?label=junk")
    assert page.inner_text(".toolbar .note") == "1 latent"
    reader.open("latent/solo-s0/3")
    page.click(".labels button:has-text('junk')")
    page.wait_for_selector(".labels :text('label removed')")
    assert len(explorer.given) == 1
    explorer.given.clear()


def test_splits_are_filtered_and_loaded_further(reader):
    page = reader.open("splits")
    assert page.locator(".item").count() == 50
    page.click("button:text-is('More')")
    page.wait_for_function("() => document.querySelectorAll('.item').length === 100")
    page.fill("[data-search]", "98")
    page.wait_for_function("() => document.querySelectorAll('.item').length === 2")  # as a parent, and as a child of 97
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelectorAll('.item').length === 50")
    page.fill("[data-search]", "118")  # not among the first 50
    page.wait_for_function("() => document.querySelectorAll('.item').length === 2")
    assert "No evidence that the penalty splits latents" in reader.text()
    assert "with a score above 0.1" in reader.text() and "186" in reader.text()
    page = reader.open("split/s0-5")
    assert page.locator("svg.flow").get_attribute("aria-label").startswith("Of 600 firings of solo-s0 5")
    assert page.locator(".window").count() == 12
    page.click("button:has-text('A 4')")
    assert page.locator(".window").count() == 4
    assert page.locator(".window .t.c0").count() == 4 and page.locator(".window .t.c1").count() == 0


def test_what_lives_on_is_shown_when_asked_for(reader):
    page = reader.open("splits")
    status = "document.querySelector('.toolbar [role=status]').textContent"
    assert page.evaluate(status) == "50 of 108 shown, 12 hidden, as their latents are in both SAEs"
    first = " ".join(page.locator(".item >> nth=0").inner_text().split())
    assert "The parent is gone (nearest other: joint-s0 2927, phi 0.410)" in first
    assert "existed before (as solo-s0 829, phi 0.900)" in first
    page.fill("[data-search]", "119")
    page.wait_for_function(f"() => {status} === '1 of 1 shown, 1 hidden, as their latents are in both SAEs'")
    page.check(".toolbar input[type=checkbox]")
    page.wait_for_function(f"() => {status} === '2 of 2 shown'")
    assert "The parent still exists (as joint-s0 2927, phi 0.920)" in " ".join(
        page.inner_text(".item >> nth=1").split()
    )
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => {status}.startsWith('50 of 108 shown')")
    assert not page.is_checked(".toolbar input[type=checkbox]")
    reader.open("split/s0-9")
    assert "The parent still exists (as joint-s0 2927, phi 0.920)" in " ".join(reader.text().split())


def test_a_text_is_tried_with_the_arms_side_by_side(reader):
    page = reader.open("try")
    page.fill("textarea", "one two three")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".lines tbody tr")
    # latent 3 of the arms matches (cosine .9); 5 has a match, too far off to be the same latent (.2)
    lines = [" ".join(line.split()) for line in page.locator(".lines tbody tr").all_inner_texts()]
    assert len(lines) == 3 and "only" not in lines[0] and lines[0].count("1.50") == 2
    assert [line.count("no match") for line in lines] == [0, 1, 1]
    assert [line.split()[-2:] for line in lines[1:]] == [["only", "solo"], ["only", "joint"]]
    assert page.locator(".window .t.on").count() == 3, "shaded without a click"
    page.click(".window button:has-text('two')")
    page.wait_for_selector("h2:has-text('two')")
    page.wait_for_function("() => document.querySelectorAll('.lines tbody tr').length === 2")
    page.click(".window button:has-text('two')")
    page.wait_for_function("() => document.querySelectorAll('.lines tbody tr').length === 3")
    page.click(".lines tbody button >> nth=0")
    assert page.locator(".window .t.on").count() == 2


def test_an_arm_with_the_weights_of_another_is_a_note(browser):
    with served(run_app(FakeMeasures(), fake_three, "127.0.0.1")) as address:
        reader = Reader(browser, address)
        page = reader.open("try")
        page.click("button:has-text('an example')")
        page.wait_for_selector(".lines tbody tr")
        assert page.locator(".lines thead th").all_inner_texts() == ["solo-s0", "joint-s0", "differs"]
        assert "control-s0 has the weights of solo-s0" in " ".join(reader.text().split())
        assert reader.problems == []
        reader.context.close()


def fake_three(text):
    answer = fake_try(text)
    return {**answer, "saes": {name: answer["saes"]["solo-s0"] for name in FakeMeasures().names}}


def test_a_latent_is_shown_on_a_text_and_steered_with_and_its_document_opens(reader):
    page = reader.open("latent/joint-s0/3")
    page.fill("[aria-label='A sentence of your own'], [placeholder='A sentence of your own']", "one two three")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=fires on 2 of 3 tokens")
    assert page.locator("[aria-label='Your text'] .t.on").all_inner_texts() == ["one", "three"]
    page.fill("[aria-label='Prompt']", "I think")
    page.fill(".labels input.short", "2.5")
    page.click("button:text-is('Generate')")
    page.wait_for_selector("text=joint-s0 3 at 2.5 <b>!</b>")
    page.locator(".window button:text-is('more text')").first.click()
    page.wait_for_selector(".window.document")
    assert "Document 4 of the evaluation text: tokens 100 to 129, of 60 tokens" in reader.text()
    assert page.locator(".window.document .t.peak").inner_text() == "word25"
    page.locator(".window button:text-is('more text')").first.click()
    assert page.locator(".window.document").count() == 0


def test_without_an_explanation_a_latent_is_told_by_its_tokens(reader):
    reader.open("latent/joint-s0/17")
    told = " ".join(reader.text().split())
    assert "It fires more often than chance on ␣money (30% of its firings, 9 times as often as chance)" in told
    heads = reader.page.locator("[aria-label='Tokens the latent fires on'] th").all_inner_texts()
    assert heads == ["token", "firings", "share", "lift", "of all"]
    reader.open("latent/joint-s0/18")
    assert "No judge" not in reader.text() and "about latent number 18" in reader.text()


def test_search_over_all_saes_is_grouped_and_the_most_specific_first(reader):
    page = reader.open("overview")
    page.keyboard.press("/")
    page.keyboard.type("money")
    page.keyboard.press("Enter")
    reader.arrived("search/money")
    assert page.locator("main h2").all_inner_texts() == ["solo-s0", "solo-s1", "joint-s0", "joint-s1"]
    assert "money" in page.inner_text(".item >> nth=0") and page.locator(".item .chips .token").count() > 10
    specific = [float(text.split("· ")[1]) for text in page.locator("ol >> nth=0 >> .numbers").all_inner_texts()]
    assert specific == sorted(specific, reverse=True)
    page.locator(".item >> nth=0").click(position={"x": 300, "y": 10})  # anywhere in the row
    page.wait_for_selector("h1:has-text('latent')")


def test_two_latents_are_chosen_by_a_token_or_from_the_examples(reader):
    page = reader.open("compare")
    assert page.locator(".item").count() == 3
    page.fill("[aria-label='Number or token of the first']", "17")
    page.fill("[aria-label='Number or token of the second']", "nowhere")
    page.click("button:text-is('Compare')")
    page.wait_for_selector("text=no latent of solo-s1 has “nowhere”")
    page.fill("[aria-label='Number or token of the second']", "money")
    page.click("button:text-is('Compare')")
    page.wait_for_selector("h1:has-text('solo-s0 17 and solo-s1')")
    page = reader.open("compare")
    page.click(".item a >> nth=0")
    page.wait_for_selector("h1:has-text('solo-s0 0 and joint-s0 0')")


def test_a_split_is_two_clicks_from_the_overview(reader):
    page = reader.open("overview")
    page.click("a:has-text('The clearest split')")
    page.wait_for_selector("h1:has-text('Split of')")
    reader.open("overview")
    page.click("nav a:has-text('Splits')")
    reader.arrived("splits")
    page.locator(".item >> nth=1").click(position={"x": 700, "y": 8})
    reader.arrived("split/s0-1")


def test_what_a_measure_means_comes_on_hover_focus_and_tap(reader):
    page = reader.open("overview")
    word = page.locator(".tile .term:has-text('FVU')")
    assert word.get_attribute("aria-description") == "what FVU means; lower is better"
    word.hover()
    assert page.inner_text("#tip") == "what FVU means; lower is better"
    page.mouse.move(5, 5)
    page.wait_for_selector("#tip", state="hidden")
    word.focus()
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    word.dispatch_event("click")  # a tap, with neither hover nor focus
    assert page.locator("#tip").is_visible()


def test_latents_open_on_a_preset_and_say_why(reader):
    page = reader.open("latents/joint-s0")
    group = "[aria-label='Latents worth a look']"
    assert page.inner_text(f"{group} [aria-pressed=true]") == "Most split"
    page.click(f"{group} button:has-text('Most changed')")
    page.wait_for_function("() => document.querySelector('.heads [aria-sort]').textContent.includes('cosine with its')")
    assert "lowest cosine with their match" in page.inner_text(group) and "sort=match_cosine" in page.url
    page.reload()
    page.wait_for_selector(f"{group} [aria-pressed=true]:has-text('Most changed')")
    page.click(".heads button:has-text('latent')")
    page.wait_for_function(f'() => !document.querySelector("{group} [aria-pressed=true]")')


def test_on_a_phone_the_change_stays_in_sight(browser, base):
    reader = Reader(browser, base, 390)
    page = reader.open("overview")
    page.click("summary:has-text('All measures')")
    row = page.locator("[aria-label^='Measures of'] tr:has-text('FVU')")
    row.wait_for()
    change = row.locator("td:has-text('+1.8%')").bounding_box()
    assert change["x"] + change["width"] <= 390
    assert all(page.locator(f".tile b:has-text('{text}')").bounding_box()["x"] < 390 for text in ("+1.8%", "−0.9%"))
    assert reader.problems == []
    reader.context.close()


def test_the_keyboard_alone_reaches_the_rows_and_opens_one(reader):
    page = reader.open("splits")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.item .whole')"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Split of')")


def test_numbers_are_never_written_with_an_exponent(reader):
    reader.open("compare")
    told = """(values) => import(new URL("dom.js", document.querySelector("script[src]").src)).then(
        ({ number, fixed, percent }) =>
            [values.map((value) => number(value)), fixed(-0.0004), fixed(0.41), percent(0.000065)])"""
    numbers = [0, 1, 12345.6, 31.94, 0.00723, 0.41, 9.999, -0.5, 0.0000123, 3.2e-9, None]
    assert reader.page.evaluate(told, numbers) == [
        ["0", "1", "12,346", "31.9", "0.00723", "0.410", "10.0", "−0.500", "0.000012", "3.2 × 10⁻⁹", "–"],
        "0.000",
        "0.410",
        "0.00650%",
    ]


def test_the_static_export_shows_what_the_server_shows(browser, base, exported, explorer):
    explorer.given.clear()
    server_reader, files_reader = Reader(browser, base), Reader(browser, exported)
    for path in SAME:
        texts = []
        for reader in (server_reader, files_reader):
            page = reader.open(path)
            page.evaluate("selector => document.querySelectorAll(selector).forEach(node => node.remove())", LEFT_OUT)
            texts.append(page.inner_text("main"))
        assert texts[0] == texts[1], path
    assert server_reader.problems == files_reader.problems == []
    server_reader.context.close()
    files_reader.context.close()


def test_the_static_export_switches_off_what_needs_the_server(browser, exported):
    reader = Reader(browser, exported)
    page = reader.open("try")
    assert "needs the model" in reader.text() and page.locator("textarea").count() == 0
    reader.open("latent/solo-s0/3")
    assert page.locator(".labels button").count() == 0 and "static copy" in page.inner_text(".labels")
    reader.open("compare/solo-s0:17/joint-s0:2")
    assert "holds no firings" in reader.text()
    reader.open("search/money")
    assert page.locator(".item").count() > 5
    assert reader.problems == []
    reader.open("latent/solo-s0/5000")
    assert "no latent 5000" in reader.text()
    reader.context.close()


def test_a_character_is_shaded_by_whichever_of_its_tokens_fires(reader):
    reader.open("compare")
    script = """([texts, kinds]) => import(new URL("windows.js", document.querySelector("script[src]").src)).then(
        ({ tokens }) => {
          const line = tokens(texts, (i) => kinds[i], (i) => `token ${i}`);
          return [line.textContent, [...line.children].map((t) => [t.textContent, t.className, t.dataset.i, t.hint()])];
        })"""

    def shown(texts, kinds):
        return reader.page.evaluate(script, [texts, kinds])

    texts = [" a", "", "", "😀", " b"]
    first = ["a😀 b", [["😀", "t on h3 peak", "1", "token 1"]]]
    assert shown(texts, ["", "on h3 peak", "", "on h2", ""]) == first
    assert shown(texts, ["", "on h3", "", "", ""]) == ["a😀 b", [["😀", "t on h3", "1", "token 1"]]]
    assert shown(texts, ["", "", "", "on h2", ""]) == ["a😀 b", [["😀", "t on h2", "3", "token 3"]]]
    # a token without any text at the end has nobody to stand with
    assert shown(["a", ""], ["", "on h1"]) == ["a∅", [["∅", "t on h1", "1", "token 1"]]]


def test_a_static_copy_opened_from_the_disk_says_what_to_run(browser, tmp_path):
    page_file = static_export(FakeExplorer(n=3), tmp_path / "pages", splits=3)
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("text=python -m http.server 8000", timeout=PATIENCE)
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") == "8px", "styled too"
    page.close()
