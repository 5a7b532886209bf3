"""The bytes that a rank sends in a step, by formula: what `Ranks.sent` counts.

With W ranks, R = 2 (W - 1) / W, B tokens, widths d, n and m, and one number of the cache taking t bytes:

    primary step   tokens          (W - 1) ceil(B / W) d t
                   reconstruction  R 4 B d, and once more where dead latents are revived
                   threshold       R 4 (bins + 1) for each histogram: two where products are in fp32, one in bf16;
                                   one more whenever fewer entries than wanted lie above the last threshold
                   candidates      (W - 1) B k p, for TopK and for dead latents beyond k_aux; p bytes a number of pre
                   sums            R 8 (d + 5): b_dec's gradient, and five numbers
                   meta threshold  as above, for the penalty
    meta step      meta gradients  R 4 (2 m d + d)
                   meta threshold  as above
                   meta sums       R (4 m + 8)

None of it grows with n: the gradients of all n latents, R 4 (2 n d) bytes with one copy of the SAE per rank, stay where they are.
"""

from dataclasses import dataclass

from metasae.parallel.threshold import BINS
from metasae.recipe import Recipe


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a primary and in a meta step by purpose, and in all per primary step with its share of meta steps.

    replicated: the same per primary step if every rank held the whole SAE and gradients were summed.
    """

    primary: dict[str, float]
    meta: dict[str, float]
    per_primary_step: float
    replicated: float


def bytes_per_step(recipe: Recipe, d: int, ranks: int, bf16: bool, token_bytes: int = 2, dead: bool = False) -> Traffic:
    """bf16: whether dense products are made in it. dead: whether there are more dead latents than k_aux; otherwise none are counted.

    For arms with a meta SAE and the penalty; takes two histograms per threshold (one in bf16), the least.
    """
    train, B, m = recipe.train, recipe.train.batch, recipe.meta.n
    ring, k_aux = 2 * (ranks - 1) / ranks, train.k_aux or max(1, d // 2)
    histograms = ring * 4 * (BINS + 1) * (1 if bf16 else 2)
    named = (ranks - 1) * B * (2 if bf16 else 4)
    widest = -(-recipe.sae.n // ranks)
    primary = {
        "tokens": (ranks - 1) * -(-B // ranks) * d * token_bytes,
        "reconstruction": ring * 4 * B * d * (2 if dead else 1),
        "threshold": histograms if recipe.sae.architecture == "batchtopk" else 0,
        "candidates": named * (min(recipe.sae.k, widest) * (recipe.sae.architecture == "topk") + min(k_aux, widest) * dead),
        "sums": ring * 8 * (d + 5),
        "meta threshold": histograms if recipe.meta.architecture == "batchtopk" else 0,
    }
    meta = {
        "meta gradients": ring * 4 * (2 * m * d + d),
        "meta threshold": primary["meta threshold"],
        "meta sums": ring * (4 * m + 8),
    }
    share = train.n_meta_steps / train.n_primary_steps
    return Traffic(primary, meta, sum(primary.values()) + share * sum(meta.values()), ring * 4 * (2 * recipe.sae.n * d) + share * sum(meta.values()))
