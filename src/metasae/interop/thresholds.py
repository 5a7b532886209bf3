"""Recognises thresholds that another library never set.

BatchTopK SAEs are trained without a threshold. The libraries estimate one during training, from some step on, and keep
it in a buffer that starts with a mark: -1 in dictionary_learning, 0 in SAELens. If the mark were read as a threshold,
the SAE would be a ReLU SAE with many times its k. The paper's script writes 10.0 for a latent that never fired.
"""

import math

from metasae.errors import UserError
from metasae.sae.folder import never_set, refuse_never_set
from metasae.sae.sae import SAE

# Architectures, by the names that their libraries have for them, that keep k; the paper's topk may have thresholds too.
WITH_K = ("batchtopk", "matryoshka_batchtopk", "matryoshka", "topk")
# In `thresholds_*.npy` of the paper's code, a latent that never fired.
PAPER_DEAD = 10.0
# L0 is called different from k where one is this many times the other.
FAR = 1.5


def with_set_thresholds(sae: SAE, format: str, where: str) -> SAE:
    """The SAE with `sae.threshold = None` where its library never set the thresholds but its k is known; otherwise the
    SAE as it is.

    `metasae measure` calibrates such an SAE to its k; before that it can neither encode nor be written. Changes `sae`.
    Raises UserError for a JumpReLU SAE whose thresholds were never set, as they cannot be calibrated without a k.
    """
    kind, threshold = sae.config.architecture, sae.threshold
    if sae.config.rule != "threshold":
        return sae
    if kind in WITH_K:
        dead = PAPER_DEAD if format == "paper" else math.inf
        sae.threshold = None if never_set(threshold, dead) else threshold
    elif kind == "jumprelu":
        refuse_never_set(threshold, where)
    return sae


def said_of_thresholds(sae: SAE, label: str, rule: str) -> list[str]:
    """Notes on an SAE's thresholds, before it is measured. rule: the rule by which they are calibrated."""
    if sae.threshold is None:
        return [
            f"{label} comes without thresholds, as its library never set them; metasae calibrates them to its k = "
            f"{sae.config.k} by measure.threshold = {rule}"
        ]
    if sae.config.architecture == "batchtopk" and sae.config.rule == "topk":
        return [
            f"{label} is a BatchTopK SAE without thresholds beside it; it keeps the k = {sae.config.k} largest of each "
            "token, as its own encode does"
        ]
    return []


def said_of_l0(sae: SAE, label: str, l0: float) -> list[str]:
    """A warning about an imported BatchTopK SAE whose thresholds let through far more or fewer latents than its k.

    Its library estimates the thresholds during training, and the file does not show whether the estimate was finished.
    """
    k, kind = sae.config.k, sae.config.architecture
    of_others = "imported" in sae.config.metadata and kind in WITH_K and sae.config.rule == "threshold"
    if not of_others or k / FAR <= l0 <= k * FAR:
        return []
    return [
        f"{label} has {l0:.3g} active latents per token, but was trained to keep k = {k}: its threshold may not be "
        "that of the finished SAE, or this text may be unlike its training text"
    ]


def refuse_other_sizes(trainer: dict, sizes: dict[str, int], where: str) -> None:
    """Raises UserError where a config gives another size than the weights have.

    sizes: key -> the size that the weights have. A config that gives none, or a mark as -1, leaves it to the weights.
    """
    for key, size in sizes.items():
        value = trainer.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0 and value != size:
            raise UserError(
                f"{where}: {key} is {value}, but the weights have {size}; give the config that belongs to them"
            )
