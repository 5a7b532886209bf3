"""All measures of one SAE, in the order in which they need each other: the measures.json of one arm and seed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from metasae import recipe
from metasae.errors import UserError
from metasae.measures.calibrate import Calibration, calibrate
from metasae.measures.cooccurrence import pair_statistics
from metasae.measures.decomposability import measure_decomposability
from metasae.measures.fidelity import Moments, measure_fidelity, moments_of
from metasae.measures.firings import fire
from metasae.measures.head import Head
from metasae.measures.output import OutputReference, output_effect, output_reference
from metasae.progress import SILENT, Progress

CRITIC_SEED = 0
BATCH = 2048


@dataclass(frozen=True)
class Reference:
    """What is measured without an SAE, so once for all SAEs of a run. output: None without a model or output tokens."""

    moments: Moments
    output: OutputReference | None


def reference_of(cache, spec: recipe.Measure, host=None, progress: Progress = SILENT, *, context: int | None = None) -> Reference:
    """The reference of the evaluation split; arguments as in `measure_sae`. Raises UserError when the split is empty."""
    evaluation = _evaluation(cache, spec)
    moments = moments_of(evaluation, BATCH)
    if host is None or not spec.output_tokens:
        return Reference(moments, None)
    context = cache.index["identity"]["text"]["context"] if context is None else context
    return Reference(moments, output_reference(host, evaluation, spec.output_tokens, context, moments.mean.float(), progress=progress))


def measure_sae(
    sae,
    meta_sae,
    cache,
    spec: recipe.Measure,
    host=None,
    progress: Progress = SILENT,
    *,
    context: int | None = None,
    seed: int | None = None,
    calibration: Calibration | None = None,
    critic_seed: int = CRITIC_SEED,
    reference: Reference | None = None,
) -> dict:
    """Calibrates the SAE on the calibration split where it has no threshold yet, measures it on the evaluation split; the result is JSON as it is.

    sae: in the model's own units; without a `threshold` it gets the calibrated one, so it can be saved afterwards. k is
    `sae.config.k`. meta_sae: the run's own or None. host: needed for the model's output, which is left out without one or
    with spec.output_tokens = 0. context: tokens of a harvested window; None reads it from the cache. seed: the SAE's, only
    written down. calibration: what was found when this SAE got its threshold, where that was before. critic_seed: the same for all arms.
    Keys: conditions, calibration, fidelity, cooccurrence, decomposability. A number that does not exist is null.
    Raises UserError when a split is empty or the SAE never fires.
    """
    evaluation = _evaluation(cache, spec)
    if calibration is None:
        calibration = calibrate(sae, Head(cache.split("calibration"), spec.calibration_tokens), BATCH, progress)
    reference = reference_of(cache, spec, host, progress, context=context) if reference is None else reference
    firings = fire(sae, evaluation, BATCH, progress)
    fidelity = measure_fidelity(sae, evaluation, firings, BATCH, progress, reference.moments)
    cooccurrence = pair_statistics(firings, progress=progress)
    decomposability = measure_decomposability(sae, meta_sae, fidelity.rates > 0, spec.meta_n, spec.meta_k, spec.meta_steps, critic_seed, progress)
    output = {} if reference.output is None else output_effect(host, sae, reference.output, progress)

    return json_safe(
        {
            "conditions": {
                "n_tokens": evaluation.n_tokens,
                "calibration_tokens": calibration.n_tokens,
                "rule": calibration.rule,
                "threshold": calibration.threshold,
                "k": sae.config.k,
                "l0_realised": firings.l0,
                "n_latents": sae.n_latents,
                "n_documents": len(np.unique(firings.documents)),
                "seed": seed,
                "critic_seed": critic_seed,
                "data": cache.fingerprint,
            },
            "calibration": {
                "threshold": calibration.threshold,
                "l0": calibration.l0,
                "k": calibration.k,
                "n_tokens": calibration.n_tokens,
                "reached": calibration.reached,
            },
            "blocks": {f"fidelity.{key}": values for key, values in output.pop("blocks", {}).items()},
            "fidelity": {**fidelity.as_dict(), **output},
            "cooccurrence": cooccurrence.as_dict(),
            "decomposability": decomposability,
        }
    )


def _evaluation(cache, spec: recipe.Measure) -> Head:
    evaluation = Head(cache.split("evaluation"), spec.tokens)
    if evaluation.n_tokens < 1:
        raise UserError("no evaluation tokens; raise text.evaluation_share or give more text")
    return evaluation


def json_safe(value: Any) -> Any:
    """Numpy and torch numbers and arrays as plain ones; NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
