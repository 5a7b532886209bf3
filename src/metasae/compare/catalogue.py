"""Every measure that is compared: where it lies in measures.json, its name in words, and which way is better.

The one place that says so; comparison, verdict, figures and report all read it.
"""

from dataclasses import dataclass
from typing import Literal

GROUPS = {
    "fidelity": "Fidelity",
    "cooccurrence": "Co-occurrence",
    "decomposability": "Decomposability",
    "seeds": "Seeds",
    "splits": "Splits of solo's latents",
    "merges": "Merges of solo's latents",
    "senses": "Word senses",
    "truth": "Planted truth",
    "side_effects": "Side effects of steering",
    "interp": "Auto-interp",
}


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
    speaks_of: Literal["atomicity", "fidelity", "explanation"] | None = None
    main: bool = False
    meaning: str = ""
    relative: bool = True

    @property
    def robust(self) -> bool:
        """Whether it was right in every case whose answer is known (docs/measures.md), without knowing the truth."""
        return self.key in ROBUST

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def group(self) -> str:
        return self.path[0]


ROBUST = ("cooccurrence.fixed_marginals.lift_variance", "decomposability.meta_ve_excess_over_gaussian")


def _of(group: str):
    """A short way to name the quantities of one group; `within/name` lies one table deeper."""

    def quantity(name: str, label: str, better=None, main=False, meaning="", relative=True) -> Quantity:
        return Quantity(
            (group, *name.split("/")), label, better, SPEAKS_OF[group] if better else None, main, meaning, relative
        )

    return quantity


def _score(score: str, part: str) -> str:
    """Where auto-interp has a score's mean over an arm's random latents."""
    return f"scores/{score}/parts/{part}/estimate"


SPEAKS_OF = dict.fromkeys(GROUPS, "atomicity") | {"fidelity": "fidelity", "interp": "explanation"}
_fidelity, _phi, _rows, _seeds, _splits, _merges, _senses, _truth, _steering, _interp = (_of(group) for group in GROUPS)

CATALOGUE: tuple[Quantity, ...] = (
    _phi("mean_abs_phi", "mean |phi|", "lower", True, "mean absolute co-firing correlation over all pairs of latents"),
    _phi(
        "nearest_phi",
        "nearest-partner phi",
        "lower",
        True,
        "mean over latents of the phi with the partner it fires with most",
    ),
    _phi(
        "share_above_0.1", "pairs with phi > 0.1", "lower", True, "share of the pairs, those that clearly fire together"
    ),
    _phi(
        "fixed_marginals/excess_abs_phi",
        "excess |phi|",
        "lower",
        True,
        "mean |phi| beyond what the rates, the tokens' counts (fixed marginals) and chance give",
    ),
    _phi(
        "document_shift/excess_abs_phi",
        "excess |phi|, shifted text",
        "lower",
        False,
        "mean |phi| less that of latents read from other documents, rates kept",
    ),
    _phi(
        "phi_at_equal_rates",
        "mean |phi| at equal rates",
        "lower",
        True,
        "over the firing-rate bands that both SAEs have, weighed alike",
    ),
    _phi("share_above_0.05", "pairs with phi > 0.05", "lower"),
    _phi("share_above_0.3", "pairs with phi > 0.3", "lower"),
    _phi("mean_pos_phi", "mean phi of positive pairs", "lower"),
    _phi(
        "mean_over_max",
        "phi / largest possible, positive pairs",
        "lower",
        False,
        "phi as a share of the largest that the two rates allow",
    ),
    _phi(
        "fixed_marginals/lift_variance",
        "lift variance",
        "lower",
        True,
        "mean (lift - 1)^2, weighted, less chance: no rates in it",
    ),
    _phi(
        "lift/share_contained",
        "latents within another's firings",
        "lower",
        False,
        "with a partner of phi / phi_max > 0.5, false discoveries 1%",
    ),
    _phi("lift/share_with_partner", "latents with a partner, |ln lift| > ln 3", "lower", False, "false discoveries 1%"),
    _phi("lift/share_with_positive", "the same, firing together", "lower"),
    _phi("lift/median_positive", "median ln lift of pairs firing together", "lower"),
    _phi(
        "mean_neg_phi",
        "mean phi of negative pairs",
        None,
        False,
        "bounded by the firing rates, so no evidence either way",
    ),
    _phi("share_pos", "share of positive pairs"),
    _phi(
        "fixed_marginals/null_abs_phi",
        "mean |phi - phi0| of the fixed-marginals null",
        None,
        False,
        "the floor under the excess",
    ),
    _phi("document_shift/null_abs_phi", "mean |phi| over shifted text"),
    _phi("floor", "mean |phi| of independent latents", None, False, "sqrt(2 / (pi N)): what sampling alone gives"),
    _fidelity("fvu", "FVU", "lower", True, "squared error as a share of the activations' variance"),
    _fidelity("l0", "L0", None, True, "mean number of active latents per token, realised on the evaluation tokens"),
    _fidelity("dead", "dead share", "lower", True, "latents that fire on no evaluation token"),
    _fidelity("dense", "dense share", None, False, "latents that fire on more than a tenth of the tokens"),
    _fidelity("l2", "L2 per number", "lower", False, "mean squared error in squared model units"),
    _fidelity(
        "rates/log10_spread",
        "spread of log10 firing rate",
        None,
        False,
        "standard deviation over live latents; mean |phi| falls when it grows",
    ),
    _fidelity(
        "output_cosine_distance",
        "output cosine distance",
        "lower",
        True,
        "of the model's last hidden state per token, SAE in place",
    ),
    _fidelity(
        "output_cosine_distance_pooled",
        "output cosine distance, pooled",
        "lower",
        False,
        "likewise of the mean over a window",
    ),
    _fidelity("output_cosine_distance_mean_ablated", "output cosine distance, mean-ablated"),
    _fidelity("output_cosine_distance_zero_ablated", "output cosine distance, zero-ablated"),
    _fidelity(
        "ce_delta",
        "cross-entropy added (nats)",
        "lower",
        True,
        "by putting the reconstruction in place of the activation",
    ),
    _fidelity("ce_delta_percent", "cross-entropy added (% of clean)", "lower"),
    _fidelity(
        "ce_recovered",
        "cross-entropy recovered",
        "higher",
        False,
        "1: as without the SAE; 0: as with zeros in its place",
    ),
    _fidelity("kl", "KL from the clean prediction (nats)", "lower"),
    _fidelity(
        "ce_delta_batch_topk",
        "cross-entropy added, batch top-k (nats)",
        "lower",
        False,
        "the paper's rule at evaluation",
    ),
    _fidelity("kl_batch_topk", "KL, batch top-k (nats)", "lower"),
    _fidelity("ce_clean", "cross-entropy without SAE (nats)"),
    _fidelity("ce_sae", "cross-entropy with SAE (nats)"),
    _fidelity("ce_mean", "cross-entropy mean-ablated (nats)"),
    _fidelity("ce_zero", "cross-entropy zero-ablated (nats)"),
    _rows(
        "meta_ve_excess",
        "meta VE excess",
        "lower",
        True,
        "variance of the rows a fresh meta SAE explains, minus the same on random rows",
        False,
    ),
    _rows(
        "meta_ve_heldout_excess",
        "meta VE excess, held out",
        "lower",
        False,
        "likewise on the fifth of the rows the critic never saw",
        False,
    ),
    _rows(
        "meta_ve_excess_over_gaussian",
        "meta VE beyond covariance",
        "lower",
        True,
        "less that of Gaussian rows with the same covariance",
        False,
    ),
    _rows(
        "meta_ve_heldout_excess_over_gaussian",
        "beyond covariance, held out",
        "lower",
        True,
        "likewise on the rows the critic never saw",
        False,
    ),
    _rows(
        "nearest_cosine",
        "nearest decoder cosine",
        "lower",
        True,
        "mean over latents of the cosine with the nearest other decoder row",
    ),
    _rows(
        "pursuit/e_2_excess",
        "two-row fit, excess",
        "lower",
        False,
        "share of a row that two others explain, less the same of random rows",
        False,
    ),
    _rows(
        "pursuit/e_2_excess_over_gaussian",
        "two-row fit beyond covariance",
        "lower",
        True,
        "as above, against rows of equal covariance",
        False,
    ),
    _rows("pursuit/e_1", "error with one other row", "higher"),
    _rows("pursuit/e_2", "error with two other rows", "higher"),
    _rows("pursuit/e_3", "error with three other rows", "higher"),
    _rows("meta_ve", "meta VE", "lower"),
    _rows("meta_ve_heldout", "meta VE, held-out rows", "lower"),
    _rows("meta_ve_random", "meta VE of random rows"),
    _rows("meta_ve_gaussian", "meta VE of Gaussian rows"),
    _rows(
        "encoder_decoder_cosine",
        "encoder-decoder cosine",
        None,
        False,
        "falls when rows turn into noise that their encoder does not follow",
    ),
    _rows(
        "own_meta_e",
        "own meta SAE's error e",
        None,
        False,
        "trained against in the joint arm, so no evidence of atomicity",
    ),
    _rows("own_meta_ve", "own meta SAE's VE", None, False, "likewise"),
    _seeds(
        "ve_over_r",
        "meta VE / r",
        None,
        False,
        "noise that another seed shows taken out; above 1 the rows differ by more than noise",
    ),
    _seeds(
        "mean_r",
        "r with another seed",
        None,
        True,
        "cosine of matched rows; falls with noise, and where seeds find other things",
    ),
    _seeds("chance_r", "r by chance", None, False, "of Gaussian rows with both covariances, matched alike"),
    _seeds("found_again_0.5", "latents found again (cosine > 0.5)"),
    _seeds("found_again_0.7", "latents found again (cosine > 0.7)"),
    _seeds("found_again_0.9", "latents found again (cosine > 0.9)"),
    _splits(
        "mean_score",
        "split score",
        None,
        True,
        "of solo's latents in this arm; in solo's column, in its next seed: the base rate",
    ),
    _splits("n_above_0.1", "latents with a split above 0.1"),
    _splits("n_above_0.25", "latents with a split above 0.25"),
    _merges(
        "mean_score",
        "merge score",
        None,
        False,
        "the same the other way round: latents of the arm that solo has in pieces",
    ),
    _merges("n_above_0.1", "merges above 0.1"),
    _senses(
        "atomicity_matched",
        "sense atomicity, matched",
        "higher",
        True,
        "on equally many firings; 0: all senses alike, 1: one sense",
        False,
    ),
    _senses(
        "coverage_f1",
        "sense coverage F1",
        "higher",
        True,
        "macro F1 of the best latent per sense, on sentences it was not chosen on",
    ),
    _senses(
        "atomicity_at_equal_recall",
        "sense atomicity, equal recall",
        "higher",
        False,
        "over the bins of recall that both have",
        False,
    ),
    _senses(
        "ami", "sense AMI", "higher", False, "what the latent that stands out tells about the sense, less chance", False
    ),
    _senses(
        "blend_matched",
        "latents blending senses, at equal firings",
        "lower",
        False,
        "second prior-free share of a quarter or more",
        False,
    ),
    _senses("atomicity", "sense atomicity, raw", None, False, "favours latents that fire rarely", False),
    _senses("blend", "latents blending senses, raw", None, False, "likewise"),
    _senses("probe_f1", "linear probe's F1", None, False, "the ceiling on these activations"),
    _senses("coverage_floor", "coverage F1 of shuffled senses"),
    _truth(
        "blend_rate", "blend rate", "lower", True, "share of live latents whose row is made of several true features"
    ),
    _truth("uniqueness", "uniqueness", "higher", True, "different best features per live latent"),
    _truth(
        "mcc_of_features",
        "MCC of all features",
        "higher",
        True,
        "mean |cosine| of matched pairs, a feature without a latent counting 0",
    ),
    _truth("f1", "firing F1", "higher", True, "of each feature's matched latent"),
    _truth("absorption", "absorption", "lower", False, "parent on, its latent silent, a child's latent carries it"),
    _truth(
        "phi_related_error", "phi error of related features", "lower", False, "mean |phi of the latents - true phi|"
    ),
    _truth("mcc", "MCC", "higher", False, "rises when latents are copied, so read beside uniqueness"),
    _truth("phi_error", "phi error", "lower"),
    _truth("phi_related_bias", "phi bias of related features"),
    _interp(
        _score("detection", "same_token"),
        "detection, same token silent",
        "higher",
        True,
        "balanced accuracy; hard negatives, which see blends",
    ),
    _interp(
        _score("detection", "random"),
        "detection, random silent text",
        "higher",
        False,
        "balanced accuracy: does the latent fire in this text?",
    ),
    _interp(
        _score("detection", "neighbour"),
        "detection, neighbour's text",
        "higher",
        False,
        "a phi-neighbour fires, the latent does not",
    ),
    _interp(
        _score("detection", "same_token_auc"),
        "detection AUC, same token silent",
        "higher",
        False,
        "no threshold of the judge's",
    ),
    _interp(_score("detection", "random_auc"), "detection AUC, random silent text", "higher"),
    _interp(
        _score("fuzz_marks", "same_token"),
        "marks, same token silent",
        "higher",
        False,
        "balanced accuracy: are the right tokens marked?",
    ),
    _interp(_score("fuzz_marks", "random"), "marks, random silent text", "higher"),
    _interp(_score("fuzz_2afc", "all"), "real or replaced", "higher", False, "the paper's text: 2 x accuracy - 1"),
    _interp(
        _score("sim_spearman", "all"),
        "simulated strength",
        None,
        False,
        "the paper's code; no negatives, so it misses what is too wide",
    ),
    _interp(
        _score("sense_intruder", "all"),
        "sense intruder",
        None,
        False,
        "chance 1/5; in solo's column splits between seeds, the base rate",
    ),
    _interp(_score("embedding", "same_token"), "embedding AUC, same token silent", "higher", False, "needs no judge"),
    _interp(_score("embedding", "random"), "embedding AUC, random silent text", "higher", False, "needs no judge"),
    _interp(_score("embedding", "neighbour"), "embedding AUC, neighbour's text", "higher", False, "needs no judge"),
    _interp("coverage/share_covered", "latents with enough windows", None, False, "what the scores speak of"),
    _steering(
        "spill_per_firing",
        "spill per firing",
        "lower",
        False,
        "moved where the matched latent is silent, over its share of firings",
    ),
    _steering("spill", "spill", None, False, "the same, wider firing included"),
    _steering(
        "apart",
        "firings apart from the match",
        None,
        False,
        "share of the firings on which the matched latent is silent",
    ),
    _steering(
        "bluntness",
        "bluntness",
        None,
        False,
        "effect in silent text over that in its own; random directions have 1; does not tell blends",
    ),
)

WHY_NOT_PHI_ALONE = (
    "Mean |phi| alone is not atomicity: at fixed lift it is proportional to L0, and it falls when firing rates spread, "
    "so it is read beside its excess over nulls, the lift, nearest-partner phi, the share of strong pairs and the critics on the decoder rows."
)


def value_of(measures: dict, quantity: Quantity) -> float | None:
    """The number in a measures.json, or None where it has none."""
    found = _at(measures, quantity.path)
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def left_out_of(measures: dict, quantity: Quantity) -> list[float | None] | None:
    """The number without each block of documents in turn: it lies under `leave_one_out` beside the number. None where it was not worked out."""
    *above, name = quantity.path
    return _at(measures, (*above, "leave_one_out", name)) or None


def _at(measures: dict, path: tuple[str, ...]):
    for key in path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return measures
