"""What a recipe needs: bytes on disk and in memory, calculated from its shapes alone. Nothing is loaded or run.

Exact: the activation cache, SAEs, checkpoints. Memory is a model of the stages with constants fitted to measured peaks
(d 64 to 1024, n 512 to 16384, batches of 256 to 16384), within a fifth of them; `doctor` replaces calculated values by
measured ones. With n latents, width d, batch B, m meta latents and w bytes per number of the dense product, in bytes:

    weights, Adam's two moments, gradients    4 x 4 x 2nd
    a step, temporarily                       8nd + 2nd + (w + 2) Bn + 27 Bd + 60 per kept entry
    a meta step, temporarily                  the same without its 27, with B = n, n = m, and 48 nd (30 nd for raw rows)

No latent is counted as dead: the term that revives dead latents takes a few more numbers per token and dead latent. A
further penalty is counted as if it read the decoder rows of all latents.

On W ranks a rank has ceil(n / W) latents of the primary in place of n, and all m latents of the meta SAE, whose
gradients it has a second time, flat, for the sum over ranks.
"""

from dataclasses import dataclass

from metasae.recipe.recipe import Dictionary, Recipe
from metasae.recipe.registry import ARMS
from metasae.sae.architectures import Architecture, Options, architecture

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Bytes of Python, torch, transformers, scipy and matplotlib with their own allocations.
PROCESS = 650 << 20
# Bytes of a million characters between the source and the tokenizer's output.
TEXT = 160 << 20
# Bytes of metrics.jsonl, measures.json and the configurations of one arm, and of the report and its figures.
SMALL_FILES = 1 << 20
# Bytes per token of the cache's columns besides activations: token, document, position, norm, 4 bytes each.
COLUMNS = 16
PER_ENTRY, PER_INPUT, PER_ROW, PER_RAW_ROW = 60, 27, 48, 30
# Bytes while a split of a planted world is drawn: per number of its width, and per token for its features.
PLANTED_NUMBER, PLANTED_TOKEN = 16, 100


@dataclass(frozen=True)
class Needs:
    """The bytes that a recipe needs. cache, run_folder: on disk. sae, checkpoint: one primary SAE's folder and one
    arm's checkpoint, both part of run_folder. windows: training activations that come a window at a time, also part of
    run_folder; on a GPU the next window is harvested during training.

    In memory: process (the program itself) and model all the time; harvest, forward, train and measure only in their
    stage; forward (the model on one batch) during the harvest. weights: the part of train that is weights, moments and
    gradients. on_gpu: model, forward and train are in the GPU's memory.
    """

    cache: int
    run_folder: int
    sae: int
    checkpoint: int
    process: int
    model: int
    harvest: int
    forward: int
    train: int
    weights: int
    measure: int
    on_gpu: bool
    windows: int = 0

    @property
    def memory(self) -> int:
        """Peak of the processor's memory. Memory that the harvest frees is fragmented, so later stages hardly use it
        again.

        The mapped cache is not included; the system keeps it if there is room and can drop it.
        """
        if self.on_gpu:
            return self.process + self.harvest + self.measure
        return self.process + self.model + self.harvest + self.forward + max(self.train, self.measure)

    @property
    def gpu(self) -> int:
        """Peak of the GPU's memory; 0 without one."""
        if not self.on_gpu:
            return 0
        # the next window is harvested while an arm trains
        return self.model + (self.forward + self.train if self.windows else max(self.forward, self.train))


def needs(
    recipe: Recipe,
    d: int,
    model: int,
    vocabulary: int = 0,
    width: int = 2,
    threads: int = 1,
    on_gpu: bool = False,
    ranks: int = 1,
) -> Needs:
    """The needs of a recipe. d: width of the hooked tensor. model: bytes of the language model's weights. vocabulary:
    its size, 0 for an encoder.

    width: bytes per number of the dense products. ranks: number of ranks that training spreads the primary over.
    """
    train, weights = train_bytes(recipe, d, width, ranks)
    windows = window_bytes(recipe, d, on_gpu)
    return Needs(
        cache=cache_bytes(recipe, d),
        run_folder=run_folder_bytes(recipe, d) + windows,
        sae=sae_bytes(recipe.sae.n, d),
        checkpoint=checkpoint_bytes(recipe, d),
        process=PROCESS,
        model=model,
        harvest=harvest_bytes(recipe, d),
        forward=forward_bytes(recipe, d, width),
        train=train,
        weights=weights,
        measure=measure_bytes(recipe, d, vocabulary, threads),
        on_gpu=on_gpu,
        windows=windows,
    )


def is_planted(recipe: Recipe) -> bool:
    """Whether the activations are those of a planted world, without a model and text."""
    return recipe.text.source == "planted"


def kind_of(table: Dictionary) -> Architecture:
    """The architecture of an SAE, whose attributes decide its needs."""
    options = Options(table.k, threshold=table.threshold, prefixes=table.prefixes, l0=table.l0)
    return architecture(table.architecture, options)


def prefixes_of(recipe: Recipe, arm: str) -> int:
    """The largest number of prefixes of the latents that rebuild the input in a step of an arm."""
    architecture_has = len(kind_of(recipe.sae).ends(recipe.sae.n))
    nest = recipe.train.nest
    return 1 + len(nest.shares) if ARMS[arm].atomic and nest.weight else architecture_has


def cache_bytes(recipe: Recipe, d: int) -> int:
    """Bytes of the activations and columns of every token, at every hook point (each as wide as the first). 0 for a
    planted world, which is not written to disk.

    Training activations that come in windows are not included, nor are the headers of shards, about 300 bytes each.
    """
    if is_planted(recipe):
        return 0
    tokens = recipe.split_tokens
    kept = sum(tokens.values()) - (tokens["train"] if recipe.harvest.window_tokens else 0)
    return kept * _token_bytes(recipe, d) * (1 + len(recipe.hook.also))


def window_bytes(recipe: Recipe, d: int, on_gpu: bool) -> int:
    """Bytes of the windows on disk at the same time: one, and on a GPU also the next; 0 if all activations are kept.

    A window contains whole pools of text, so it may be larger than asked for.
    """
    window = recipe.harvest.window_tokens
    if not window:
        return 0
    from metasae.data.cache.activations import POOL_BATCHES

    tokens = window + POOL_BATCHES * recipe.harvest.batch_tokens
    return tokens * _token_bytes(recipe, d) * (2 if on_gpu and recipe.train.tokens > window else 1)


def sae_bytes(n: int, d: int) -> int:
    """Bytes of W_enc, W_dec, b_enc, threshold and b_dec in fp32."""
    return 4 * (2 * n * d + 2 * n + d)


def checkpoint_bytes(recipe: Recipe, d: int) -> int:
    """Bytes of a checkpoint: weights and both moments in fp32, counters (one int64 and two fp32), for the primary and
    the meta SAE.
    """
    sae, meta = recipe.sae, recipe.meta
    size = 3 * 4 * _numbers(sae, d, sae.b_enc) + 16 * sae.n
    return size + (3 * 4 * _numbers(meta, d, False) + 16 * meta.n) * _any_meta(recipe)


def run_folder_bytes(recipe: Recipe, d: int) -> int:
    """Bytes of all SAEs and kept firings, and twice the checkpoint of one arm, as the old one is deleted after the new
    one is complete.

    With windows every arm has a checkpoint between two windows.
    """
    firings = recipe.measure.tokens * (8 * recipe.sae.k + 20) if recipe.measure.keep_firings else 0
    arm = sae_bytes(recipe.sae.n, d) + firings + SMALL_FILES
    metas = sum(recipe.has_meta(arm) for arm in recipe.arms) * sae_bytes(recipe.meta.n, d)
    checkpoints = 1 + (len(recipe.seeds) * len(recipe.arms) if recipe.harvest.window_tokens else 1)
    return len(recipe.seeds) * (len(recipe.arms) * arm + metas) + checkpoints * checkpoint_bytes(recipe, d)


def harvest_bytes(recipe: Recipe, d: int) -> int:
    """Bytes of text and token windows, and of one batch's activations at every hook point, in the cache's dtype and in
    fp32.

    A planted world is drawn at once.
    """
    if is_planted(recipe):
        return sum(recipe.split_tokens.values()) * (PLANTED_NUMBER * d + PLANTED_TOKEN)
    return TEXT + _batch_tokens(recipe) * d * (4 + BYTES[recipe.harvest.dtype]) * (1 + len(recipe.hook.also))


def forward_bytes(recipe: Recipe, d: int, width: int) -> int:
    """Bytes of one batch in a transformer layer: per token 16 numbers per unit of width, and a row of attention for
    each head of 64 units.
    """
    if is_planted(recipe):
        return 0
    return _batch_tokens(recipe) * (16 * d * width + max(d // 64, 1) * recipe.text.context * 4)


def train_bytes(recipe: Recipe, d: int, width: int, ranks: int = 1) -> tuple[int, int]:
    """(bytes of training an arm at its peak, the part that is weights, moments and gradients), for the largest arm.

    ranks: number of ranks that the primary's latents are spread over; the bytes are those of the rank with the most
    latents.
    """
    sae, meta, B = recipe.sae, recipe.meta, recipe.train.batch
    own, kind = -(-sae.n // ranks), kind_of(sae)
    primary, second = weight_bytes(recipe, d, ranks)
    passing = _step(sae, d, B, own, width, sae.b_enc) + PER_INPUT * B * d
    # a residual and its gradient for each further prefix
    passing += 8 * (max(prefixes_of(recipe, arm) for arm in recipe.arms) - 1) * B * d
    if recipe.train.kernels == "reference":
        passing += 20 * B * own
    if any(recipe.charged(arm) for arm in recipe.arms):
        passing += 4 * own * d + all_rows_bytes(sae.n, d, ranks)
    if ranks > 1:
        # a threshold over all ranks marks the entries above it with one byte per pre-activation, one process needs two
        passing -= B * own
    if ranks > 1 and chooses_by_row(kind):
        # every rank's largest entries of each token, sorted
        passing += ranks * B * min(sae.k, own) * (3 * width + 9)
    if second:
        rows = PER_ROW if meta.input == "token" else PER_RAW_ROW
        summed = 4 * _numbers(meta, d, False) * (ranks > 1)
        passing = max(passing, _step(meta, d, own, meta.n, width, False) + rows * own * d + summed)
    return primary + second + passing, primary + second


def all_rows_bytes(n: int, d: int, ranks: int) -> int:
    """Bytes of the decoder rows of all latents besides a rank's own; twice that while parts of unequal length are
    joined.
    """
    return 4 * n * d * (2 if n % ranks else 1) if ranks > 1 else 0


def chooses_by_row(kind: Architecture) -> bool:
    """Whether each token's largest pre-activations fire, so that ranks have to compare them token by token."""
    return not (kind.own_threshold or kind.over_batch)


def weight_bytes(recipe: Recipe, d: int, ranks: int = 1) -> tuple[int, int]:
    """Bytes of weights, moments and gradients: (of a rank's latents of the primary, of the meta SAE, 0 if no arm has
    one).
    """
    own = recipe.sae.model_copy(update={"n": -(-recipe.sae.n // ranks)})
    return 4 * 4 * _numbers(own, d, recipe.sae.b_enc), 4 * 4 * _numbers(recipe.meta, d, False) * _any_meta(recipe)


def measure_bytes(recipe: Recipe, d: int, vocabulary: int, threads: int) -> int:
    """Bytes of the SAE, of its firings if they are not kept on disk, of eight sets of logits, and of the largest of a
    block of tokens, a tile of pairs and the critic.
    """
    from metasae.measures.cofiring.cooccurrence import MEMORY, TILE_PAIRS, TILE_ROWS
    from metasae.measures.effect.effects import NUMBERS_AT_ONCE
    from metasae.measures.suite import BATCH

    n, spec = recipe.sae.n, recipe.measure
    rows = max(1, min(TILE_ROWS, TILE_PAIRS // n, n // 8))
    tile = rows * n * (32 + 8 * 2)
    pairs = tile * max(1, min(threads, MEMORY // tile))
    critic = PER_RAW_ROW * n * d + 8 * n * max(1, round(spec.meta_n * n))
    firings = 0 if spec.keep_firings else 2 * spec.tokens * (8 * recipe.sae.k + 20)
    logits = 8 * 4 * min(NUMBERS_AT_ONCE, spec.output_tokens * vocabulary)
    return sae_bytes(n, d) + 2 * n * d + firings + logits + max(8 * BATCH * n, pairs, critic)


def _step(table: Dictionary, d: int, rows: int, own: int, width: int, b_enc: bool) -> int:
    """Bytes that a step on `rows` inputs and `own` of the latents needs temporarily, without the inputs: gradients,
    bf16 weights, pre-activations, kept entries.
    """
    kind = kind_of(table)
    if kind.own_threshold:
        # without a fixed k about half of all pre-activations are above zero at first; an architecture that follows k
        # begins there, then keeps up to some three times k, and also entries that nearly fire
        entries = rows * min(own // 2, 6 * table.k * own // table.n if kind.follows else own)
    else:
        entries = rows * max(table.k, getattr(table, "k_start", 0)) * own // table.n
    numbers = _numbers(table.model_copy(update={"n": own}), d, b_enc)
    return 4 * numbers + (2 * own * d if width == 2 else 0) + (width + 2) * rows * own + PER_ENTRY * entries


def _token_bytes(recipe: Recipe, d: int) -> int:
    """Bytes of a token at one hook point, on disk."""
    return d * BYTES[recipe.harvest.dtype] + COLUMNS


def _batch_tokens(recipe: Recipe) -> int:
    """Tokens that the model reads in one pass: at least one window."""
    return max(recipe.harvest.batch_tokens, recipe.text.context)


def _any_meta(recipe: Recipe) -> bool:
    return any(recipe.has_meta(arm) for arm in recipe.arms)


def _numbers(table: Dictionary, d: int, b_enc: bool) -> int:
    """The number of trained weights of an SAE."""
    kind = kind_of(table)
    vectors = (b_enc or kind.needs_bias) + (kind.threshold_init() is not None)
    return 2 * table.n * d + d + table.n * vectors
