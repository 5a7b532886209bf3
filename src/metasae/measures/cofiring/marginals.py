"""The fixed-marginals null: what firings would look like if only the latents' rates and the tokens' counts mattered.

logit pi_it = a_i + b_t, with sum_t pi_it = N_i for every latent and sum_i pi_it = L_t for every token: the distribution
of largest entropy with these sums (Rasch model). Tokens with the same count share b, so the model has one column per
distinct count.

For a pair of latents it gives mean and variance of the co-firings N11. A token with count L draws L latents without
replacement, so two latents meet less often than pi_i pi_j: q_ijt = pi_it pi_jt - s_it s_jt, with s such that every
latent meets L - 1 others, as it must: s_i (sum_j s_j - s_i) = w_i = pi_i (1 - pi_i). With L0 = 32 the second term is 3%
of the first.
Source of s: Deville and Tille, J. Stat. Plan. Inference 128, 2005 (fixed point), after Hajek, Ann. Math. Stat. 35,
1964.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Marginals:
    """The fitted null of n latents over T tokens in G groups of equal count.

    counts: int64 [n], N_i. token_counts, sizes: int64 [G], the distinct L and how many tokens have it. pi: float64 [n,
    G]; 0 or 1 where the sums leave no choice. repulsion: float64 [n, G], s. error: the largest error of a sum relative
    to the sum or to its distance from the maximum, whichever is smaller. converged: error is at most the tolerance.
    steps: of Newton's method.
    """

    counts: np.ndarray
    token_counts: np.ndarray
    sizes: np.ndarray
    pi: np.ndarray
    repulsion: np.ndarray
    error: float
    converged: bool
    steps: int

    def pair_moments(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of N11 float64 [r, c] for latents `rows` [r] and `columns` [c], the sums of both held
        fixed.

        They are meaningless for i = j. The variance is that of independent tokens less what the totals N_i and N_j
        explain of it.
        """
        m, p, q = self.sizes, self.pi[rows], self.pi[columns]
        s, t = self.repulsion[rows], self.repulsion[columns]
        repelled = (m * s) @ t.T
        mean = np.maximum((m * p) @ q.T - repelled, 0)
        of_squares = (m * p**2) @ (q**2).T - 2 * (m * p * s) @ (q * t).T + (m * s**2) @ (t**2).T
        # covariances of N11 with N_i and N_j, and the 2 x 2 covariance matrix of N_i and N_j
        with_row = mean - (m * p**2) @ q.T + (m * p * s) @ t.T
        with_column = mean - (m * p) @ (q**2).T + (m * s) @ (q * t).T
        row, column = ((p * (1 - p)) @ m)[:, None], ((q * (1 - q)) @ m)[None, :]
        determinant = row * column - repelled**2
        explained = with_row**2 * column + 2 * with_row * with_column * repelled + with_column**2 * row
        explained = np.divide(explained, determinant, out=np.zeros_like(mean), where=determinant > 0)
        return mean, np.maximum(mean - of_squares - explained, 0)


def fit(counts: np.ndarray, token_counts: np.ndarray, tolerance: float = 1e-9, max_steps: int = 200) -> Marginals:
    """Fits the null. counts: int [n], firings of each latent. token_counts: int [T], active latents of each token, with
    the same sum.

    Latents that never or always fire, and tokens on which no or every latent fires, have pi 0 or 1; so have latents and
    tokens for which that holds once these are set aside. The rest is fitted. A fit that does not reach the tolerance
    says so in `converged`.
    """
    counts, token_counts = np.asarray(counts, np.int64), np.asarray(token_counts, np.int64)
    levels, sizes = np.unique(token_counts, return_counts=True)
    pi = np.zeros((len(counts), len(levels)))
    latents, groups, latent_sums, group_sums = _set_aside(counts, levels, sizes, pi)
    error, steps = 0.0, 0
    if len(latents) and len(groups):
        inner, error, steps = _newton(latent_sums, group_sums, sizes[groups], tolerance, max_steps)
        pi[np.ix_(latents, groups)] = inner
    return Marginals(counts, levels, sizes, pi, _repulsion(pi), error, bool(error <= tolerance), steps)


def _repulsion(pi: np.ndarray) -> np.ndarray:
    """s [n, G] with s_i (sum_j s_j - s_i) = pi_i (1 - pi_i) in every column, by iterating c = w + c^2 / sum c, s = c /
    sqrt(sum c).

    There is no such s where one latent has more than half of sum w; there s is proportional to w, so that only the sum
    over all pairs is right.
    """
    w = pi * (1 - pi)
    total = w.sum(0)
    share = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
    c = share.copy()
    for _ in range(100):
        before, c = c, share + c**2 / np.maximum(c.sum(0), np.finfo(float).tiny)
        if np.abs(c - before).max(initial=0) < 1e-12:
            break
    alone = np.abs(c - before).max(axis=0, initial=0) > 1e-6
    pairs, sums = 1 - (share**2).sum(0), c.sum(0)
    # a column in which only one latent is free has no pairs to keep apart
    norm = np.where(alone, pairs * (pairs > 1e-12), sums)
    return np.sqrt(total) * np.divide(np.where(alone, share, c), np.sqrt(norm), out=np.zeros_like(c), where=norm > 0)


def _set_aside(counts: np.ndarray, levels: np.ndarray, sizes: np.ndarray, pi: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fills in the pi that the sums force to 0 or 1; returns the other latents and groups with the rest of
    their sums.
    """
    latents, groups = np.arange(len(counts)), np.arange(len(levels))
    latent_sums, group_sums = counts.copy(), levels.copy()
    while True:
        n_tokens = sizes[groups].sum()
        full = latent_sums == n_tokens
        pi[np.ix_(latents[full], groups)] = 1
        group_sums = group_sums - full.sum()
        free = ~full & (latent_sums > 0)
        latents, latent_sums = latents[free], latent_sums[free]
        full = group_sums == len(latents)
        pi[np.ix_(latents, groups[full])] = 1
        latent_sums = latent_sums - sizes[groups[full]].sum()
        open_ = ~full & (group_sums > 0)
        groups, group_sums = groups[open_], group_sums[open_]
        if free.all() and open_.all():
            return latents, groups, latent_sums, group_sums


def _newton(
    n_: np.ndarray, l_: np.ndarray, m: np.ndarray, tolerance: float, max_steps: int
) -> tuple[np.ndarray, float, int]:
    """pi [l, G] with sum_g m_g pi_ig = n_i and sum_i pi_ig = l_g, its error and the steps taken.

    Newton's method on the convex sum_ig m_g ln(1 + e^(a_i + b_g)) - a n - b m l, whose gradient is minus what the sums
    lack.
    """
    from scipy.special import expit

    n_tokens, n_latents = m.sum(), len(n_)
    a, b = np.log(n_ / (n_tokens - n_)), np.log(l_ / (n_latents - l_))
    b -= b @ m / n_tokens
    slack_n, slack_l = np.minimum(n_, n_tokens - n_), np.minimum(l_, n_latents - l_)

    def potential(a: np.ndarray, b: np.ndarray) -> float:
        return float(m @ np.logaddexp(0, a[:, None] + b).sum(0) - a @ n_ - b @ (m * l_))

    value, least, best, steps = potential(a, b), np.inf, None, 0
    while True:
        pi = expit(a[:, None] + b)
        lack_n, lack_l = n_ - pi @ m, l_ - pi.sum(0)
        error = float(max((np.abs(lack_n) / slack_n).max(), (np.abs(lack_l) / slack_l).max()))
        if error < least:
            least, best = error, pi
        if error <= tolerance or steps == max_steps:
            return best, least, steps
        move_a, move_b = _newton_step(pi * (1 - pi) * m, lack_n, m * lack_l)
        # far from the optimum the quadratic model is poor: no logit changes by more than 8 at once
        size = 4 / max(np.abs(move_a).max(), np.abs(move_b).max(), 4)
        gain = lack_n @ move_a + (m * lack_l) @ move_b
        tried = potential(a + size * move_a, b + size * move_b)
        # near the optimum the potential changes by less than its rounding, and a whole step is right
        while tried > value - 1e-4 * size * gain + 1e-12 * abs(value) and size > 1e-6:
            size /= 2
            tried = potential(a + size * move_a, b + size * move_b)
        a, b, value, steps = a + size * move_a, b + size * move_b, tried, steps + 1


def _newton_step(w: np.ndarray, lack_a: np.ndarray, lack_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves [[diag(w 1), w], [w^T, diag(w^T 1)]] (da, db) = (lack_a, lack_b) for w [l, G].

    a is eliminated, as its block is diagonal. Only a + b matters, so one b is held: that of the group with the largest
    w, where the rounding that the other equations leave over is the smallest share.
    """
    from scipy.linalg import solve

    of_a, of_b = np.maximum(w.sum(1), np.finfo(float).tiny), w.sum(0)
    scaled = w / of_a[:, None]
    others = np.arange(len(of_b)) != of_b.argmax()
    # the ridge is far below any useful curvature; it keeps a nearly forced problem solvable
    schur = np.diag(of_b * (1 + 1e-14) + np.finfo(float).tiny) - w.T @ scaled
    move_b = np.zeros(len(of_b))
    if others.any():
        move_b[others] = solve(schur[np.ix_(others, others)], (lack_b - scaled.T @ lack_a)[others], assume_a="sym")
    return (lack_a - w @ move_b) / of_a, move_b
