"""BatchTopK (arXiv 2412.06410): the k*B largest entries of the batch."""

from metasae.sae.architectures.base import Architecture


class BatchTopK(Architecture):
    rows_over_ranks = True
    over_batch = True

    def select(self, pre_BN, weights, k, cut, kernels):
        return kernels.select(pre_BN, k * pre_BN.shape[0], cut)
