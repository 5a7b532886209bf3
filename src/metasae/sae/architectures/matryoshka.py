"""Matryoshka BatchTopK (arXiv 2503.17547): nested prefixes of the latents each rebuild the input.

    L2 = mean over prefixes m of mean (xh_m - x)^2,   xh_m = b_dec + sum over latents j < end_m of z_j w_j

The first latents so learn broad features, which later, narrower latents cannot absorb. The selection is BatchTopK's.
"""

from collections.abc import Sequence

from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.spread import Whole


class Matryoshka(BatchTopK):
    # a rank would hold a part of each prefix
    rows_over_ranks = False

    def ends(self, n):
        return ends_of(self.options.prefixes, n, self.spread)


def ends_of(shares: Sequence[float], n: int, spread: Whole) -> tuple[int, ...]:
    """Ends of the prefixes that are these shares of all latents, and of all of them, among the `n` latents here."""
    whole = spread.n_latents(n)
    ends = sorted({max(1, round(share * whole)) for share in shares if share < 1} | {whole})
    # clipped to this process's latents. A prefix of which it has none stays, as all ranks take part in its sum
    start = spread.latents(n).start
    return tuple(min(max(end - start, 0), n) for end in ends)
