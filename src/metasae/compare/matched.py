"""Measures that exist for two SAEs only: both are compared at equal values of a property that would mislead the plain
measure, such as firing rates.

Each function takes two measures.json, a and b, and returns the numbers of both; (None, None) if there are none.
"""

from functools import partial

# Two realised L0 count as equal if the larger is at most this share above the smaller.
EQUAL_L0 = 0.01


def phi_at_equal_rates(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Mean |phi| of both, each pair of firing-rate bands weighted by the number of latent pairs that both have in it.

    a, b: measures.json; see `phi_sums.matched_mean`.
    """
    from metasae.measures.cofiring.phi_sums import matched_mean

    cells = [measures.get("cooccurrence", {}).get("rate_cells") for measures in (a, b)]
    if None in cells:
        return None, None
    return matched_mean(*cells)


def dependence_at_equal_rates(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Dependence of firing of both, each pair of firing-rate bands weighted by the co-firings expected in both
    together.

    a, b: measures.json; see `dependence.rate_cells`. (None, None) if the realised L0 differ (`why_no_dependence`).
    """
    from metasae.measures.cofiring.phi_sums import matched_mean

    cells = _dependence_cells(a, b)
    if None in cells or why_no_dependence(a, b):
        return None, None
    return matched_mean(*cells, value="dependence", weight="expected")


def why_no_dependence(a: dict, b: dict) -> str:
    """Why the dependence of two SAEs is not compared although both have it: their realised L0 differ. "" if it is
    compared.
    """
    if None in _dependence_cells(a, b):
        return ""
    low, high = sorted(measures["cooccurrence"]["l0_realised"] for measures in (a, b))
    return "" if high <= (1 + EQUAL_L0) * low else f"realised L0 {low:.4g} and {high:.4g} differ by more than 1%"


def _dependence_cells(*both: dict) -> list[dict | None]:
    return [measures.get("cooccurrence", {}).get("dependence", {}).get("rate_cells") for measures in both]


def atomicity_at_equal_recall(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Sense atomicity of both, each bin of recall weighted by both SAEs together (`sense_matching.matched_recall`)."""
    from metasae.measures.words.sense_matching import matched_recall

    if "senses" not in a or "senses" not in b:
        return None, None
    return matched_recall(a["senses"], b["senses"])


def side_effect(name: str, a: dict, b: dict) -> tuple[float | None, float | None]:
    """A number of the side effects over matched latents of both.

    across.json has the numbers of both SAEs, in the arm that is not solo.

    Numbers of two other SAEs, as under another baseline, do not count.
    """
    effects = a.get("side_effects", {})
    if effects.get("of") != [measures["conditions"].get("sae") for measures in (a, b)]:
        return None, None
    return effects.get(f"{name}_a"), effects.get(f"{name}_b")


# by the key of their quantity in the catalogue
MATCHED = {
    "cooccurrence.phi_at_equal_rates": phi_at_equal_rates,
    "cooccurrence.dependence_at_equal_rates": dependence_at_equal_rates,
    "senses.atomicity_at_equal_recall": atomicity_at_equal_recall,
    **{
        f"side_effects.{name}": partial(side_effect, name)
        for name in ("spill_per_firing", "spill", "apart", "bluntness")
    },
}
# By the same key: why two SAEs that were measured alike have no such number.
WHY_NONE = {"cooccurrence.dependence_at_equal_rates": why_no_dependence}
