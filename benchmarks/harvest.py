"""Times the harvest of the demo's model beside its floor: the model's matrix products at the matmul rate measured here.

    python benchmarks/harvest.py                   the demo's model and text, bf16 and fp32
    python benchmarks/harvest.py --tokens 100000 --set model.path=FOLDER --json

Text is gathered once before the clock starts. Products are counted by torch's FlopCounterMode on one batch that the
harvest makes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from step import rates

from metasae.data.cache.activations import harvest
from metasae.data.model.host import Host
from metasae.data.text import text as texts
from metasae.data.text.windows import Feed, pad
from metasae.device import keep_freed_memory
from metasae.ranks.lanes import on_one_core
from metasae.recipe.recipe import Recipe, parse_override


def flops_per_token(host: Host, documents: list[str], recipe: Recipe) -> float:
    """Matrix products of the model up to the hook, per token of text, on windows of one length as the harvest batches
    them."""
    feed = Feed(host.tokenizer, host.frame, recipe.text, {"train": 4096})
    windows = sorted((window for _, window, _ in islice(feed.windows(documents), 64)), key=len)
    ids, mask, _ = pad(windows[-16:], host.frame, host.pad_id)
    # the counter sees this thread alone
    with on_one_core(), FlopCounterMode(display=False) as counter:
        host.activations(ids, mask)
    return counter.get_total_flops() / sum(len(window) for window in windows[-16:])


def whole(host: Host, documents: list[str], recipe: Recipe, tokens: int) -> float:
    """Tokens per second of one harvest, from text in memory to a closed cache."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache = harvest(
            host, recipe.text, recipe.harvest, Path(folder) / "cache", {"train": tokens}, documents=documents
        )
        return cache.split("train").n_tokens / (time.perf_counter() - start)


def tokenising(host: Host, documents: list[str], recipe: Recipe, tokens: int) -> float:
    """Tokens per second of cutting text into windows, no model run."""
    start, count = time.perf_counter(), 0
    for _, window, _ in Feed(host.tokenizer, host.frame, recipe.text, {"train": tokens}).windows(documents):
        count += len(window)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    recipe = Recipe.load(given.recipe, dict(parse_override(setting) for setting in given.set))
    documents = list(islice(texts.documents(recipe.text), 4 * given.tokens // 100))
    hosts = {
        dtype: Host.load(recipe.model.model_copy(update={"dtype": dtype}), recipe.hook.point)
        for dtype in ("bf16", "fp32")
    }
    rate = rates()
    throughputs = {name: [] for name in hosts}
    for _ in range(given.repeats):
        for name, host in hosts.items():
            throughputs[name].append(whole(host, documents, recipe, given.tokens))
    flops = flops_per_token(hosts["fp32"], documents, recipe)
    result = {
        "tokens": given.tokens,
        "threads": torch.get_num_threads(),
        "mflop_per_token": flops / 1e6,
        "tokenising": tokenising(hosts["bf16"], documents, recipe, given.tokens),
        **{
            name: {"tokens_per_second": statistics.median(throughputs[name]), "floor": rate[name] / flops}
            for name in hosts
        },
    }
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{given.tokens:,} tokens, {result['threads']} threads, {flops / 1e6:.1f} MFLOP of products per token; "
        "cutting text into windows alone:"
    )
    print(f"{result['tokenising']:,.0f} tokens/s")
    for name in hosts:
        one = result[name]
        print(
            f"{name}: {one['tokens_per_second']:,.0f} tokens/s; the products alone at {rate[name] / 1e12:.2f} "
            f"TFLOP/s: {one['floor']:,.0f}"
        )


if __name__ == "__main__":
    main()
