"""Matryoshka BatchTopK (arXiv 2503.17547): nested prefixes of the latents each rebuild the input.

    L2 = mean over prefixes m of mean (xh_m - x)^2,   xh_m = b_dec + sum over latents j < end_m of z_j w_j

so that early latents learn what is broad and cannot be absorbed by later, narrower ones. The selection is BatchTopK's.
"""

from metasae.sae.architectures.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    def ends(self, n):
        ends = sorted({max(1, round(share * n)) for share in self.options.prefixes if share < 1} | {n})
        return tuple(ends)
