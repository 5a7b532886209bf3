"""Matryoshka BatchTopK (arXiv 2503.17547): nested prefixes of the latents each rebuild the input.

    L2 = mean over prefixes m of mean (xh_m - x)^2,   xh_m = b_dec + sum over latents j < end_m of z_j w_j

so that early latents learn what is broad and cannot be absorbed by later, narrower ones. The selection is BatchTopK's.
"""

from metasae.sae.architectures.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    # a rank holds a stretch of each prefix
    rows_over_ranks = False

    def ends(self, n):
        whole = self.spread.n_latents(n)
        ends = sorted({max(1, round(share * whole)) for share in self.options.prefixes if share < 1} | {whole})
        # cut to the latents here. A prefix stays where none of its own latents are here: all ranks take part in its sum
        start = self.spread.latents(n).start
        return tuple(min(max(end - start, 0), n) for end in ends)
