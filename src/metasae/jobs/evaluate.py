"""`metasae.evaluate`: measures an SAE on a user's activations, without a model or a run folder."""

import hashlib
from typing import Any

import numpy as np
import torch

from metasae.data.cache.given import GivenRows, documents_of, positions_of
from metasae.data.split import Rows
from metasae.errors import UserError
from metasae.measures.firing.calibrate import Calibration
from metasae.measures.suite import measure_sae, reference_of
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE

# Values that leave out everything that needs a model or the text of the rows.
_WITHOUT_MODEL = {"output_tokens": 0, "concepts": 0, "senses": "", "labels": "", "side_effects": 0}


class _OneSplit:
    """The interface of `ActivationCache`, with the same rows as every split."""

    text = "activations given in Python"

    def __init__(self, rows: Rows, fingerprint: str):
        self.rows, self.fingerprint, self.d = rows, fingerprint, rows.d

    def split(self, name: str) -> Rows:
        return self.rows


def evaluate(
    sae: SAE,
    x: Any,
    documents: Any = None,
    *,
    meta: SAE | None = None,
    measure: dict[str, Any] | None = None,
    show: bool = False,
) -> dict:
    """The measures of an SAE on your own activations; returns the keys and numbers of a run's measures.json.

    Keys: `fidelity` (fvu, l2, l0, dead, rates), `cooccurrence` (mean_abs_phi, lift, dependence, document_shift, ...),
    `decomposability` (what fresh meta SAEs explain of the decoder rows), conditions, calibration, settings; numbers
    that rest on text have intervals over documents in `leave_one_out`. docs/measures.md explains each.

    sae: with a threshold; it is not changed. x: as in `metasae.train`; all rows are used. They should be held out from
    the SAE's training. documents: int [T], as in `metasae.train`. meta: the meta SAE that was trained with it. measure:
    values of a recipe's table `measure`, e.g. {"critics": 1, "meta_steps": 50} for quicker, rougher numbers.

    Raises UserError for an SAE that has no threshold or never fires, for x of another width or with a NaN, and for an
    unknown key of `measure`.
    """
    if sae.threshold is None:
        raise UserError(
            "this SAE has no threshold yet; set one, on rows of its training data, with "
            "metasae.measures.firing.calibrate.calibrate(sae, metasae.data.split.Rows(x))"
        )
    spec = Recipe.load({"measure": {**(measure or {}), **_WITHOUT_MODEL}}).measure
    given = GivenRows(x)
    if given.d != sae.config.d_in:
        raise UserError(f"x has the width {given.d}, and this SAE reads vectors of width {sae.config.d_in}")
    rows = torch.cat(list(given.blocks(1 << 62))).float()
    spec = spec.model_copy(update={"tokens": len(rows), "calibration_tokens": len(rows)})
    own = documents_of(given, documents, len(rows))
    columns = (np.arange(len(rows), dtype=np.int32), own, positions_of(own))
    fingerprint = hashlib.blake2b(rows.numpy().data, digest_size=16).hexdigest()
    cache, progress = _OneSplit(Rows(rows, columns), fingerprint), Progress(show)
    noted = sae.config.metadata.get("calibration")
    return measure_sae(
        sae,
        meta,
        cache,
        spec,
        progress=progress,
        calibration=Calibration(**noted) if noted else None,
        reference=reference_of(cache, spec, progress=progress),
    )
