"""TensorBoard's event files, in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard`."""

import shutil
from pathlib import Path


class TensorBoard:
    """One folder of events per SAE.

    They are written anew from the record, which is small, so no step is there twice.
    """

    def __init__(self, folder: Path):
        self._folder, self._writers = folder / "tensorboard", {}

    def last(self, name: str) -> int:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return 0

    def curves(self, name: str, step: int, numbers: dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name))
        for key, value in numbers.items():
            self._writers[name].add_scalar(key, value, step)

    measures = curves

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
