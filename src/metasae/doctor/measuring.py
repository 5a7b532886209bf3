"""Calibrating and measuring on a few tokens, timed and scaled up."""

import time
from dataclasses import dataclass, replace

from metasae.data.cache.cache import ActivationCache
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.doctor.clock import Clock
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.suite import measure_sae, reference_of
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.sae.sae import SAE

# Measuring is tried on so many latents at most: much of it grows with their square.
WIDTH = 2048


@dataclass(frozen=True)
class MeasureTrial:
    """Seconds of a whole run: calibrate, of one SAE; reference, once; sae, of every SAE with weights of its own."""

    calibrate: float
    reference: float
    sae: float

    def seconds(self, wanted: Recipe) -> float:
        """Of all measuring but calibration. Arms without a penalty have the same primary, which is measured once."""
        penalised = [ARMS[arm].penalty for arm in wanted.arms]
        return self.reference + len(wanted.seeds) * (sum(penalised) + (False in penalised)) * self.sae


def try_measuring(sae: SAE, cache: ActivationCache | PlantedCache, wanted: Recipe, host: Host | None) -> MeasureTrial:
    """Gives an SAE without thresholds its own, then measures a narrowed one.

    Rough: work reported in tokens grows with them, that of critics with their steps, all else but the reference with
    the square of the latents. Senses and what is measured across SAEs are left out. Raises UserError where the run's
    own measuring would.
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
    }
    some = spec.model_copy(update=fewer)
    start = time.perf_counter()
    reference = reference_of(cache, some, host if some.output_tokens else None, Clock())
    once = (time.perf_counter() - start) / share
    clock, start = Clock(), time.perf_counter()
    measure_sae(narrow, None, cache, some, host, clock, calibration=calibration, reference=reference)
    scales = {"tokens": wider / share, "meta SAEs": wider**2 * spec.meta_steps / some.meta_steps}
    return MeasureTrial(calibrating, once, _scaled(clock, time.perf_counter() - start, scales, wider**2))


def _scaled(clock: Clock, seconds: float, scales: dict[str, float], rest: float) -> float:
    """`seconds` with the tasks of a unit scaled by its factor and all else by `rest`."""
    outside = seconds - sum(task.seconds for task in clock.tasks)
    return rest * outside + sum(task.seconds * scales.get(task.unit, rest) for task in clock.tasks)


def _narrow(sae: SAE, width: int) -> SAE:
    """The SAE of the first `width` latents."""
    if sae.n_latents <= width:
        return sae
    narrow = SAE(replace(sae.config, d_sae=width, k=min(sae.config.k, width), metadata={}))
    parts = {"W_enc": sae.W_enc[:, :width], "W_dec": sae.W_dec[:width], "b_enc": sae.b_enc[:width], "b_dec": sae.b_dec}
    for name, part in parts.items():
        getattr(narrow, name).data.copy_(part)
    narrow.threshold = sae.threshold[:width].clone()
    return narrow
