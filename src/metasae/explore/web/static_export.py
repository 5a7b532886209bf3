"""The explorer as files for any web host: the same pages, the store's answers as JSON beside them, no server.

    OUT/index.html, *.js, *.css, plotly.min.js
    OUT/data/api/index.json              which file holds what
    OUT/data/api/overview.json
    OUT/data/api/latents/SAE.json.gz     all rows of an SAE, by column
    OUT/data/api/latent/SAE/7.json.gz    latents 448 to 511, whole
    OUT/data/api/splits/splits-0.json.gz the best splits of the first pair
    OUT/data/api/split/3.json.gz         splits 48 to 63, whole

The pages read these where index.html carries the tag `metasae-static`. Trying a text and giving labels need the server.
Browsers load modules over http only: a folder opened from the disk shows nothing, `python -m http.server` does.
"""

import gzip
import json
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

from metasae import files
from metasae.errors import UserError
from metasae.explore.store.token_blobs import SEARCHED
from metasae.explore.web.server import STATIC, plotly_script
from metasae.progress.progress import SILENT, Progress

LATENTS_A_FILE = 64
SPLITS_A_FILE = 16
ROWS = 500
# of each pair; there are thousands, and all but the first are chance
SPLITS = 200
TAG = '<meta name="metasae-static" content="1">'


def static_export(
    run, out: str | Path, progress: Progress = SILENT, *, splits: int = SPLITS, processes: int = 1
) -> Path:
    """Writes the pages and all they show to `out` and returns its index.html.

    run: a run folder, whose store is built where it is missing or stale, a sweep's folder, or anything with the methods of
    `metasae.explore.pages.queries.Explorer`. splits: so many of each pair of SAEs, the best first. processes: that write the latents of a run
    folder side by side; a script that asks for several begins under `if __name__ == "__main__":`, as multiprocessing wants it.
    Raises UserError when `out` holds something else, or cannot be written.
    """
    out, folder = Path(out), Path(run) if isinstance(run, (str, Path)) else None
    if folder is not None:
        from metasae.explore.pages.sweep_pages import is_sweep
        from metasae.explore.store.build import build
        from metasae.explore.web.sweep_server import write_sweep

        _refuse_other(out)
        if is_sweep(folder):
            _clear(out)
            return write_sweep(folder, out, TAG)
        build(folder, progress)
        run = _opened(folder)
    _clear(out)
    overview, api = run.overview(), out / "data" / "api"
    _write(api / "overview.json", overview)
    shutil.copytree(STATIC, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html"))
    shutil.copyfile(plotly_script(), out / "plotly.min.js")
    stems, sizes = (
        _stems([sae["name"] for sae in overview["saes"]]),
        {sae["name"]: sae["n"] for sae in overview["saes"]},
    )
    places = [
        (name, first, min(first + LATENTS_A_FILE, n))
        for name, n in sizes.items()
        for first in range(0, n, LATENTS_A_FILE)
    ]
    searched: dict[str, list[list[str]]] = {name: [] for name in stems}
    with (
        progress.task("pages as files", sum(sizes.values()), "latents") as task,
        _workers(processes, folder, run) as each,
    ):
        for (name, first, end), found in zip(places, each(partial(_write_latents, api, stems), places), strict=True):
            searched[name] += found
            task.advance(end - first)
    for name, stem in stems.items():
        _write_table(run, name, api / "latents" / f"{stem}.json.gz", searched[name])
    _write(api / "index.json", {"saes": stems, "most": splits, **_write_splits(run, api, splits)})
    # last, so that a folder with an index.html is whole
    page = (STATIC / "index.html").read_text(encoding="utf-8").replace("<title>", f"{TAG}\n<title>", 1)
    files.write_text(out / "index.html", page)
    return out / "index.html"


@contextmanager
def _workers(processes: int, folder: Path | None, explorer):
    """map(call, places) -> call(explorer, place) of each in order, by several processes where there is a folder that each can open."""
    if folder is None or processes < 2:
        yield lambda call, places: (call(explorer, place) for place in places)
        return
    # a copy of this process would share its threads' locks
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            yield lambda call, places: pool.map(partial(_in_process, call, folder), places, chunksize=4)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_process(call, folder: Path, place):
    return call(_kept(folder), place)


@lru_cache(maxsize=1)
def _kept(folder: Path):
    """The run of a process that writes latents for another."""
    return _opened(folder)


def _opened(folder: Path):
    from metasae.explore.pages.queries import Explorer

    return Explorer(folder)


def _refuse_other(out: Path) -> None:
    """Raises UserError where `out` holds something else than an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / "index.html"
    # an export that was cut off has data/api, but no index.html yet
    ours = (
        TAG in page.read_text(encoding="utf-8", errors="replace") if page.is_file() else (out / "data" / "api").is_dir()
    )
    if not ours:
        raise UserError(f"{out} is there already and is no export of the explorer; choose another folder")


def _clear(out: Path) -> None:
    """Takes an earlier export away."""
    _refuse_other(out)
    shutil.rmtree(out / "data", ignore_errors=True)
    (out / "index.html").unlink(missing_ok=True)


def _write_latents(api: Path, stems: dict[str, str], explorer, place: tuple[str, int, int]) -> list[list[str]]:
    """One file of latents; gives the tokens by which each is searched. place: the SAE, its first latent there and the end."""
    name, first, end = place
    block = {str(i): explorer.latent(name, i) for i in range(first, end)}
    _pack(api / "latent" / stems[name] / f"{first // LATENTS_A_FILE}.json.gz", block)
    return [[entry["token"] for entry in latent["tokens"][:SEARCHED]] for latent in block.values()]


def _write_table(explorer, name: str, path: Path, searched: Iterable[list[str]]) -> None:
    """All rows of an SAE."""
    rows, total = [], None
    while total is None or len(rows) < total:
        answer = explorer.latents(name, sort="latent", descending=False, dead=True, offset=len(rows), limit=ROWS)
        total = answer["total"]
        if not answer["rows"]:
            break
        rows += answer["rows"]
    # a row has only the scores that its latent has
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [row.get(key) for row in rows] for key in keys}
    _pack(path, {"columns": answer["columns"], "n": len(rows), "values": values, "searched": searched})


def _write_splits(explorer, api: Path, most: int) -> dict:
    """The lists of every pair, and every split in them; gives what index.json says of them."""
    pairs: dict[str, dict[str, str]] = {}
    ids: list = []
    for kind in ("splits", "merges"):
        first = explorer.splits(kind=kind)
        named = dict.fromkeys([*first["pairs"], *first.get("base_pairs", ())])
        pairs[kind] = {pair: f"{kind}-{number}" for number, pair in enumerate(named)}
        for pair, stem in pairs[kind].items():
            answer = _best_splits(explorer, pair, kind, most)
            _pack(api / "splits" / f"{stem}.json.gz", answer)
            ids += [row["id"] for row in answer["rows"]]
        if not pairs[kind]:
            _pack(api / "splits" / f"{kind}-0.json.gz", first)
    ids = list(dict.fromkeys(ids))
    blocks = {}
    for block in range(0, len(ids), SPLITS_A_FILE):
        part = ids[block : block + SPLITS_A_FILE]
        blocks |= {str(id): block // SPLITS_A_FILE for id in part}
        _pack(api / "split" / f"{block // SPLITS_A_FILE}.json.gz", {str(id): explorer.split(id) for id in part})
    return {"pairs": pairs, "splits": blocks}


def _best_splits(explorer, pair: str, kind: str, most: int) -> dict:
    """The first `most`; `found` says how many there are."""
    answer = explorer.splits(pair, kind=kind, limit=min(ROWS, most))
    found, total = answer["total"], min(answer["total"], most)
    while len(answer["rows"]) < total:
        more = explorer.splits(
            pair, kind=kind, offset=len(answer["rows"]), limit=min(ROWS, total - len(answer["rows"]))
        )["rows"]
        if not more:
            break
        answer["rows"] += more
    return {**answer, "total": total, "found": found}


def _stems(names: list[str]) -> dict[str, str]:
    """A file's name for every SAE: its own where any host can serve that, else its number."""
    return {
        name: name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) else str(number)
        for number, name in enumerate(names)
    }


def _write(path: Path, answer: dict) -> None:
    files.write_text(path, _text(answer))


def _pack(path: Path, answer: dict) -> None:
    """The larger files, six times smaller; the pages unpack them. Without a time in them, equal answers give equal files."""
    packed = gzip.compress(_text(answer).encode(), 6, mtime=0)
    files.write(path, lambda part: part.write_bytes(packed))


def _text(answer: dict) -> str:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
