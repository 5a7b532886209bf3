"""How pre [B, n] is spread over the processes of a job.

One process has the whole matrix (`Whole`). `metasae.train.sharded` has the two other cases: each process holds some of
the latents for all rows (the primary SAE), or some of the rows for all latents (a meta SAE on the primary's rows).
"""

from torch import Tensor

from metasae.sae.weights import Weights


class Whole:
    """This process has all rows and all latents."""

    def rows(self, here: int) -> int:
        """The number of rows of all processes; `here`: of this one."""
        return here

    def row_mean(self, part_BD: Tensor) -> Tensor:
        """Mean over the entries of all rows, 0-dim."""
        return part_BD.mean()

    def latents(self, here: int) -> range:
        """Which of all latents this process has; `here`: how many they are."""
        return range(here)

    def n_latents(self, here: int) -> int:
        """The number of latents of all processes; `here`: of this one."""
        return here

    def over_latents(self, part: Tensor) -> Tensor:
        """The sum over all latents, given the sum over this process's; `part` may be overwritten."""
        return part

    def all_latents(self, part: Tensor) -> Tensor:
        """[r, ...] of this process, any number of rows -> those of all processes, in the order of latents."""
        return part

    def over_rows(self, part: Tensor) -> Tensor:
        """The sum over all rows, given the sum over this process's; `part` may be overwritten."""
        return part

    def gradients(self, part: Weights) -> Weights:
        """Gradients summed over all rows, given the sums over this process's rows."""
        return part


WHOLE = Whole()
