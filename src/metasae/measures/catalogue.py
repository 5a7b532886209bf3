"""Every measure that is compared: where it lies in measures.json, its name in words, and which way is better.

The one place that says so; comparison, verdict, figures and report all read it.
"""

from dataclasses import dataclass
from typing import Literal

GROUPS = {"fidelity": "Fidelity", "cooccurrence": "Co-occurrence", "decomposability": "Decomposability"}


@dataclass(frozen=True)
class Quantity:
    """path: keys from the top of measures.json. speaks_of: what its direction is evidence of; None for a plain description.

    better: the direction that is more atomic, or more faithful. main: part of the summary and of the verdict.
    relative: whether a change is told in percent; a share that is itself a difference may lie near 0, so its
    change is told in hundredths.
    """

    path: tuple[str, ...]
    label: str
    better: Literal["lower", "higher"] | None = None
    speaks_of: Literal["atomicity", "fidelity"] | None = None
    main: bool = False
    meaning: str = ""
    relative: bool = True

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def group(self) -> str:
        return self.path[0]


def _fidelity(name: str, label: str, better=None, main=False, meaning="") -> Quantity:
    return Quantity(("fidelity", *name.split("/")), label, better, "fidelity" if better else None, main, meaning)


def _atomicity(group: str, name: str, label: str, better=None, main=False, meaning="") -> Quantity:
    return Quantity((group, name), label, better, "atomicity" if better else None, main, meaning)


def _phi(name: str, label: str, better=None, main=False, meaning="") -> Quantity:
    return _atomicity("cooccurrence", name, label, better, main, meaning)


def _rows(name: str, label: str, better=None, main=False, meaning="") -> Quantity:
    return _atomicity("decomposability", name, label, better, main, meaning)


def _excess(name: str, label: str, meaning: str) -> Quantity:
    return Quantity(("decomposability", name), label, "lower", "atomicity", True, meaning, relative=False)


CATALOGUE: tuple[Quantity, ...] = (
    _phi("mean_abs_phi", "mean |phi|", "lower", True, "mean absolute co-firing correlation over all pairs of latents"),
    _phi("nearest_phi", "nearest-partner phi", "lower", True, "mean over latents of the phi with the partner it fires with most"),
    _phi("share_above_0.1", "pairs with phi > 0.1", "lower", True, "share of the pairs, those that clearly fire together"),
    _phi("share_above_0.05", "pairs with phi > 0.05", "lower"),
    _phi("share_above_0.3", "pairs with phi > 0.3", "lower"),
    _phi("mean_pos_phi", "mean phi of positive pairs", "lower"),
    _phi("mean_neg_phi", "mean phi of negative pairs", None, False, "bounded by the firing rates, so no evidence either way"),
    _phi("share_pos", "share of positive pairs"),
    _phi("floor", "mean |phi| of independent latents", None, False, "sqrt(2 / (pi N)): what sampling alone gives"),
    _fidelity("fvu", "FVU", "lower", True, "squared error as a share of the activations' variance"),
    _fidelity("l0", "L0", None, True, "mean number of active latents per token, realised on the evaluation tokens"),
    _fidelity("dead", "dead share", "lower", True, "latents that fire on no evaluation token"),
    _fidelity("dense", "dense share", None, False, "latents that fire on more than a tenth of the tokens"),
    _fidelity("l2", "L2 per number", "lower", False, "mean squared error in squared model units"),
    _fidelity(
        "rates/log10_spread", "spread of log10 firing rate", None, False, "standard deviation over live latents; mean |phi| falls when it grows"
    ),
    _fidelity("output_cosine_distance", "output cosine distance", "lower", True, "of the model's last hidden state per token, SAE in place"),
    _fidelity("output_cosine_distance_pooled", "output cosine distance, pooled", "lower", False, "likewise of the mean over a window"),
    _fidelity("output_cosine_distance_mean_ablated", "output cosine distance, mean-ablated"),
    _fidelity("output_cosine_distance_zero_ablated", "output cosine distance, zero-ablated"),
    _fidelity("ce_delta", "cross-entropy added (nats)", "lower", True, "by putting the reconstruction in place of the activation"),
    _fidelity("ce_delta_percent", "cross-entropy added (% of clean)", "lower"),
    _fidelity("ce_recovered", "cross-entropy recovered", "higher", False, "1: as without the SAE; 0: as with zeros in its place"),
    _fidelity("kl", "KL from the clean prediction (nats)", "lower"),
    _fidelity("ce_clean", "cross-entropy without SAE (nats)"),
    _fidelity("ce_sae", "cross-entropy with SAE (nats)"),
    _fidelity("ce_mean", "cross-entropy mean-ablated (nats)"),
    _fidelity("ce_zero", "cross-entropy zero-ablated (nats)"),
    _excess("meta_ve_excess", "meta VE excess", "variance of the decoder rows a fresh meta SAE explains, minus the same on random rows"),
    _excess("meta_ve_heldout_excess", "meta VE excess, held out", "likewise on the fifth of the rows the critic never saw"),
    _rows("nearest_cosine", "nearest decoder cosine", "lower", True, "mean over latents of the cosine with the nearest other decoder row"),
    _rows("meta_ve", "meta VE", "lower"),
    _rows("meta_ve_heldout", "meta VE, held-out rows", "lower"),
    _rows("meta_ve_random", "meta VE of random rows"),
    _rows(
        "encoder_decoder_cosine", "encoder-decoder cosine", None, False, "falls when the penalty turns rows into noise their encoder does not follow"
    ),
    _rows("own_meta_e", "own meta SAE's error e", None, False, "trained against in the joint arm, so no evidence of atomicity"),
    _rows("own_meta_ve", "own meta SAE's VE", None, False, "likewise"),
)

WHY_NOT_PHI_ALONE = (
    "Mean |phi| alone is not atomicity: at fixed lift it is proportional to L0, and it falls when firing rates spread, "
    "so it is read beside nearest-partner phi, the share of strong pairs and the critics on the decoder rows."
)


def value_of(measures: dict, quantity: Quantity) -> float | None:
    """The number in a measures.json, or None where it has none."""
    for key in quantity.path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return float(measures) if isinstance(measures, (int, float)) and not isinstance(measures, bool) else None
