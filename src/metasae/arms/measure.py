"""The measuring of one trained arm."""

from collections.abc import Sequence

from metasae import files
from metasae.arms.folder import Arm
from metasae.arms.source import Source
from metasae.data.cache.cache import ActivationCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.errors import UserError
from metasae.measures.firing.calibrate import Calibration
from metasae.recipe.recipe import Measure, Recipe
from metasae.sae.sae import SAE


def measure_arm(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache | PlantedCache,
    arm: Arm,
    twins: Sequence[Arm] = (),
    reference=None,
):
    """Measures a trained arm and writes its measures.json; returns the reference
    (`metasae.measures.suite.reference_of`) for the next arm.

    All ranks of the source call this together, and the first writes. twins: arms that may have the same weights; if one
    is measured, its measures are taken over. reference: returned by an earlier call.
    """
    from metasae.measures.suite import evaluation_of, measure_sae, parts_of_model, reference_of

    spec, ranks, progress = recipe.measure, source.ranks, source.progress
    sae, meta = arm.sae(), arm.meta()
    result = ranks.from_first(_measured_twin(sae, meta, twins, spec) if ranks.first else None)
    if result is None:
        host = source.judge if parts_of_model(spec, ranks) else None
        harvested = host is not None and isinstance(cache, ActivationCache)
        if harvested and cache.index["identity"]["host"] != host.fingerprint:
            raise UserError(
                f"the model's files have changed since its activations were harvested into {cache.folder}; "
                "choose another --out"
            )
        if reference is None:
            reference = reference_of(cache, spec, host, progress, ranks=ranks, tokenizer=source.tokenizer)
        result = measure_sae(
            sae,
            meta,
            cache,
            spec,
            host,
            progress,
            seed=arm.seed,
            calibration=Calibration(**sae.config.metadata["calibration"]),
            reference=reference,
            folder=arm.folder / "firings" if spec.keep_firings else None,
            ranks=ranks,
            # the SAE of `train.init` met no spike-ins
            truth=None if arm == source.init else source.spike_truth(arm.seed, evaluation_of(cache, spec)),
            dtype=recipe.train.dtype,
        )
    if ranks.first:
        files.write_json(arm.folder / "measures.json", result)
    ranks.wait()
    return reference


def _measured_twin(sae: SAE, meta: SAE | None, twins: Sequence[Arm], spec: Measure) -> dict | None:
    """The measures of a twin with exactly the same weights (control has solo's), with the numbers of the SAE's own meta
    SAE; None if there is none.

    Measures by other settings than `spec` do not count.
    """
    from metasae.measures.firing.store import sae_fingerprint
    from metasae.measures.rows.decomposability import own_meta

    fingerprint = sae_fingerprint(sae)
    for twin in twins:
        measures = twin.measures()
        conditions = measures.get("conditions", {})
        if conditions.get("sae") == fingerprint and measures.get("settings", spec.settings) == spec.settings:
            rows = {key: value for key, value in measures["decomposability"].items() if not key.startswith("own_meta")}
            own = own_meta(sae, meta) if meta is not None else {}
            conditions = conditions | {"same_weights_as": twin.label}
            return measures | {"conditions": conditions, "decomposability": rows | own}
    return None
