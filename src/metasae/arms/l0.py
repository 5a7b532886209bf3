"""Whether the L0 of a trained SAE in use is the k that its recipe asks for.

Numbers that rest on firings are not those of the SAE that was asked for where it is not, so it is said when training
ends and in the report.
"""

from metasae.recipe.recipe import Dictionary

# As a share of k.
LIMIT = 0.1


def misses(l0: float, k: float) -> bool:
    """Whether L0, realised on tokens apart from training, is more than a tenth off k."""
    return abs(l0 - k) > LIMIT * k


def missed_line(l0: float, k: float, rule: str, name: str, table: Dictionary) -> list[str]:
    """A line with both numbers and what helps, or none where k is met or `l0 = "free"` asks for none.

    rule: of the thresholds, as in `metasae.measures.firing.calibrate.Calibration`. name: of the recipe's table.
    """
    if table.l0 == "free" or not misses(l0, k):
        return []
    advice = {
        "own": f"train longer, change train.lr or {name}.k",
        "rate": f"so few pre-activations are positive: change {name}.k",
    }.get(rule, f"measure.threshold = '{rule}' does not aim at k, 'rate' does")
    return [f"L0 in use is {l0:.3g} where {name}.k asks for {k:g}; {advice}"]


def missed_by(calibrations: dict[str, dict], table: Dictionary) -> dict[str, list[float]]:
    """{"solo-s0": [L0, k]} of the SAEs that miss k. calibrations: label -> the `calibration` part of measures.json, {}
    where it is not known.
    """
    if table.l0 == "free":
        return {}
    known = {label: (numbers["l0"], numbers["k"]) for label, numbers in calibrations.items() if "k" in numbers}
    return {label: [l0, k] for label, (l0, k) in known.items() if misses(l0, k)}
