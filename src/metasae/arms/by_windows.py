"""Training when activations come a window at a time.

Every arm trains on a window before the next window takes its place on the disk.

Between two windows an arm lies in its checkpoint, so a run that is killed goes on as it would have gone on anyway,
with the same bits.
"""

from collections.abc import Callable
from pathlib import Path

from metasae.arms.source import Source
from metasae.arms.train_measure import Turn, is_trained, train_arm
from metasae.data.cache.cache import ActivationCache
from metasae.data.cache.rolling import RollingHarvest, TrainingWindow, open_window, training_windows
from metasae.data.split import Split
from metasae.progress.progress import Progress
from metasae.progress.stop import StopRequest
from metasae.ranks.ranks import Ranks
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.checkpoint import steps


def train_by_windows(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache,
    arms: list[tuple[str, int]],
    folder_of: Callable[[str, int], Path],
    done: Callable[..., None],
    device: str,
    progress: Progress,
    stop: StopRequest,
    ranks: Ranks,
) -> None:
    """Trains all arms to their end.

    cache: the other splits. folder_of: an arm and a seed -> its folder. done: told `train ARM-sSEED` and the seconds
    it took. Called by all ranks; the first harvests. Raises Interrupted once the state is saved.
    """
    total = -(-recipe.train.tokens // recipe.train.batch)
    folders = {(arm, seed): folder_of(arm, seed) for arm, seed in arms}
    seconds = dict.fromkeys(folders, 0.0)
    rolling = source.rolling() if ranks.first and not all(map(is_trained, folders.values())) else None
    try:
        number = 0
        while left := [arm for arm, folder in folders.items() if not ranks.agreed(is_trained(folder))]:
            known = training_windows(source.windows)
            unknown = number >= len(known)
            if ranks.agreed(unknown or any(_wants(folders[arm], known[number], total) for arm in left)):
                with stop.at_once():
                    window, split = _open(rolling, source, number, total, ranks)
                turn = Turn(split, training_windows(source.windows)[0], number, window.first, window.stop)
                for arm, seed in left:
                    folder = folders[arm, seed]
                    if not ranks.agreed(_wants(folder, window, total)):
                        continue
                    title = f"training {arm}, seed {seed}, on window {number}"
                    seconds[arm, seed] += train_arm(
                        recipe, source, cache, arm, seed, folder, device, progress, title, stop, ranks, turn
                    )
                    if is_trained(folder):
                        done(f"train {arm}-s{seed}", seconds[arm, seed])
                del split, turn
            if rolling is not None:
                rolling.drop(number)
            number += 1
    finally:
        if rolling is not None:
            rolling.close()


def _wants(folder: Path, window: TrainingWindow, total: int) -> bool:
    """Whether an arm that is not at its end has something to do in this window.

    Steps of its meta SAE may follow the last batch.
    """
    return steps(folder) < window.stop or window.stop >= total


def _open(
    rolling: RollingHarvest | None, source: Source, number: int, total: int, ranks: Ranks
) -> tuple[TrainingWindow, Split]:
    """The window on every rank, harvested by the first, which begins with the next one where there is one to come."""
    if rolling is not None:
        window, _ = rolling.window(number)
        if window.stop < total:
            rolling.ahead(number + 1)
    ranks.wait()
    return open_window(source.windows, number)
