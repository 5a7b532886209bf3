"""Training when activations come a window at a time: all arms train on a window before the next takes its place.

Between two windows an arm lies in its checkpoint, so a run that is killed goes on as it would have gone on anyway, with
the same bits.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from metasae.arms.folder import Arm
from metasae.arms.source import Source
from metasae.arms.train_measure import Turn, train_arm
from metasae.data.cache.cache import ActivationCache
from metasae.data.cache.rolling import TrainingWindow, open_window, training_windows
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.checkpoint import steps


def train_by_windows(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache,
    arms: Sequence[Arm],
    done: Callable[..., None],
    stop: StopRequest,
) -> None:
    """Trains all arms to their end.

    cache: the other splits. done: told `train ARM-sSEED` and the seconds it took.
    Called by all ranks of the source; the first harvests. Raises Interrupted once the state is saved.
    """
    total, ranks = -(-recipe.train.tokens // recipe.train.batch), source.ranks
    seconds = dict.fromkeys(arms, 0.0)
    rolling = source.rolling() if ranks.first and not all(arm.is_trained for arm in arms) else None
    try:
        number = 0
        while left := [arm for arm in arms if not ranks.agreed(arm.is_trained)]:
            known = training_windows(source.windows)
            unknown = number >= len(known)
            if ranks.agreed(unknown or any(_wants(arm.folder, known[number], total) for arm in left)):
                with stop.at_once():
                    if rolling is not None and rolling.window(number)[0].stop < total:
                        rolling.ahead(number + 1)
                    ranks.wait()
                    window, split = open_window(source.windows, number)
                turn = Turn(split, training_windows(source.windows)[0], number, window.first, window.stop)
                for arm in left:
                    if not ranks.agreed(_wants(arm.folder, window, total)):
                        continue
                    title = f"training {arm.name}, seed {arm.seed}, on window {number}"
                    seconds[arm] += train_arm(recipe, source, cache, arm, source.progress, title, stop, turn)
                    if arm.is_trained:
                        done(f"train {arm.label}", seconds[arm])
                del split, turn
            if rolling is not None:
                rolling.drop(number)
            number += 1
    finally:
        if rolling is not None:
            rolling.close()


def _wants(folder: Path, window: TrainingWindow, total: int) -> bool:
    """Whether an arm that is not at its end has something to do in this window; steps of its meta SAE may follow the
    last batch.
    """
    return steps(folder) < window.stop or window.stop >= total
