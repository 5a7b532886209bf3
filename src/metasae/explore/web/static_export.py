"""The explorer as files for any web host: the same pages, the store's answers as JSON beside them, no server.

    OUT/index.html, *.js, *.css, plotly.min.js
    OUT/data/api/index.json              which file holds what
    OUT/data/api/overview.json
    OUT/data/api/latents/SAE.json.gz     all rows of an SAE, by column
    OUT/data/api/latent/SAE/7.json.gz    latents 448 to 511, without what the text and the tables have (slim.py)
    OUT/data/api/text/1/0.json.gz        the first 4,096 tokens of the evaluation text
    OUT/data/api/splits/splits-0.json.gz the best splits of the first pair
    OUT/data/api/split/3.json.gz         splits 48 to 63, likewise

The pages read these where index.html carries the tag `metasae-static`. Trying a text and giving labels need the server.
Browsers load modules over http only: opened from the disk the page says to run `python -m http.server` in its folder.
"""

import gzip
import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

from metasae import files
from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.explore.pages.sweep_pages import is_sweep, sweep_page
from metasae.explore.store.blobs import SEARCHED, short, token_f1
from metasae.explore.store.build import build
from metasae.explore.store.open_store import CHUNK
from metasae.explore.web.page_files import OF_A_SWEEP, STATIC, STATIC_TAG, plotly_script, tagged
from metasae.explore.web.slim import slim_latent, slim_windows
from metasae.progress.progress import SILENT, Progress

LATENTS_A_FILE = 64
SPLITS_A_FILE = 16
ROWS = 500
# of each pair; there are thousands, and all but the first are chance
SPLITS = 200
# Of a latent its searched tokens, each with how specific it is to it (`token_f1`).
Searched = list[tuple[str, float]]


def static_export(
    run, out: str | Path, progress: Progress = SILENT, *, splits: int = SPLITS, processes: int = 1
) -> Path:
    """Writes the pages with all their data to `out` and returns its index.html.

    run: a run folder, whose store is built where it is missing or stale, a sweep's folder, or anything with the methods
    of `Explorer`. splits: the number of each pair of SAEs, the best first, at most 500. processes: how many write the
    latents of a run folder at once; a script that asks for several begins under `if __name__ == "__main__":`, as
    multiprocessing wants it. Raises UserError when `out` holds something else, or cannot be written.
    """
    out, run = Path(out), Path(run) if isinstance(run, str) else run
    of_sweep = isinstance(run, Path) and is_sweep(run)
    _refuse_other(out)
    if isinstance(run, Path) and not of_sweep:
        build(run, progress)
    # an earlier export goes
    shutil.rmtree(out / "data", ignore_errors=True)
    (out / "index.html").unlink(missing_ok=True)
    if of_sweep:
        # the cells' own explorers are not among the files
        files.write_json(out / "data" / "api" / "sweep.json", sweep_page(run, shown_as=run.resolve().name))
    else:
        _write_run(run, out / "data" / "api", progress, splits, processes)
    shutil.copytree(STATIC, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html"))
    shutil.copyfile(plotly_script(), out / "plotly.min.js")
    # last, so that a folder with an index.html is whole
    files.write_text(out / "index.html", tagged(STATIC_TAG, OF_A_SWEEP) if of_sweep else tagged(STATIC_TAG))
    progress.say(f"to look at it here: python -m http.server --directory {out}")
    return out / "index.html"


def _write_run(run, api: Path, progress: Progress, splits: int, processes: int) -> None:
    # the store may be another than at an earlier export
    _opened.cache_clear()
    explorer = _opened(run)
    overview = explorer.overview()
    files.write_text(api / "overview.json", _text(overview))
    sizes = {sae["name"]: sae["n"] for sae in overview["saes"]}
    stems = _stems(list(sizes))
    places = [
        (name, first, min(first + LATENTS_A_FILE, n))
        for name, n in sizes.items()
        for first in range(0, n, LATENTS_A_FILE)
    ]
    searched: dict[str, list[Searched]] = {name: [] for name in stems}
    write = partial(_write_latents, run, api, stems)
    # a forked copy of this process would share its threads' locks
    pool = ProcessPoolExecutor(processes, get_context("spawn")) if processes > 1 else nullcontext()
    with pool, progress.task("pages as files", sum(sizes.values()), "latents") as task:
        written = pool.map(write, places, chunksize=4) if processes > 1 else map(write, places)
        for (name, first, end), tokens in zip(places, written, strict=True):
            searched[name] += tokens
            task.advance(end - first)
    for name, stem in stems.items():
        _write_table(explorer, name, sizes[name], api / "latents" / f"{stem}.json.gz", searched[name])
    texts = explorer.texts()
    for number in sorted(set(texts.values())):
        for chunk, told in enumerate(explorer.text_chunks(number)):
            _pack(api / "text" / str(number) / f"{chunk}.json.gz", told)
    index = {"saes": stems, "most": splits, "texts": texts, "chunk": CHUNK, **_write_splits(explorer, api, splits)}
    files.write_text(api / "index.json", _text(index))


@lru_cache(maxsize=1)
def _opened(run):
    """A run's explorer, opened once in each process."""
    return Explorer(run) if isinstance(run, Path) else run


def _refuse_other(out: Path) -> None:
    """Raises UserError where `out` holds something else than an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / "index.html"
    # an export that was cut off has data/api, but no index.html yet
    ours = (
        STATIC_TAG in page.read_text(encoding="utf-8", errors="replace")
        if page.is_file()
        else (out / "data" / "api").is_dir()
    )
    if not ours:
        raise UserError(f"{out} is there already and is no export of the explorer; choose another folder")


def _write_latents(run, api: Path, stems: dict[str, str], place: tuple[str, int, int]) -> list[Searched]:
    """Writes one file of latents; returns for each the tokens by which it is searched, and how specific it is to each.

    place: the SAE, its first latent there and the end.
    """
    name, first, end = place
    block = {str(i): _opened(run).latent(name, i) for i in range(first, end)}
    with_text = name in _opened(run).texts()
    slim = {i: slim_latent(page, with_text) for i, page in block.items()}
    _pack(api / "latent" / stems[name] / f"{first // LATENTS_A_FILE}.json.gz", slim)
    return [_searched(latent) for latent in block.values()]


def _searched(latent: dict) -> Searched:
    firings = latent["scalars"]["firings"]
    return [
        (entry["token"], short(token_f1(entry["with"], firings, entry["count"])))
        for entry in latent["tokens"][:SEARCHED]
    ]


def _write_table(explorer, name: str, n: int, path: Path, searched: list[Searched]) -> None:
    """Writes all rows of an SAE of n latents."""
    ask = partial(explorer.latents, name, sort="latent", descending=False, dead=True)
    rows = [row for offset in range(0, n, ROWS) for row in ask(offset=offset, limit=ROWS)["rows"]]
    # a row has only the scores that its latent has
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [row.get(key) for row in rows] for key in keys}
    _pack(path, {"columns": ask(limit=1)["columns"], "n": len(rows), "values": values, "searched": searched})


def _write_splits(explorer, api: Path, most: int) -> dict:
    """Writes the lists of every pair, and every split in them; returns their part of index.json."""
    pairs: dict[str, dict[str, str]] = {}
    ids: dict[str, None] = {}
    for kind in ("splits", "merges"):
        first = explorer.splits(kind=kind)
        named = dict.fromkeys([*first["pairs"], *first.get("base_pairs", ())])
        pairs[kind] = {pair: f"{kind}-{number}" for number, pair in enumerate(named)}
        for pair, stem in pairs[kind].items():
            answer = explorer.splits(pair, kind=kind, limit=most, kept=True)
            # `found` says how many there are, with those that are hidden at first
            told = {**answer, "total": len(answer["rows"]), "found": answer["total"]}
            _pack(api / "splits" / f"{stem}.json.gz", told)
            ids |= dict.fromkeys(row["id"] for row in answer["rows"])
        if not pairs[kind]:
            _pack(api / "splits" / f"{kind}-0.json.gz", first)
    blocks: dict[str, int] = {}
    for start in range(0, len(ids), SPLITS_A_FILE):
        block, number = list(ids)[start : start + SPLITS_A_FILE], start // SPLITS_A_FILE
        blocks |= dict.fromkeys(block, number)
        _pack(api / "split" / f"{number}.json.gz", {id: _split(explorer, id) for id in block})
    return {"pairs": pairs, "splits": blocks}


def _split(explorer, id: str) -> dict:
    page = explorer.split(id)
    return slim_windows(page, page["parent"]["sae"] in explorer.texts())


def _stems(names: list[str]) -> dict[str, str]:
    """The file name of every SAE: its own name where every web host can serve it, else its number."""
    return {
        name: name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) else str(number)
        for number, name in enumerate(names)
    }


def _pack(path: Path, answer: dict) -> None:
    """Writes a larger file as gzip, six times smaller; the pages unpack it.

    It holds no time, so that equal answers give equal files.
    """
    packed = gzip.compress(_text(answer).encode(), 6, mtime=0)
    files.write(path, lambda part: part.write_bytes(packed))


def _text(answer: dict) -> str:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
