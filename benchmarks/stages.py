"""Times the stages of a whole run beside their floors: what the arithmetic of a stage takes at the rates measured here.

    python benchmarks/stages.py                                   the demo
    python benchmarks/stages.py --recipe demo-full --json
    python benchmarks/stages.py --set model.dtype=fp32 --set train.dtype=fp32

Matrix products count at the matmul rate of the dtype they are made in, on all cores, and what is gathered, summed or
counted at the rate of a copy, both measured in this process before the run. A counting of co-firings touches L0^2 pairs
per token, a number of 4 bytes each, read and written. What a floor leaves out (text, tokenizer, statistics, figures,
SQLite) has none.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from harvest import flops_per_token
from step import N_META, N_PRIMARY, peak_megabytes, rates

import metasae
from metasae.data.model.host import Host
from metasae.data.model.loading import pick_dtype
from metasae.data.text import text as texts
from metasae.files import read_json
from metasae.measures.rows.critic import n_trained
from metasae.recipe.recipe import Recipe, parse_override
from metasae.sae.gradients import matmul_dtype

CPU = torch.device("cpu")
# How often co-firings are counted of one SAE (phi, both nulls, lift), and of a pair of SAEs in either direction.
COUNTINGS_OF_ONE, COUNTINGS_OF_PAIR = 4, 2


class Floors:
    """Least seconds of each stage of a recipe on this machine. flops: of the model's products per token of text."""

    def __init__(self, recipe: Recipe, d: int, flops: float, rate: dict[str, float]):
        self.recipe, self.d, self.flops, self.rate = recipe, d, flops, rate
        self.n_saes = len(recipe.arms) * len(recipe.seeds)

    def _products(self, multiplications: float, dtype: torch.dtype) -> float:
        return 2 * multiplications / self.rate["bf16" if dtype == torch.bfloat16 else "fp32"]

    @property
    def harvest(self) -> float:
        dtype = pick_dtype(self.recipe.model.dtype, CPU)
        return self._products(sum(self.recipe.split_tokens.values()) * self.flops / 2, dtype)

    @property
    def train(self) -> float:
        """Encoder, penalty and meta steps as products; per kept entry four rows gathered, per weight Adam's seven
        passes, as bytes."""
        recipe, train = self.recipe, self.recipe.train
        dtype, steps = matmul_dtype(train.dtype, CPU), train.tokens / train.batch
        numbers = 2 * recipe.sae.n * self.d
        moved = 4 * train.batch * recipe.sae.k * self.d * 4 + 7 * numbers * 4
        plain = self._products(train.batch * recipe.sae.n * self.d, dtype) + moved / self.rate["bytes"]
        with_meta = sum(arm != "solo" for arm in recipe.arms) / len(recipe.arms)
        # the penalty looks at every row at every step, a meta step does so once
        meta = self._products(recipe.sae.n * self.d * recipe.meta.n * (1 + N_META / N_PRIMARY), dtype)
        return self.n_saes * steps * (plain + with_meta * meta)

    @property
    def measure(self) -> float:
        """The encoder on the tokens that are judged and calibrated on; the critics; the countings."""
        spec = self.recipe.measure
        dtype, n = matmul_dtype(self.recipe.train.dtype, CPU), self.recipe.sae.n
        passes = self._products((spec.tokens + spec.calibration_tokens) * n * self.d, dtype)
        # forward, and the gradients of two weights
        critics = self._products(n_trained(spec.critics) * spec.meta_steps * 3 * n * self.d * spec.meta_n * n, dtype)
        return self.n_saes * (passes + critics + COUNTINGS_OF_ONE * self._counting)

    @property
    def across(self) -> float:
        """Cosines of all rows with all, and of their Gaussian twins; the countings of splits and merges, by two
        rankings each."""
        n, pairs = self.recipe.sae.n, self.n_saes
        return pairs * (self._products(2 * n * n * self.d, torch.float32) + 2 * COUNTINGS_OF_PAIR * self._counting)

    @property
    def explorer(self) -> float:
        return (self.n_saes + COUNTINGS_OF_PAIR * self.n_saes) * self._counting

    @property
    def _counting(self) -> float:
        return self.recipe.measure.tokens * self.recipe.sae.k**2 * 2 * 4 / self.rate["bytes"]


def stage_seconds(run_json: dict, whole: float) -> dict[str, float]:
    """Seconds by kind of stage. Of arms that are trained side by side those of all together count, not those of
    each."""
    kinds: dict[str, float] = {}
    for name, stage in run_json["stages"].items():
        kind = name.split()[0]
        kinds[kind] = kinds.get(kind, 0.0) + stage["seconds"]
    if "side" in kinds:
        kinds["train"] = kinds.pop("side")
    return kinds | {"starting, report": whole - sum(kinds.values())}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="demo")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    recipe = Recipe.load(given.recipe, dict(parse_override(text) for text in given.set))
    host = Host.load(recipe.model, recipe.hook.point)
    rate = rates()
    floors = Floors(
        recipe, host.d, flops_per_token(host, list(islice(texts.documents(recipe.text), 200)), recipe), rate
    )
    del host
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        metasae.run(recipe, out=Path(folder) / "run", show=False)
        whole = time.perf_counter() - start
        seconds = stage_seconds(read_json(Path(folder) / "run" / "run.json"), whole)
    result = {
        "recipe": given.recipe,
        "threads": torch.get_num_threads(),
        "rates": rate,
        "seconds": whole,
        "peak_megabytes": peak_megabytes(),
        "stages": {name: {"seconds": taken, "floor": getattr(floors, name, None)} for name, taken in seconds.items()},
    }
    print(json.dumps(result, indent=2)) if given.json else show(result)


def show(result: dict) -> None:
    rate = result["rates"]
    print(
        f"{result['recipe']}: {result['seconds']:.0f} s, peak {result['peak_megabytes'] / 1000:.2f} GB, "
        f"{result['threads']} threads; ",
        end="",
    )
    print(
        f"matmul {rate['bf16'] / 1e12:.3f} TFLOP/s bf16, {rate['fp32'] / 1e12:.3f} fp32; copy "
        f"{rate['bytes'] / 1e9:.1f} GB/s"
    )
    for name, stage in result["stages"].items():
        share = 100 * stage["seconds"] / result["seconds"]
        floor = "" if stage["floor"] is None else f"floor {stage['floor']:7.1f} s"
        print(f"  {name:<18}{stage['seconds']:8.1f} s {share:5.1f}%   {floor}")


if __name__ == "__main__":
    main()
