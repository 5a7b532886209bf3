"""All measures of one SAE, in the order in which they need each other: the measures.json of one arm and seed.

Several ranks measure one SAE together, one SAE after the other. Firings and the phi of pairs, which grow with the text and with the
square of the latents, are shared token by token and tile by tile; each further measure is one rank's, the first of `PARTS` the first
rank's, and so on. Not SAEs but measures are dealt out, so that one SAE is measured sooner too, that a run of any number of arms
is spread, and that a killed run has lost one SAE at most. A measure is the same work wherever it is done, so the numbers are those of one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metasae.data.split import Part, head
from metasae.data.text import files_of_text
from metasae.errors import UserError
from metasae.files import json_safe
from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.lift import lift_statistics
from metasae.measures.cofiring.shift import shift_null
from metasae.measures.effect.fidelity import Moments, measure_fidelity, moments_of
from metasae.measures.effect.output import OutputReference, output_effect, output_reference
from metasae.measures.firing.blocks import document_blocks
from metasae.measures.firing.calibrate import Calibration, calibrate
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.over_ranks import fire, write_firings
from metasae.measures.firing.store import is_store_of, open_firings, sae_fingerprint
from metasae.measures.rows.decomposability import measure_decomposability
from metasae.measures.truth.truth import as_firings, measure_truth
from metasae.measures.words.sense_reference import SenseReference, sense_reference
from metasae.measures.words.senses import measure_senses
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, Ranks
from metasae.ranks.sharing import RankPool, deal, deals
from metasae.recipe import recipe

# Of the critics, the rotations of the text and the sense halves: the same for every SAE.
SEED = 0
BATCH = 2048
# What is dealt out to ranks, the slow ones first, so that no rank has two of them before every rank has one.
PARTS = ("fixed_marginals", "decomposability", "output", "lift", "document_shift", "fidelity", "senses", "truth")


@dataclass(frozen=True)
class Reference:
    """What is measured without an SAE, so once for all SAEs of a run. output: None without a model or output tokens; senses: without sentences.

    Of several ranks each has what its own parts need; moments are None where fidelity is not its own.
    """

    moments: Moments | None
    output: OutputReference | None
    senses: SenseReference | None


def reference_of(
    cache,
    spec: recipe.Measure,
    host=None,
    progress: Progress = SILENT,
    *,
    context: int | None = None,
    ranks: Ranks = ALONE,
) -> Reference:
    """The reference of the evaluation split; arguments as in `measure_sae`. Raises UserError when the split is empty."""
    evaluation = evaluation_of(cache, spec)
    asked = parts_of_model(spec, ranks) if host is not None else []
    moments = moments_of(evaluation, BATCH) if "fidelity" in deals(PARTS, ranks) or "output" in asked else None
    if not asked:
        return Reference(moments, None, None)
    context = cache.index["identity"]["text"]["context"] if context is None else context
    output = (
        output_reference(host, evaluation, spec.output_tokens, context, moments.mean.float(), progress=progress)
        if "output" in asked
        else None
    )
    return Reference(moments, output, _sense_reference(host, spec, context, progress) if "senses" in asked else None)


def parts_of_model(spec: recipe.Measure, ranks: Ranks = ALONE) -> list[str]:
    """This rank's parts of the suite that need the language model."""
    wanted = {"output": spec.output_tokens, "senses": spec.senses}
    return [part for part in deals(PARTS, ranks) if wanted.get(part)]


def _sense_reference(host, spec: recipe.Measure, context: int, progress: Progress) -> SenseReference:
    from metasae.data.senses import sense_activations, sense_files

    return sense_reference(
        sense_activations(host, sense_files(spec.senses), context, progress=progress), SEED, progress=progress
    )


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
    ranks: Ranks = ALONE,
) -> dict:
    """Calibrates the SAE on the calibration split where it has no threshold yet, measures it on the evaluation split; the result is JSON as it is.

    sae: in the model's own units; without a `threshold` it gets the calibrated one, so it can be saved afterwards. k is
    `sae.config.k`. meta_sae: the run's own or None. host: needed for the model's output, which is left out without one or
    with spec.output_tokens = 0, and for senses. context: tokens of a harvested window; None reads it from the cache. seed: the SAE's,
    only written down. calibration: what was found when this SAE got its threshold, where that was before.
    folder: where the firings are kept; None keeps them in memory only. ranks: all of them call this, each with the same SAE (see
    above), and get the same.
    Keys: conditions, calibration, fidelity, cooccurrence, decomposability, senses, truth (of a planted world), settings (what of the recipe
    decided them). A number that does not exist is null.
    `leave_one_out`, beside some numbers, has them without each block of documents. Raises UserError when a split is empty or the SAE never fires.
    """
    evaluation = evaluation_of(cache, spec)
    if calibration is None:
        calibration = calibrate(
            sae, head(cache.split("calibration"), spec.calibration_tokens), BATCH, progress, spec.threshold, ranks
        )
    reference = (
        reference_of(cache, spec, host, progress, context=context, ranks=ranks) if reference is None else reference
    )
    firings = firings_of(sae, evaluation, folder, progress, ranks)
    phi, pair_parts = _pair_parts(firings, spec, progress, ranks)
    meta = (spec.meta_n, spec.meta_k, spec.meta_steps, SEED)
    works = {
        **pair_parts,
        "fidelity": lambda: measure_fidelity(sae, evaluation, firings, BATCH, progress, reference.moments).as_dict(),
        "decomposability": lambda: measure_decomposability(
            sae, meta_sae, firings.counts() > 0, *meta, progress, grid=spec.critic_grid, parts=spec.pursuit_k
        ),
        "output": lambda: (
            output_effect(host, sae, reference.output, progress, spec.batch_topk)
            if reference.output is not None
            else {}
        ),
        "senses": lambda: measure_senses(sae, reference.senses, progress) if reference.senses is not None else None,
        "truth": lambda: _truth(sae, cache, evaluation, firings) if hasattr(cache, "world") else None,
    }
    found = deal({part: works[part] for part in PARTS}, ranks)
    fidelity, output = found["fidelity"], found["output"]
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
            "senses": files_of_text.digest(Path(spec.senses)) if spec.senses else None,
            "sae": sae_fingerprint(sae),
        },
        "calibration": calibration.as_dict(),
        "fidelity": fidelity | output | {"leave_one_out": fidelity["leave_one_out"] | output.get("leave_one_out", {})},
        "cooccurrence": phi | {part: found[part] for part in pair_parts if found[part] is not None},
        "decomposability": found["decomposability"],
        **{part: found[part] for part in ("senses", "truth") if found[part] is not None},
        "settings": spec.settings,
    }
    return json_safe(measures)


def _truth(sae, cache, evaluation: Part, firings: Firings) -> dict:
    """Of a planted world: the dictionary held against the true features."""
    activations = cache.split("evaluation").activations[: evaluation.n_tokens]
    world, rows = cache.world, sae.W_dec.detach().float().cpu().numpy()
    return measure_truth(rows, firings, world.directions, as_firings(activations, evaluation), world.parent).as_dict()


def _pair_parts(
    firings: Firings, spec: recipe.Measure, progress: Progress, ranks: Ranks
) -> tuple[dict, dict[str, Callable[[], dict | None]]]:
    """phi over all pairs, and the rest of the `cooccurrence` part, still to be worked out; None for what the recipe leaves out:
    the excess over two nulls (fixed_marginals, document_shift) and the rate-free view (lift)."""
    blocks = document_blocks(firings.documents)
    # one block left out leaves nothing
    blocks = blocks if blocks.max(initial=0) else None
    phi = pair_statistics(firings, blocks, progress=progress, pool=partial(RankPool, ranks))
    in_blocks = blocks if spec.excess_blocks else None
    return phi.as_dict(), {
        "fixed_marginals": lambda: excess_phi(firings, in_blocks, progress=progress).as_dict() if spec.lift else None,
        "lift": lambda: lift_statistics(firings, progress=progress).as_dict() if spec.lift else None,
        "document_shift": lambda: (
            shift_null(firings, phi.mean_abs_phi, SEED, spec.shifts, progress=progress).as_dict()
            if spec.shifts
            else None
        ),
    }


def firings_of(sae, split, folder: Path | None, progress: Progress = SILENT, ranks: Ranks = ALONE) -> Firings:
    """The SAE's firings on a split: from `folder` where it holds these very ones, else worked out, and kept there."""
    if folder is None:
        return fire(sae, split, ranks, BATCH, progress)
    if ranks.agreed(is_store_of(folder, sae, split)):
        return open_firings(folder)
    return write_firings(sae, split, folder, ranks, BATCH, progress)


def evaluation_of(cache, spec: recipe.Measure) -> Part:
    """The evaluation tokens, the same for every SAE. Raises UserError when there are none."""
    evaluation = head(cache.split("evaluation"), spec.tokens)
    if evaluation.n_tokens < 1:
        raise UserError("no evaluation tokens; raise text.evaluation_share or give more text")
    return evaluation
