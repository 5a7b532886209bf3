"""Makes all measures of one SAE: the measures.json of one arm and seed.

Several ranks measure one SAE together, one SAE after the other. Firings and the phi of pairs, which grow with the text
and with the square of the latents, are shared token by token and tile by tile; each further measure is one rank's, the
first of `PARTS` the first rank's, and so on. Measures are dealt out and not SAEs, so that a single SAE is measured
sooner too, the work is spread for any number of arms, and a killed run loses one SAE at most. A measure does the same
work on any rank, so the numbers are those of one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metasae.data.cache.cache import ActivationCache
from metasae.data.concepts.tagged_concepts import tagged_concepts
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.senses import sense_activations, sense_files
from metasae.data.split import Part, Split, head
from metasae.data.text import text as texts
from metasae.data.text.token_text import text_of_token
from metasae.errors import UserError
from metasae.files import json_safe
from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.dependence import dependence
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.lift import lift_statistics
from metasae.measures.cofiring.shift import shift_null
from metasae.measures.effect.fidelity import Moments, measure_fidelity, moments_of
from metasae.measures.effect.output import OutputReference, output_effect, output_reference
from metasae.measures.firing.calibrate import Calibration, calibrate
from metasae.measures.firing.firings import Firings, document_blocks, fire
from metasae.measures.firing.store import is_store_of, open_firings, sae_fingerprint, write_firings
from metasae.measures.rows.decomposability import measure_decomposability
from metasae.measures.truth.concept_reference import LabelledTokens, concept_reference, measure_concepts
from metasae.measures.truth.spike_truth import SpikeTruth, measure_spikes
from metasae.measures.truth.truth import as_firings, measure_truth
from metasae.measures.words.sense_reference import WordReference, sense_reference
from metasae.measures.words.senses import measure_senses
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, RankPool, Ranks, deal, deals
from metasae.recipe import recipe
from metasae.sae.sae import SAE

Cache = ActivationCache | PlantedCache
# The seed of the first critic, of the rotations of the text and of the sense halves, the same for every SAE.
SEED = 0
BATCH = 2048
# The measures in the order in which they are dealt out to ranks: the slow ones first, so that no rank has two of them
# before every rank has one.
PARTS = (
    "fixed_marginals",
    "decomposability",
    "spikes",
    "output",
    "lift",
    "dependence",
    "document_shift",
    "concepts",
    "fidelity",
    "senses",
    "truth",
)
PAIR_PARTS = ("fixed_marginals", "lift", "dependence", "document_shift")


@dataclass(frozen=True)
class Reference:
    """The part of the measures that needs no SAE, made once for all SAEs of a run.

    output: None without a model or output tokens; senses: without sentences; concepts: without a tokenizer.

    Of several ranks, each has what its own measures need; moments are None where fidelity is not among them.
    """

    moments: Moments | None
    output: OutputReference | None
    senses: tuple[WordReference, ...] | None
    concepts: tuple[LabelledTokens, ...] | None = None


def reference_of(
    cache: Cache,
    spec: recipe.Measure,
    host: Host | None = None,
    progress: Progress = SILENT,
    *,
    ranks: Ranks = ALONE,
    tokenizer=None,
) -> Reference:
    """The reference of the evaluation split; arguments as in `measure_sae`.

    tokenizer: of the model, for concepts; None takes the host's. Raises UserError when the split is empty.
    """
    evaluation = evaluation_of(cache, spec)
    tokenizer = host.tokenizer if tokenizer is None and host is not None else tokenizer
    asked = parts_of_model(spec, ranks) if host is not None else []
    moments = moments_of(evaluation, BATCH) if "fidelity" in deals(PARTS, ranks) or "output" in asked else None
    output = senses = concepts = None
    # tokens of a harvested window
    context = cache.index["identity"]["text"]["context"] if asked else None
    if "output" in asked:
        mean = moments.mean.float()
        output = output_reference(host, evaluation, spec.output_tokens, context, mean, progress=progress)
    # both parts take the same sentences
    words = []
    if spec.senses and ("senses" in asked or "concepts" in asked):
        words = sense_activations(host, sense_files(spec.senses), context, progress=progress)
    if "senses" in asked:
        senses = sense_reference(words, SEED, progress=progress)
    if spec.concepts and tokenizer is not None and "concepts" in deals(PARTS, ranks):
        tagged = tagged_concepts(host, spec.labels, context, progress) if spec.labels else None
        string_of = text_of_token(tokenizer)
        concepts = concept_reference(evaluation, string_of, spec.concepts, SEED, words, tagged, progress)
    return Reference(moments, output, senses, concepts)


def parts_of_model(spec: recipe.Measure, ranks: Ranks = ALONE) -> list[str]:
    """This rank's parts of the suite that need the language model."""
    tagged = spec.concepts and (spec.labels or spec.senses)
    wanted = {"output": spec.output_tokens, "senses": spec.senses, "concepts": tagged}
    return [part for part in deals(PARTS, ranks) if wanted.get(part)]


def measure_sae(
    sae: SAE,
    meta_sae: SAE | None,
    cache: Cache,
    spec: recipe.Measure,
    host: Host | None = None,
    progress: Progress = SILENT,
    *,
    seed: int | None = None,
    reference: Reference,
    calibration: Calibration | None = None,
    folder: Path | None = None,
    ranks: Ranks = ALONE,
    truth: SpikeTruth | None = None,
    dtype: str = "auto",
) -> dict:
    """Calibrates the SAE where it has no threshold yet, and measures it on the evaluation split; the result is JSON as
    it is.

    sae: in the model's own units; without a `threshold` it gets the calibrated one, so it can be saved afterwards. k is
    `sae.config.k`. meta_sae: the run's own or None. host: needed for the model's output, which is left out without one
    or with spec.output_tokens = 0, and for senses. seed: the SAE's, only written down. calibration: of this SAE, where
    it got its threshold before. reference: of `reference_of`.
    dtype: of the critics' products, as `train.dtype`.
    folder: where the firings are kept; None keeps them in memory only. ranks: all of them call this, each with the same
    SAE (see above), and get the same.
    truth: the spike-ins that the SAE was trained on, in the evaluation tokens; None for an SAE that met none. All else
    is measured on text without spike-ins.
    Keys: conditions, calibration, fidelity, cooccurrence, decomposability, spikes, concepts (of a text), senses, truth
    (of a planted world), settings (what of the recipe decided them). A number that does not exist is null.
    `leave_one_out`, beside some numbers, has them without each block of documents. Raises UserError when a split is
    empty or the SAE never fires.
    """
    evaluation = evaluation_of(cache, spec)
    if calibration is None:
        tokens = head(cache.split("calibration"), spec.calibration_tokens)
        calibration = calibrate(sae, tokens, BATCH, progress, spec.threshold, ranks)
    firings = firings_of(sae, evaluation, folder, progress, ranks).counted
    blocks = document_blocks(firings.documents)
    # one block left out leaves nothing
    blocks = blocks if blocks.max(initial=0) else None
    phi = pair_statistics(firings, blocks, progress=progress, pool=partial(RankPool, ranks))
    works = _works(sae, meta_sae, cache, spec, host, progress, evaluation, firings, blocks, reference, dtype)
    works |= _pair_works(spec, firings, blocks, phi["mean_abs_phi"], progress)
    if truth is not None:
        works["spikes"] = partial(measure_spikes, sae, truth, firings, blocks, progress)
    # a part that the recipe leaves out, or that cannot be measured, is empty
    parts = deal({part: works.get(part, dict) for part in PARTS}, ranks)
    fidelity, output = parts["fidelity"], parts["output"]
    measures = {
        "conditions": _conditions(sae, cache, spec, calibration, firings, seed),
        "calibration": calibration.as_dict(),
        "fidelity": fidelity | output | {"leave_one_out": fidelity["leave_one_out"] | output.get("leave_one_out", {})},
        "cooccurrence": phi | {part: parts[part] for part in PAIR_PARTS if parts[part]},
        "decomposability": parts["decomposability"],
        **{part: parts[part] for part in ("spikes", "concepts", "senses", "truth") if parts[part]},
        "settings": spec.settings,
    }
    return json_safe(measures)


def _pair_works(
    spec: recipe.Measure, firings: Firings, blocks: np.ndarray | None, mean_abs_phi: float, progress: Progress
) -> dict[str, Callable[[], dict]]:
    """The parts that are about pairs of latents, beside phi itself."""
    works = {}
    if spec.lift:
        in_blocks = blocks if spec.excess_blocks else None
        works["fixed_marginals"] = partial(excess_phi, firings, in_blocks, progress=progress)
        works["lift"] = partial(lift_statistics, firings, progress=progress)
        works["dependence"] = partial(dependence, firings, blocks, progress=progress)
    if spec.shifts:
        works["document_shift"] = partial(shift_null, firings, mean_abs_phi, SEED, spec.shifts, progress=progress)
    return works


def _works(
    sae: SAE,
    meta_sae: SAE | None,
    cache: Cache,
    spec: recipe.Measure,
    host: Host | None,
    progress: Progress,
    evaluation: Part,
    firings: Firings,
    blocks: np.ndarray | None,
    reference: Reference,
    dtype: str,
) -> dict[str, Callable[[], dict]]:
    """The parts that are not about pairs of latents, still to be worked out."""
    critic = (firings.counts() > 0, spec.meta_n, spec.meta_k, spec.meta_steps, SEED, progress)
    options = {"critics": spec.critics, "dtype": dtype, "grid": spec.critic_grid, "parts": spec.pursuit_k}
    works = {
        "fidelity": partial(measure_fidelity, sae, evaluation, firings, reference.moments, BATCH, progress),
        "decomposability": partial(measure_decomposability, sae, meta_sae, *critic, **options),
    }
    if reference.output is not None:
        works["output"] = partial(output_effect, host, sae, reference.output, progress, spec.batch_topk)
    if reference.concepts is not None:
        works["concepts"] = partial(measure_concepts, sae, firings, blocks, reference.concepts, progress)
    if reference.senses is not None:
        works["senses"] = partial(measure_senses, sae, reference.senses, progress)
    if hasattr(cache, "world"):
        works["truth"] = partial(_truth, sae, cache, evaluation, firings)
    return works


def _truth(sae: SAE, cache: PlantedCache, evaluation: Part, firings: Firings) -> dict:
    """Compares the dictionary with the true features of a planted world."""
    activations = cache.split("evaluation").activations[: evaluation.n_tokens]
    world, rows = cache.world, sae.W_dec.detach().float().cpu().numpy()
    return measure_truth(rows, firings, world.directions, as_firings(activations, evaluation), world.parent)


def _conditions(
    sae: SAE, cache: Cache, spec: recipe.Measure, calibration: Calibration, firings: Firings, seed: int | None
) -> dict:
    """The conditions of the measures; two SAEs are compared only where these are alike."""
    return {
        "n_tokens": firings.n_tokens,
        "calibration_tokens": calibration.n_tokens,
        "rule": calibration.rule,
        "threshold": calibration.threshold,
        "k": sae.config.k,
        "l0_realised": firings.l0,
        "n_latents": sae.n_latents,
        "n_documents": len(np.unique(firings.documents)),
        "seed": seed,
        "critic_seeds": list(range(SEED, SEED + spec.critics)),
        "data": cache.fingerprint,
        "text": cache.text,
        "senses": texts.digest(Path(spec.senses)) if spec.senses else None,
        "labels": texts.digest(Path(spec.labels)) if spec.labels else None,
        "sae": sae_fingerprint(sae),
    }


def firings_of(
    sae: SAE, split: Split, folder: Path | None, progress: Progress = SILENT, ranks: Ranks = ALONE
) -> Firings:
    """The SAE's firings on a split: read from `folder` where it holds exactly these, else computed and kept there.

    Those of a folder are on all of the text, see `Firings.counted`.
    """
    if folder is None:
        return fire(sae, split, BATCH, progress, ranks)
    if ranks.agreed(is_store_of(folder, sae, split)):
        return open_firings(folder)
    return write_firings(sae, split, folder, BATCH, progress, ranks)


def evaluation_of(cache: Cache, spec: recipe.Measure) -> Part:
    """The evaluation tokens, the same for every SAE. Raises UserError when there are none."""
    evaluation = head(cache.split("evaluation"), spec.tokens)
    if evaluation.n_tokens < 1:
        raise UserError("no evaluation tokens; raise text.evaluation_share or give more text")
    return evaluation
