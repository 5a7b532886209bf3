"""How pre [B, n] lies over the processes of a job, as far as a step has to know.

With one process it is whole, and every sum over a part is the sum. `metasae.train.sharded` has the two other ways: each
process holds some of the latents for all rows (the primary SAE), or some of the rows for all latents (a meta SAE on the
primary's rows).
"""

from torch import Tensor

from metasae.sae.weights import Weights


class Whole:
    """All rows and all latents are here."""

    def rows(self, here: int) -> int:
        """How many rows there are in all, of which `here` are here."""
        return here

    def row_mean(self, part_BD: Tensor) -> Tensor:
        """Mean over the entries of all rows, 0-dim."""
        return part_BD.mean()

    def latents(self, here: int) -> range:
        """Which of all latents are here, given how many are."""
        return range(here)

    def n_latents(self, here: int) -> int:
        """How many latents there are in all, of which `here` are here."""
        return here

    def over_latents(self, part: Tensor) -> Tensor:
        """The sum over all latents, given the sum over the latents here; `part` may be overwritten."""
        return part

    def all_latents(self, part: Tensor) -> Tensor:
        """[r, ...] of the latents here, any number of rows -> those of all latents, in the order of latents."""
        return part

    def over_rows(self, part: Tensor) -> Tensor:
        """The sum over all rows, given the sum over the rows here; `part` may be overwritten."""
        return part

    def gradients(self, part: Weights) -> Weights:
        """Gradients summed over all rows, given those of the rows here."""
        return part


WHOLE = Whole()
