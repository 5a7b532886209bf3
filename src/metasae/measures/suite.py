"""All measures of one SAE, in the order in which they need each other: the measures.json of one arm and seed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metasae import recipe
from metasae.errors import UserError
from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.lift import lift_statistics
from metasae.measures.cofiring.shift import shift_null
from metasae.measures.effect.fidelity import Moments, measure_fidelity, moments_of
from metasae.measures.effect.output import OutputReference, output_effect, output_reference
from metasae.measures.firing.blocks import document_blocks
from metasae.measures.firing.calibrate import Calibration, calibrate
from metasae.measures.firing.firings import Firings, fire
from metasae.measures.firing.head import Head
from metasae.measures.firing.store import is_store_of, open_firings, sae_fingerprint, write_firings
from metasae.measures.planted.truth import as_firings, measure_truth
from metasae.measures.rows.decomposability import measure_decomposability
from metasae.measures.words.sense_reference import SenseReference, sense_reference
from metasae.measures.words.senses import measure_senses
from metasae.progress import SILENT, Progress

# Of the critics, the rotations of the text and the sense halves: the same for every SAE.
SEED = 0
BATCH = 2048


@dataclass(frozen=True)
class Reference:
    """What is measured without an SAE, so once for all SAEs of a run. output: None without a model or output tokens; senses: without sentences."""

    moments: Moments
    output: OutputReference | None
    senses: SenseReference | None


def reference_of(cache, spec: recipe.Measure, host=None, progress: Progress = SILENT, *, context: int | None = None) -> Reference:
    """The reference of the evaluation split; arguments as in `measure_sae`. Raises UserError when the split is empty."""
    evaluation = evaluation_of(cache, spec)
    moments = moments_of(evaluation, BATCH)
    if host is None:
        return Reference(moments, None, None)
    context = cache.index["identity"]["text"]["context"] if context is None else context
    output = output_reference(host, evaluation, spec.output_tokens, context, moments.mean.float(), progress=progress) if spec.output_tokens else None
    return Reference(moments, output, _sense_reference(host, spec, context, progress) if spec.senses else None)


def _sense_reference(host, spec: recipe.Measure, context: int, progress: Progress) -> SenseReference:
    from metasae.data.senses import sense_activations, sense_files

    return sense_reference(sense_activations(host, sense_files(spec.senses), context, progress=progress), SEED, progress=progress)


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
    reference: Reference | None = None,
    folder: Path | None = None,
) -> dict:
    """Calibrates the SAE on the calibration split where it has no threshold yet, measures it on the evaluation split; the result is JSON as it is.

    sae: in the model's own units; without a `threshold` it gets the calibrated one, so it can be saved afterwards. k is
    `sae.config.k`. meta_sae: the run's own or None. host: needed for the model's output, which is left out without one or
    with spec.output_tokens = 0, and for senses. context: tokens of a harvested window; None reads it from the cache. seed: the SAE's,
    only written down. calibration: what was found when this SAE got its threshold, where that was before.
    folder: where the firings are kept; None keeps them in memory only.
    Keys: conditions, calibration, fidelity, cooccurrence, decomposability, senses, truth (of a planted world). A number that does not exist is null.
    `leave_one_out`, beside some numbers, has them without each block of documents. Raises UserError when a split is empty or the SAE never fires.
    """
    evaluation = evaluation_of(cache, spec)
    if calibration is None:
        calibration = calibrate(sae, Head(cache.split("calibration"), spec.calibration_tokens), BATCH, progress, spec.threshold)
    reference = reference_of(cache, spec, host, progress, context=context) if reference is None else reference
    firings = firings_of(sae, evaluation, folder, progress)
    fidelity = measure_fidelity(sae, evaluation, firings, BATCH, progress, reference.moments)
    live = fidelity.rates > 0
    measures = {
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
            "critic_seed": SEED,
            "data": cache.fingerprint,
            "sae": sae_fingerprint(sae),
        },
        "calibration": calibration.as_dict(),
        "fidelity": fidelity.as_dict(),
        "cooccurrence": measure_cooccurrence(firings, spec, progress),
        "decomposability": measure_decomposability(
            sae, meta_sae, live, spec.meta_n, spec.meta_k, spec.meta_steps, SEED, progress, grid=spec.critic_grid, parts=spec.pursuit_k
        ),
    }
    if reference.output is not None:
        output = output_effect(host, sae, reference.output, progress, spec.batch_topk)
        measures["fidelity"] |= output | {"leave_one_out": measures["fidelity"]["leave_one_out"] | output.get("leave_one_out", {})}
    if reference.senses is not None:
        measures["senses"] = measure_senses(sae, reference.senses, progress)
    if hasattr(cache, "world"):
        measures["truth"] = _truth(sae, cache, evaluation, firings)
    return json_safe(measures)


def _truth(sae, cache, evaluation: Head, firings: Firings) -> dict:
    """Of a planted world: the dictionary held against the true features."""
    activations = cache.split("evaluation").activations[: evaluation.n_tokens]
    world, rows = cache.world, sae.W_dec.detach().float().cpu().numpy()
    return measure_truth(rows, firings, world.directions, as_firings(activations, evaluation), world.parent).as_dict()


def measure_cooccurrence(firings: Firings, spec: recipe.Measure, progress: Progress = SILENT) -> dict:
    """The `cooccurrence` part: phi over all pairs, its excess over two nulls (fixed_marginals, document_shift) and the rate-free view (lift)."""
    blocks = document_blocks(firings.documents)
    # one block left out leaves nothing
    blocks = blocks if blocks.max(initial=0) else None
    found = pair_statistics(firings, blocks, progress=progress)
    out = found.as_dict()
    if spec.lift:
        out["fixed_marginals"] = excess_phi(firings, blocks if spec.excess_blocks else None, progress=progress).as_dict()
        out["lift"] = lift_statistics(firings, progress=progress).as_dict()
    if spec.shifts:
        out["document_shift"] = shift_null(firings, found.mean_abs_phi, SEED, spec.shifts, progress=progress).as_dict()
    return out


def firings_of(sae, split, folder: Path | None, progress: Progress = SILENT) -> Firings:
    """The SAE's firings on a split: from `folder` where it holds these very ones, else worked out, and kept there."""
    if folder is None:
        return fire(sae, split, BATCH, progress)
    if is_store_of(folder, sae, split):
        return open_firings(folder)
    return write_firings(sae, split, folder, BATCH, progress)


def evaluation_of(cache, spec: recipe.Measure) -> Head:
    """The evaluation tokens, the same for every SAE. Raises UserError when there are none."""
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
