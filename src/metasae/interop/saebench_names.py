"""SAEBench's evaluations by name, and whether SAEBench is installed. Needs no torch."""

from collections.abc import Sequence
from importlib import util

from metasae.errors import UserError, install_hint, nearest

WEIGHTS_ONLY = ("meta_structure",)
# Those that load their model and data from the hub.
# name -> its module, its config class, settings that make it this one, whether it keeps activations on the disk
FROM_HUB: dict[str, tuple[str, str, dict, bool]] = {
    "absorption": ("absorption", "AbsorptionEvalConfig", {}, False),
    "ravel": ("ravel", "RAVELEvalConfig", {}, True),
    "scr": ("scr_and_tpp", "ScrAndTppEvalConfig", {"perform_scr": True}, True),
    "tpp": ("scr_and_tpp", "ScrAndTppEvalConfig", {"perform_scr": False}, True),
    "sparse_probing": ("sparse_probing", "SparseProbingEvalConfig", {}, True),
    "sparse_probing_sae_probes": ("sparse_probing_sae_probes", "SparseProbingSaeProbesEvalConfig", {}, False),
}
EVALS = (*WEIGHTS_ONLY, *FROM_HUB)


def check_evals(evals: Sequence[str]) -> None:
    """Raises UserError for an unknown evaluation, for none, and where SAEBench is not installed."""
    for name in evals:
        if name not in EVALS:
            raise UserError(f"unknown evaluation '{name}'{nearest(name, EVALS)}")
    if not evals:
        raise UserError(f"no evaluation is asked for; known: {', '.join(EVALS)}")
    if util.find_spec("sae_bench") is None:
        raise UserError(f"SAEBench is not installed: {install_hint('saebench')}")
