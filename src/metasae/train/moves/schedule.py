"""The schedule of `train.nest` and `train.margin`: a value that is constant, then falls linearly."""

from metasae.recipe.tables import LetGo


def value(times: LetGo, start: float, end: float, step: int, total: int) -> float:
    """At a primary step (counted from 0) of `total`: `start` until the share `hold` of all steps, then linear, `end`
    from the share `gone` on.
    """
    t = step / total
    if t >= times.gone:
        return end
    left = (times.gone - t) / (times.gone - times.hold) if t > times.hold else 1.0
    return end + left * (start - end)
