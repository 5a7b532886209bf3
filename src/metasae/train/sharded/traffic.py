"""The bytes that a rank sends in a step, by formula: what `Ranks.sent` counts.

With W ranks, R = 2 (W - 1) / W, B tokens, widths d, n and m, P nested prefixes (1 but for Matryoshka), and one number of the cache taking t bytes:

    primary step   tokens          (W - 1) ceil(B / W) d t
                   reconstruction  R 4 B d P, and R 4 B d more where dead latents are revived
                   threshold       R 4 (bins + 1) for each histogram: two where products are in fp32, one in bf16;
                                   one more whenever fewer entries than wanted lie above the last threshold
                   candidates      (W - 1) B k p, for TopK and for dead latents beyond k_aux; p bytes a number of pre
                   sums            R 8 (d + 5): b_dec's gradient, and five numbers
                   meta threshold  as above, for the penalty
    meta step      meta gradients  R 4 (2 m d + d)
                   meta threshold  as above
                   meta sums       R (4 m + 8)
    further        penalty sums    c2r R (4 d^2 + 16), cofiring R 16
    penalties      penalty rows    ortsae or cofiring: (W - 1) (4 d ceil(n / W) + 8), once for both; and
                                   ortsae (W - 1) (16 ceil(n / W) + 8), cofiring (W - 1) (8 F + 8)

F: firings of its first tokens on the rank with most; without a count, an even share of k a token. A penalty that is not written for ranks sends
rows, rates and all F firings of the batch: (W - 1) ((4 d + 4) ceil(n / W) + 12 F + 32). Further penalties are charged every penalty_every-th step.

But for these rows none of it grows with n: the gradients of all n latents, R 4 (2 n d) bytes with one copy of the SAE per rank, stay where they are.
"""

from dataclasses import dataclass

from metasae.recipe.recipe import Dictionary, Recipe
from metasae.sae.architectures import Options, architecture
from metasae.train.sharded.threshold import BINS


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a primary and in a meta step by purpose, and in all per primary step with its share of meta steps.

    further: in a primary step that charges further penalties, on top. per_primary_step has its share of them.
    replicated: the same per primary step if every rank held the whole SAE and gradients were summed.
    """

    primary: dict[str, float]
    meta: dict[str, float]
    further: dict[str, float]
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
        "reconstruction": ring * 4 * B * d * (n_prefixes(recipe.sae) + dead),
        "threshold": histograms if recipe.sae.architecture in ("batchtopk", "matryoshka") else 0,
        "candidates": named
        * (min(recipe.sae.k, widest) * (recipe.sae.architecture == "topk") + min(k_aux, widest) * dead),
        "sums": ring * 8 * (d + 5),
        "meta threshold": histograms if recipe.meta.architecture == "batchtopk" else 0,
    }
    meta = {
        "meta gradients": ring * 4 * (2 * m * d + d),
        "meta threshold": primary["meta threshold"],
        "meta sums": ring * (4 * m + 8),
    }
    further = penalty_bytes(recipe, d, ranks)
    meta_share = train.n_meta_steps / train.n_primary_steps * sum(meta.values())
    per_step = sum(primary.values()) + meta_share + sum(further.values()) / train.penalty_every
    return Traffic(primary, meta, further, per_step, ring * 4 * (2 * recipe.sae.n * d) + meta_share)


def penalty_bytes(recipe: Recipe, d: int, ranks: int, firings: int | None = None) -> dict[str, float]:
    """Purpose -> bytes for the recipe's further penalties. firings: F, counted."""
    from metasae.train.penalties.cofiring import TOKENS

    charged = charged_penalties(recipe)
    own, others, ring = -(-recipe.sae.n // ranks), ranks - 1, 2 * (ranks - 1) / ranks
    rows, sums = 0.0, 0.0

    def firings_of(tokens: int) -> int:
        return -(-tokens * recipe.sae.k // ranks) if firings is None else firings

    if charged - {"c2r"}:
        rows += others * (4 * d * own + 8)
    for name in charged:
        if name == "c2r":
            sums += ring * (4 * d * d + 16)
        elif name == "cofiring":
            sums += ring * 16
            rows += others * (8 * firings_of(min(TOKENS, recipe.train.batch)) + 8)
        elif name == "ortsae":
            rows += others * (16 * own + 8)
        else:
            rows += others * (4 * own + 12 * firings_of(recipe.train.batch) + 24)
    return {purpose: sent for purpose, sent in (("penalty sums", sums), ("penalty rows", rows)) if sent}


def charged_penalties(recipe: Recipe) -> set[str]:
    """The further penalties that cost something."""
    return {name for name, coef in recipe.train.penalties.items() if coef > 0}


def n_prefixes(table: Dictionary) -> int:
    """Reconstructions that a step makes."""
    return len(architecture(table.architecture, Options(table.k, prefixes=table.prefixes)).ends(table.n))
