"""TopK (arXiv 2406.04093): the k largest entries of each token."""

from metasae.sae.architectures.base import Architecture


class TopK(Architecture):
    rows_over_ranks = True

    def select(self, pre_BN, weights, k, cut, kernels):
        return kernels.select_rows(pre_BN, k), cut
