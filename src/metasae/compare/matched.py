"""Measures that exist for two SAEs only: both are measured where they are alike in what would fool the plain number.

Each function takes two measures.json, a and b, and gives the numbers of both; (None, None) where there are none.
"""

from functools import partial


def phi_at_equal_rates(a: dict, b: dict) -> tuple[float | None, float | None]:
    """Mean |phi| of both, each pair of firing-rate bands weighed by the pairs of both in it.

    a, b: measures.json; see `phi_sums.matched_mean`.
    """
    from metasae.measures.cofiring.phi_sums import matched_mean

    cells = [measures.get("cooccurrence", {}).get("rate_cells") for measures in (a, b)]
    if None in cells:
        return None, None
    return matched_mean(*cells)


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
    "senses.atomicity_at_equal_recall": atomicity_at_equal_recall,
    **{
        f"side_effects.{name}": partial(side_effect, name)
        for name in ("spill_per_firing", "spill", "apart", "bluntness")
    },
}
