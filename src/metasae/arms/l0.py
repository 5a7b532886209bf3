"""Whether the realised L0 of a trained SAE is the k that its recipe asks for.

If it is not, measures of firings do not describe the SAE that was asked for, so a line says so when training ends and
in the report.
"""

from metasae.recipe.recipe import Dictionary

# As a share of k.
LIMIT = 0.1


def misses(l0: float, k: float) -> bool:
    """Whether L0, realised on tokens outside training, differs from k by more than a tenth of k."""
    return abs(l0 - k) > LIMIT * k


def missed_line(l0: float, k: float, rule: str, name: str, table: Dictionary) -> list[str]:
    """[a line with both numbers and what helps], or [] if L0 is near k or the recipe has `l0 = "free"`.

    rule: of the thresholds, as in `metasae.measures.firing.calibrate.Calibration`. name: the recipe's table, sae or
    meta.
    """
    if table.l0 == "free" or not misses(l0, k):
        return []
    advice = {
        "own": f"train longer, change train.lr or {name}.k",
        "rate": f"too few pre-activations are positive: change {name}.k",
    }.get(rule, f"measure.threshold = '{rule}' does not aim at k; 'rate' does")
    return [f"the realised L0 is {l0:.3g}, but {name}.k asks for {k:g}; {advice}"]


def missed_by(calibrations: dict[str, dict], table: Dictionary) -> dict[str, list[float]]:
    """{"solo-s0": [L0, k]} of the SAEs whose L0 misses k. calibrations: {label: the part `calibration` of
    measures.json, {} if it is not known}.
    """
    if table.l0 == "free":
        return {}
    known = {label: (numbers["l0"], numbers["k"]) for label, numbers in calibrations.items() if "k" in numbers}
    return {label: [l0, k] for label, (l0, k) in known.items() if misses(l0, k)}
