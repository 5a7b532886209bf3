"""TensorBoard's event files, in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard`."""

import shutil
from pathlib import Path

from metasae.errors import UserError, install_hint


class TensorBoard:
    """One folder of events per SAE. They are written anew from the record, which is small, so no step is there twice."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(f"tracking with TensorBoard needs its package: {install_hint('tracking')}") from None
        self._place, self._new, self._writers = folder / "tensorboard", SummaryWriter, {}

    def last(self, name: str) -> int:
        shutil.rmtree(self._place / name, ignore_errors=True)
        return 0

    def curves(self, name: str, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self._writer(name).add_scalar(key, value, step)

    measures = curves

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, name: str):
        if name not in self._writers:
            self._writers[name] = self._new(str(self._place / name))
        return self._writers[name]
