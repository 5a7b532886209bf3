"""Measures that exist for two SAEs only: both are looked at where they are alike in something that would fool the plain number."""

from collections.abc import Callable

Numbers = tuple[float | None, float | None]


def phi_at_equal_rates(a: dict, b: dict) -> Numbers:
    """Mean |phi| of both, each pair of firing-rate bands weighed by the pairs of both in it (`rate_cells.matched_mean`). a, b: measures.json."""
    from metasae.measures.cofiring.rate_cells import matched_mean

    cells = [measures.get("cooccurrence", {}).get("rate_cells") for measures in (a, b)]
    if None in cells:
        return None, None
    return matched_mean(*cells)


def atomicity_at_equal_recall(a: dict, b: dict) -> Numbers:
    """Sense atomicity of both, each bin of recall weighed by both SAEs together (`sense_matching.matched_recall`)."""
    from metasae.measures.words.sense_matching import matched_recall

    if "senses" not in a or "senses" not in b:
        return None, None
    return matched_recall(a["senses"], b["senses"])


def side_effect(name: str) -> Callable[[dict, dict], Numbers]:
    """A number of the side effects over matched latents; across.json has both SAEs' beside each other, in the arm that is not solo.

    Those of other two SAEs than these, as under another baseline, are none.
    """

    def numbers(a: dict, b: dict) -> Numbers:
        found = a.get("side_effects", {})
        if found.get("of") != [measures["conditions"].get("sae") for measures in (a, b)]:
            return None, None
        return found.get(f"{name}_a"), found.get(f"{name}_b")

    return numbers


# by the key of their quantity in the catalogue
MATCHED: dict[str, Callable[[dict, dict], Numbers]] = {
    "cooccurrence.phi_at_equal_rates": phi_at_equal_rates,
    "senses.atomicity_at_equal_recall": atomicity_at_equal_recall,
    "side_effects.spill_per_firing": side_effect("spill_per_firing"),
    "side_effects.spill": side_effect("spill"),
    "side_effects.apart": side_effect("apart"),
    "side_effects.bluntness": side_effect("bluntness"),
}
