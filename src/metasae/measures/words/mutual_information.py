"""Adjusted mutual information between two labellings of the same items: 0 for labellings that are independent, 1 for
equal ones.

    AMI = (MI - E[MI]) / ((H(u) + H(v)) / 2 - E[MI])

where E[MI] is over all pairings of the two labellings with their cluster sizes kept. Source: Vinh, Epps and Bailey,
Information Theoretic Measures for Clusterings Comparison, JMLR 11 (2010).
"""

from collections import Counter
from itertools import product

import numpy as np


def adjusted_mutual_information(u: np.ndarray, v: np.ndarray) -> float | None:
    """u, v: labels of any kind, [T].

    None where it does not exist: no items, or nothing that the labellings could share.
    """
    if not len(u):
        return None
    _, rows = np.unique(u, return_inverse=True)
    _, columns = np.unique(v, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    a, b = table.sum(1), table.sum(0)
    expected = expected_mutual_information(a, b)
    possible = (_entropy(a) + _entropy(b)) / 2 - expected
    if possible < 1e-12:
        return None
    mutual = _entropy(a) + _entropy(b) - _entropy(table.ravel())
    return float((mutual - expected) / possible)


def expected_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mean MI in nats over all pairings of labellings with cluster sizes a [r] and b [c], which have the same sum.

    sum over i, j and overlaps n of (n/T) ln(T n / (a_i b_j)) P(n), with P hypergeometric.
    """
    from scipy.special import gammaln

    total = int(a.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    expected = 0.0
    # equal sizes give equal terms, and most clusters are small
    for (size_a, many_a), (size_b, many_b) in product(Counter(a.tolist()).items(), Counter(b.tolist()).items()):
        n = np.arange(max(1, size_a + size_b - total), min(size_a, size_b) + 1)
        log_p = (
            log_factorial[size_a]
            + log_factorial[size_b]
            + log_factorial[total - size_a]
            + log_factorial[total - size_b]
            - log_factorial[total]
            - log_factorial[n]
            - log_factorial[size_a - n]
            - log_factorial[size_b - n]
            - log_factorial[total - size_a - size_b + n]
        )
        terms = n / total * np.log(total * n / (size_a * size_b)) * np.exp(log_p)
        expected += many_a * many_b * float(terms.sum())
    return expected


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
