"""A compare.json of an earlier version, completed with the keys that it lacks.

The explorer opens run folders as they lie, and a report can be asked for from a comparison that was read from a file.
Earlier versions wrote no `trained` and the verdict as one text; a folder of another tool may have no `pairs`.
`metasae compare` writes the file anew with every number.
"""

from metasae.recipe.registry import BASELINE

_UNKNOWN = {"enough": None, "r": None, "fall": None, "share": None}
_WITHOUT = {"a": None, "b": None, "difference": None, "percent": None, "ci95": None, "percent_ci95": None,
            "n_seeds": 0, "n_blocks": 0, "p_holm": None, "note": ""}  # fmt: skip


def completed(comparison: dict) -> dict:
    """The comparison with every key that the explorer and the report read.

    comparison: what compare.json holds, of any version. What is there stays as it is. What is missing becomes empty or
    None: no pairs, training not judged, a verdict without lines.
    """
    arms = comparison.get("arms") or {}
    pairs = {name: _entries(entries) for name, entries in (comparison.get("pairs") or {}).items()}
    baseline = BASELINE if BASELINE in arms else next(iter(arms), None)
    return {
        "run": "",
        "missing": [],
        "stale": [],
        "baseline": baseline,
        **comparison,
        "conditions": comparison.get("conditions") or {},
        "arms": {name: {"seeds": [], "values": {}, "intervals": {}, "means": {}, **arm} for name, arm in arms.items()},
        "pairs": pairs,
        "trained": {**_UNKNOWN, **(comparison.get("trained") or {})},
        "verdict": _lines(comparison.get("verdict")),
    }


def _entries(entries: dict) -> dict:
    whole = {key: {**_WITHOUT, **entry} for key, entry in entries.items()}
    # a change is 0 where the two arms have the same number in every seed
    for entry in whole.values():
        entry.setdefault("values", [{"seed": 0, "a": entry["a"], "b": entry["b"]}])
    return whole


def _lines(verdict: str | list | None) -> list[dict[str, str]]:
    """Each line of a verdict as {kind, text}."""
    lines = [verdict] if isinstance(verdict, str) else verdict or []
    return [{"kind": "truth", "text": line} if isinstance(line, str) else line for line in lines]
