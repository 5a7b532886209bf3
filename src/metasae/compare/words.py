"""One difference in words: how large it is, which way it points, and what may be concluded from it.

entry: a difference as compare.json has it (`metasae.intervals.statistics.Difference.as_dict`).
"""

from metasae.compare.catalogue import Quantity
from metasae.intervals.statistics import is_clear, leaves_out_zero

ADJECTIVES = {"atomicity": "atomic", "fidelity": "faithful", "explanation": "explainable"}


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; - for none."""
    return "-" if value is None else f"{value:.{digits}g}"


def change(quantity: Quantity, entry: dict) -> str:
    """`-4.1% [-6.2, -2.0]`, or in pp as `scaled` says; `0` where every seed is as in the baseline."""
    if entry["difference"] is None:
        return "-"
    if all(value["a"] == value["b"] for value in entry["values"]):
        return "0"
    value, interval = scaled(quantity, entry)
    if value is None:
        return _with_interval(f"{entry['difference']:+.2g}", entry["ci95"] and [f"{end:+.2g}" for end in entry["ci95"]])
    unit = "%" if quantity.relative else " pp"
    return _with_interval(_signed(value) + unit, interval and list(map(_signed, interval)))


def scaled(quantity: Quantity, entry: dict) -> tuple[float | None, list[float] | None]:
    """(change, interval) in percent, or in pp (hundredths) for a share that is itself a difference; None for none."""
    if quantity.relative or entry["difference"] is None:
        return entry["percent"], entry["percent_ci95"]
    return 100 * entry["difference"], entry["ci95"] and [100 * end for end in entry["ci95"]]


def towards(quantity: Quantity, entry: dict) -> str:
    """`better`, `worse` or `same` by the sign of the difference, or "" for a quantity without a direction."""
    if quantity.better is None or entry["difference"] is None:
        return ""
    if entry["difference"] == 0:
        return "same"
    return "better" if (entry["difference"] < 0) == (quantity.better == "lower") else "worse"


def reading(quantity: Quantity, entry: dict) -> str:
    """What a row says: `more atomic`, `less faithful (1 seed)`, `unclear` ..., "" for a plain description."""
    direction = towards(quantity, entry)
    if direction in ("", "same"):
        return direction and "no change"
    conclusion = f"{'more' if direction == 'better' else 'less'} {ADJECTIVES[quantity.speaks_of]}"
    if is_clear(entry):
        return conclusion
    if entry["ci95"] is None:
        return entry["note"]
    return f"{conclusion}, not after Holm" if leaves_out_zero(entry) else "interval includes 0"


def is_established(entry: dict) -> bool:
    """Whether a difference of a main measure is clear, after Holm's correction."""
    return is_clear(entry) and entry.get("p_holm") is not None


def _with_interval(value: str, ends: list[str] | None) -> str:
    return f"{value} [{', '.join(ends)}]" if ends else value


def _signed(value: float) -> str:
    """About two significant digits; a small change is not written as 0."""
    for limit, digits in ((100, "+.0f"), (1, "+.1f"), (0.005, "+.2f")):
        if abs(value) >= limit:
            return f"{value:{digits}}"
    return f"{value:+.0e}" if value else "+0"
