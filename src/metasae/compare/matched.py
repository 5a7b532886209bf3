"""Measures that exist for two SAEs only: both are measured where they are alike in what would fool the plain number.

Each function takes two measures.json, a and b, and gives the numbers of both; (None, None) where there are none.
"""

from functools import partial

# Realised L0 are equal where the larger is at most this share above the smaller.
EQUAL_L0 = 0.01


def phi_at_equal_rates(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Mean |phi| of both, each pair of firing-rate bands weighed by the pairs of both in it.

    a, b: measures.json; see `phi_sums.matched_mean`.
    """
    from metasae.measures.cofiring.phi_sums import matched_mean

    cells = [measures.get("cooccurrence", {}).get("rate_cells") for measures in (a, b)]
    if None in cells:
        return None, None
    return matched_mean(*cells)


def dependence_at_equal_rates(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Dependence of firing of both, each pair of firing-rate bands weighed by the co-firings expected in both together.

    a, b: measures.json; see `dependence.rate_cells`. No numbers where L0 is not equal (`why_no_dependence`).
    """
    from metasae.measures.cofiring.phi_sums import matched_mean

    cells = _dependence_cells(a, b)
    if None in cells or why_no_dependence(a, b):
        return None, None
    return matched_mean(*cells, value="dependence", weight="expected")


def why_no_dependence(a: dict, b: dict) -> str:
    """Why the dependence of two SAEs is not compared though both have it: their realised L0; "" where it is."""
    if None in _dependence_cells(a, b):
        return ""
    low, high = sorted(measures["cooccurrence"]["l0_realised"] for measures in (a, b))
    return "" if high <= (1 + EQUAL_L0) * low else f"realised L0 {low:.4g} and {high:.4g} differ by more than 1%"


def _dependence_cells(*both: dict) -> list[dict | None]:
    return [measures.get("cooccurrence", {}).get("dependence", {}).get("rate_cells") for measures in both]


def atomicity_at_equal_recall(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Sense atomicity of both, each bin of recall weighed by both SAEs together (`sense_matching.matched_recall`)."""
    from metasae.measures.words.sense_matching import matched_recall

    if "senses" not in a or "senses" not in b:
        return None, None
    return matched_recall(a["senses"], b["senses"])


def side_effect(name: str, a: dict, b: dict) -> tuple[float | None, float | None]:
    """A number of the side effects over matched latents of both.

    across.json has both SAEs' beside each other, in the arm that is not solo.

    Those of two other SAEs than these, as under another baseline, do not count.
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
# Why two SAEs that were measured alike have no such number, by the same key.
WHY_NONE = {"cooccurrence.dependence_at_equal_rates": why_no_dependence}
