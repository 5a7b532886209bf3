"""Times the explorer's store: how fast it is built and how large it is, and how long the questions of its pages take.

    python benchmarks/explorer.py                        two arms of 20,480 latents on 200,000 tokens, drawn from a seed
    python benchmarks/explorer.py --latents 3072 --json
    python benchmarks/explorer.py --run RUN              the questions alone, of a store that is there
    python benchmarks/explorer.py --folder DIR           keeps the made-up run

The store's rate is that of its pass over the firings (windows, tokens, histograms). What follows it (phi with every
latent, cosines, splits) grows with the square of the latents and is told apart. Every latent has an explanation, so
that a common word stands in nearly all. Questions are asked by several threads at once, each of other latents; a time
is from question to JSON text, as a page waits for it, and beside it the processor's time for that, which other programs
on the machine change little.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

D, L0, VOCABULARY, DOCUMENT = 384, 32, 20_000, 800


def made_up_firings(n_latents: int, n_tokens: int, seed: int):
    """Tokens drawn by Zipf's law; most of a token's latents follow from which token it is, the others are drawn at
    random."""
    from metasae.measures.firing.firings import Firings

    # the text is the same for every arm
    tokens = (np.random.default_rng(0).zipf(1.3, n_tokens) % VOCABULARY).astype(np.int32)
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 1, n_latents))
    table = rng.choice(n_latents, (VOCABULARY, L0), p=weights / weights.sum()).astype(np.int32)
    latents = np.concatenate([table[tokens], rng.integers(n_latents, size=(n_tokens, L0 // 2), dtype=np.int32)], axis=1)
    latents[rng.random(latents.shape) < 1 / 3] = n_latents
    latents.sort(axis=1)
    kept = latents < n_latents
    kept[:, 1:] &= latents[:, 1:] != latents[:, :-1]
    place = np.arange(n_tokens, dtype=np.int32)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int64)
    values = (0.5 + rng.gamma(1.5, 0.6, int(indptr[-1]))).astype(np.float32)
    return Firings(indptr, latents[kept], values, n_latents, place // DOCUMENT, tokens, place % DOCUMENT)


def write_run(folder: Path, n_latents: int, n_tokens: int) -> None:
    """Two arms of one seed: weights, firings and what measures.json must have."""
    import torch

    from metasae.measures.firing.arrays import ArrayFile, whole_folder, write_index
    from metasae.measures.firing.by_latent import write_by_latent
    from metasae.measures.firing.store import STORE
    from metasae.sae.sae import SAE, SAEConfig

    for number, arm in enumerate(("solo", "joint")):
        place = folder / "arms" / f"{arm}-s0"
        sae = SAE(SAEConfig(d_in=D, d_sae=n_latents, k=L0))
        sae.init_weights(torch.Generator().manual_seed(number))
        sae.threshold = torch.full([n_latents], 0.5)
        sae.save(place / "primary")
        firings = made_up_firings(n_latents, n_tokens, number + 1)
        with whole_folder(place / "firings", STORE) as part, ExitStack() as stack:
            files = {
                name: stack.enter_context(closing(ArrayFile(part, name, dtype))) for name, dtype in STORE.arrays.items()
            }
            for name, file in files.items():
                file.append(getattr(firings, name))
            stack.close()
            entries = {name: file.entry() for name, file in files.items()}
            write_index(
                part, STORE, {"n_tokens": n_tokens, "n_latents": n_latents, "n_firings": len(firings.indices)}, entries
            )
        write_by_latent(place / "firings")
        (place / "measures.json").write_text(
            json.dumps({"conditions": {"sae": f"made up {arm}", "n_tokens": n_tokens}})
        )
        (place / "interp.json").write_text(json.dumps(made_up_interp(n_latents, number + 1)))


def made_up_interp(n_latents: int, seed: int) -> dict:
    """Twelve words for every latent, drawn by Zipf's law, and three scores."""
    rng = np.random.default_rng([seed, 1])
    words, scores = rng.zipf(1.3, (n_latents, 12)) % 5000, rng.random((n_latents, 3)).tolist()
    said = [" ".join(map(word_of, row)) for row in words.tolist()]
    latents = {
        str(i): {
            "explanation": text,
            "judge": "made up",
            "detection": {"random": a, "same_token": b},
            "fuzzing": {"random": c},
        }
        for i, (text, (a, b, c)) in enumerate(zip(said, scores, strict=True))
    }
    return {"conditions": {}, "scores": {}, "latents": latents}


def word_of(number: int) -> str:
    """Four syllables, so that words begin in many ways."""
    return "".join("bdgklmnprstvz"[number // 13**place % 13] + "aeiou"[number // 5**place % 5] for place in range(4))


def build_timed(run: Path) -> dict:
    from metasae.explore.store import firing_rows
    from metasae.explore.store.build import build
    from metasae.explore.store.writing import Writer

    spent, plain, write, processor = [], firing_rows.write_latents, Writer.write, {}

    def timed(store, number, view, *rest):
        begin = time.perf_counter()
        plain(store, number, view, *rest)
        spent.append((view.n_latents, time.perf_counter() - begin))

    def counted(writer, section):
        begin = time.process_time()
        write(writer, section)
        processor[section.name] = time.process_time() - begin

    firing_rows.write_latents, Writer.write = timed, counted
    try:
        begin = time.perf_counter()
        path = build(run, strings=lambda places: [f" token{place}" for place in places.tolist()])
        whole = time.perf_counter() - begin
    finally:
        firing_rows.write_latents, Writer.write = plain, write
    with closing(sqlite3.connect(path)) as store:
        parts = dict(store.execute("SELECT name, seconds FROM parts"))
    return {
        "latents per second of the pass": sum(n for n, _ in spent) / sum(seconds for _, seconds in spent),
        "seconds of the pass": sum(seconds for _, seconds in spent),
        "seconds": whole,
        "seconds by part": {
            name: {"seconds": seconds, "of a processor": processor[name]} for name, seconds in parts.items()
        },
        "latents per second over all": sum(n for n, _ in spent) / whole,
    }


def questions(explorer, seed: int, count: int):
    """(name, call), `count` of each kind in random order, about other latents every time."""
    rng = np.random.default_rng(seed)
    saes = [facts for facts in explorer.store.saes.values() if facts.has_firings] or list(explorer.store.saes.values())
    pairs = explorer.splits()
    some = [row["id"] for row in pairs["rows"]]
    sorts = ("rate", "max", "nearest_phi", "nearest_cosine", "split_score", "latent")
    asked = []
    for _ in range(count):
        one, other = (saes[rng.integers(len(saes))] for _ in range(2))
        i, j, offset = int(rng.integers(one.n)), int(rng.integers(other.n)), int(rng.integers(one.n))
        sort, number = sorts[rng.integers(len(sorts))], int(rng.integers(20))
        words = f"token{number}" if rng.random() < 0.5 else word_of(number)
        # as it is typed
        words = words[: rng.integers(1, 1 + len(words))] if rng.random() < 0.2 else words
        asked += [
            ("overview", lambda: explorer.overview()),
            ("latents, sorted", lambda one=one, sort=sort: explorer.latents(one.name, sort=sort)),
            (
                "latents, deep in the table",
                lambda one=one, offset=offset, sort=sort: explorer.latents(one.name, sort=sort, offset=offset),
            ),
            ("latents, searched", lambda one=one, words=words: explorer.latents(one.name, search=words)),
            ("latents, by rate", lambda one=one: explorer.latents(one.name, min_rate=1e-3, max_rate=1e-2)),
            ("latent", lambda one=one, i=i: explorer.latent(one.name, i)),
            ("splits", lambda offset=offset: explorer.splits(offset=offset % 100)),
            (
                "compare",
                lambda one=one, other=other, i=i, j=j: explorer.compare_latents((one.name, i), (other.name, j)),
            ),
            ("search", lambda words=words: explorer.search(words)),
        ]
        if some:
            name = some[rng.integers(len(some))]
            asked.append(("split", lambda name=name: explorer.split(name)))
    return [asked[place] for place in rng.permutation(len(asked))]


def ask_timed(run: Path, readers: int, count: int) -> dict:
    from metasae.explore.pages.queries import Explorer

    begin = time.perf_counter()
    explorer = Explorer(run)
    opened = time.perf_counter() - begin

    def read(reader: int) -> list[tuple[str, float, float]]:
        answers = []
        for name, call in questions(explorer, reader, count):
            begin, processor = time.perf_counter(), time.thread_time()
            json.dumps(call())
            answers.append((name, time.perf_counter() - begin, time.thread_time() - processor))
        return answers

    with ThreadPoolExecutor(readers) as threads:
        times = [answer for part in threads.map(read, range(readers)) for answer in part]
    names = sorted({name for name, *_ in times})
    waited = {name: _spread([1e3 * seconds for answer, seconds, _ in times if answer == name]) for name in names}
    processor = {name: _spread([1e3 * seconds for answer, _, seconds in times if answer == name]) for name in names}
    return {"milliseconds to open": 1e3 * opened, "milliseconds": waited, "milliseconds of a processor": processor}


def _spread(times: list[float]) -> dict:
    return {
        "median": float(np.median(times)),
        "p95": float(np.quantile(times, 0.95)),
        "most": max(times),
        "asked": len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=20_480)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--readers", type=int, default=5)
    parser.add_argument("--questions", type=int, default=40, help="of each kind, per reader")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run, out = options.run, {}
        if run is None:
            run = (options.folder or Path(temporary)) / "run"
            if not (run / "arms").is_dir():
                write_run(run, options.latents, options.tokens)
            out = build_timed(run)
        out |= {"megabytes": (run / "explore.sqlite").stat().st_size / 1e6, "readers": options.readers}
        out |= ask_timed(run, options.readers, options.questions)
    if options.json:
        json.dump(out, sys.stdout, indent=2)
        return
    for name, value in out.items():
        if not isinstance(value, dict):
            print(f"{name:<34}{value:>12,.1f}")
    for name, entry in out.get("seconds by part", {}).items():
        print(f"  {name[:60]:<60}{entry['seconds']:>10.1f} s, {entry['of a processor']:>8.1f} s of a processor")
    for kind in ("milliseconds", "milliseconds of a processor"):
        print(kind)
        for name, entry in out[kind].items():
            print(
                f"  {name:<32}median {entry['median']:>7.1f}   95% {entry['p95']:>7.1f}   most "
                f"{entry['most']:>7.1f}   of {entry['asked']}"
            )


if __name__ == "__main__":
    main()
