"""A trial of measuring: an SAE with fewer latents is measured on some tokens, and the time of a whole run is estimated
from its parts.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from metasae.data.cache.cache import ActivationCache
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.measures.effect.matched_effects import Steering
from metasae.measures.effect.side_effects import side_effects
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.firing.firings import fire
from metasae.measures.suite import measure_sae, reference_of
from metasae.progress.progress import Progress
from metasae.progress.stages import Task
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS, BASELINE
from metasae.sae.sae import SAE

# Latents whose side effects are tried, and pairs of windows for each.
STEERED, PAIRS = 4, 2
# Measuring is tried on at most this many latents, as much of it grows with their square.
WIDTH = 2048


class Clock(Progress):
    """A `Progress` that shows nothing and times tasks. seconds: {unit of work: seconds of finished tasks}, without
    tasks inside other tasks.
    """

    def __init__(self):
        super().__init__(enabled=False)
        self.seconds = Counter()
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator[Task]:
        task = Task(name, total, unit)
        self._depth += 1
        yield task
        self._depth -= 1
        if not self._depth:
            self.seconds[unit] += task.seconds


def try_measuring(sae: SAE, cache: ActivationCache | PlantedCache, wanted: Recipe, host: Host | None) -> dict:
    """Calibrates an SAE, then measures it with fewer latents. Returns estimated seconds in a whole run: calibrate, for
    one SAE; reference, once; sae, for every SAE with weights of its own; steering, for the side effects of one SAE's
    latents.

    The estimates are rough: work counted in tokens grows with tokens, that of critics with their steps, and all else
    but the reference with the square of the latents. Spike-ins, senses, labelled sentences and measures that take two
    SAEs are left out. Raises UserError if the run's own measuring would.
    """
    spec, split = wanted.measure, cache.split("calibration")
    start = time.perf_counter()
    calibration = calibrate(sae, split, wanted.train.batch, rule=spec.threshold)
    calibrating = (time.perf_counter() - start) * spec.calibration_tokens / split.n_tokens

    narrow = _narrow(sae, WIDTH)
    wider, share = sae.n_latents / narrow.n_latents, min(cache.split("evaluation").n_tokens / spec.tokens, 1.0)
    fewer = {
        "tokens": round(spec.tokens * share),
        "output_tokens": round(spec.output_tokens * share),
        "meta_steps": max(1, spec.meta_steps // 10),
        "senses": "",
        "labels": "",
    }
    some = spec.model_copy(update=fewer)
    start = time.perf_counter()
    reference = reference_of(cache, some, host if some.output_tokens else None)
    once = (time.perf_counter() - start) / share
    clock, start = Clock(), time.perf_counter()
    given = {"calibration": calibration, "reference": reference, "dtype": wanted.train.dtype}
    measure_sae(narrow, None, cache, some, host, clock, **given)
    scales = {"tokens": wider / share, "meta SAEs": wider**2 * spec.meta_steps / some.meta_steps}
    seconds = _scaled(clock, time.perf_counter() - start, scales, wider**2)
    steering = _try_steering(narrow, cache, wanted, host) if spec.side_effects and host is not None else 0.0
    return {"calibrate": calibrating, "reference": once, "sae": seconds, "steering": steering}


def _try_steering(sae: SAE, cache: ActivationCache | PlantedCache, wanted: Recipe, host: Host) -> float:
    """Estimated seconds of the side effects of `measure.side_effects` latents, from a few latents."""
    firings = fire(sae, cache.split("evaluation"))
    order = np.argsort(firings.counts())
    live = order[firings.counts()[order] > 0]
    # latents that are common enough to have windows, and rare enough to have silent ones
    some = live[len(live) // 2 :][:STEERED]
    start = time.perf_counter()
    side_effects(host, sae, firings, some, wanted.text.context, PAIRS)
    seconds = time.perf_counter() - start
    return seconds / max(len(some), 1) / PAIRS * wanted.measure.side_effects * Steering.pairs


def measure_seconds(trial: dict, wanted: Recipe) -> float:
    """Estimated seconds of all measuring but calibration. Arms with the baseline's primary SAE are measured once.

    Side effects are measured on both sides of every pair of an arm with solo.
    """
    primaries = {BASELINE if ARMS[arm].keeps_primary else arm for arm in wanted.arms}
    steered = 2 * (len(wanted.arms) - 1) * trial["steering"] if BASELINE in wanted.arms and wanted.measure.across else 0
    return trial["reference"] + len(wanted.seeds) * (len(primaries) * trial["sae"] + steered)


def _scaled(clock: Clock, seconds: float, scales: dict[str, float], rest: float) -> float:
    """`seconds` with the tasks of a unit scaled by its factor and all else by `rest`."""
    scaled = sum(spent * scales.get(unit, rest) for unit, spent in clock.seconds.items())
    return scaled + rest * (seconds - clock.seconds.total())


def _narrow(sae: SAE, width: int) -> SAE:
    """The SAE of the first `width` latents."""
    if sae.n_latents <= width:
        return sae
    narrow = SAE(replace(sae.config, d_sae=width, k=min(sae.config.k, width), metadata={}))
    parts = {"W_enc": sae.W_enc[:, :width], "W_dec": sae.W_dec[:width], "b_enc": sae.b_enc[:width], "b_dec": sae.b_dec}
    narrow.load_state_dict(parts)
    narrow.threshold = sae.threshold[:width].clone()
    return narrow
