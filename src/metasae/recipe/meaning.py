"""Checks of a recipe's values against each other: contradictions are refused, and probable mistakes give a note.

Each rule compares two values that are valid by themselves. A contradiction is refused before anything is read; a note
is printed before the run begins. What depends on the model or the text is checked where those are read.
"""

from collections.abc import Iterator

from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS

# Training may read each token this often before a note is given.
_READ_AGAIN = 20


def refuse_what_cannot_be_meant(recipe: Recipe) -> None:
    """Raises UserError for the first contradiction in training or measuring; the message has both numbers."""
    for line in _contradictions(recipe):
        raise UserError(line)
    refuse_unmeasurable(recipe)


def refuse_unmeasurable(recipe: Recipe) -> None:
    """Raises UserError if the held-out tokens are fewer than one window."""
    spec, context = recipe.measure, recipe.text.context
    for key in ("tokens", "calibration_tokens") if recipe.reads_text else ():
        tokens = getattr(spec, key)
        if tokens < context:
            raise UserError(
                f"measure.{key} = {tokens:,} is less than one window of text.context = {context:,} tokens; "
                f"set measure.{key}={context} or more"
            )


def notes_on(recipe: Recipe) -> list[str]:
    """The notes on a recipe that are shown before it runs, one line each."""
    return [*recipe.notes, *_doubts_of_training(recipe), *_doubts_of_meta(recipe), *_doubts_of_measuring(recipe)]


def _steps(recipe: Recipe) -> int:
    return -(-recipe.train.tokens // recipe.train.batch)


def _with_meta(recipe: Recipe) -> list[str]:
    """The arms whose meta SAE is trained beside the primary."""
    return [arm for arm in recipe.arms if recipe.has_meta(arm) and not ARMS[arm].after]


def _contradictions(recipe: Recipe) -> Iterator[str]:
    train, sae, steps = recipe.train, recipe.sae, _steps(recipe)
    cached, window = recipe.split_tokens["train"], recipe.harvest.window_tokens
    for key, tokens in (
        ("train.tokens", train.tokens),
        ("harvest.tokens", cached),
        ("harvest.window_tokens", window or cached),
    ):
        if tokens < train.batch:
            yield (
                f"{key} = {tokens:,} is less than one batch of train.batch = {train.batch:,} tokens; ask for more "
                f"tokens or set train.batch={tokens} or less"
            )
    meta, charged = _with_meta(recipe), [arm for arm in recipe.arms if ARMS[arm].penalty]
    if meta and steps < train.n_primary_steps:
        yield (
            f"train.n_primary_steps = {train.n_primary_steps:,} is more than the {steps:,} steps of the training, so "
            f"the meta SAE of '{meta[0]}' would never be trained; set train.n_primary_steps={steps} or less"
        )
    if charged and train.penalty_start * steps > steps - 1:
        yield (
            f"train.penalty_start = {train.penalty_start:g} of {steps:,} steps leaves no step with a penalty for "
            f"'{charged[0]}'; set it lower"
        )
    if recipe.spikes.n > sae.n:
        yield (
            f"spikes.n = {recipe.spikes.n:,} known features are more than the sae.n = {sae.n:,} latents that have to "
            f"find them; set spikes.n={max(1, sae.n // 10)} or so"
        )
    if sae.k_start and not sae.k_anneal:
        yield f"sae.k_start = {sae.k_start} has no effect with sae.k_anneal = 0; set sae.k_anneal=0.1, or sae.k_start=0"


def _doubts_of_training(recipe: Recipe) -> Iterator[str]:
    train, sae, steps = recipe.train, recipe.sae, _steps(recipe)
    # a note and no error, as short trials of a long recipe are useful
    if train.warmup >= steps:
        yield (
            f"train.warmup = {train.warmup:,} steps is not shorter than the {steps:,} steps of the training, so the "
            f"learning rate never reaches train.lr = {train.lr:g}"
        )
    elif train.warmup > round((1 - train.decay) * steps):
        yield (
            f"train.warmup = {train.warmup:,} steps and train.decay = {train.decay:g} of {steps:,} steps overlap, so "
            f"the learning rate never reaches train.lr = {train.lr:g}"
        )
    if train.aux_coef and train.dead_after >= train.tokens:
        yield (
            f"train.dead_after = {train.dead_after:,} tokens, but the training has {train.tokens:,}, so no latent ever "
            "counts as dead and none is revived"
        )
    cached = recipe.split_tokens["train"]
    if recipe.harvest.tokens > train.tokens:
        yield f"harvest.tokens = {recipe.harvest.tokens:,}, but training reads only train.tokens = {train.tokens:,}"
    elif train.tokens > _READ_AGAIN * cached:
        yield (
            f"train.tokens = {train.tokens:,} over harvest.tokens = {cached:,} reads each token "
            f"{train.tokens / cached:,.0f} times; an SAE overfits on a text that it reads so often"
        )
    if sae.architecture == "matryoshka" and (least := round(min(sae.prefixes) * sae.n)) < sae.k:
        yield f"the first of sae.prefixes has {least} latents, fewer than the sae.k = {sae.k} that are kept per token"
    if train.penalty_every > steps and any(recipe.charged(arm) for arm in recipe.arms):
        yield (
            f"train.penalty_every = {train.penalty_every:,} is more than the {steps:,} steps of the training, so "
            "further penalties act at most once"
        )


def _doubts_of_meta(recipe: Recipe) -> Iterator[str]:
    train, meta, arms = recipe.train, recipe.meta, _with_meta(recipe)
    rows = _steps(recipe) // train.n_primary_steps * train.n_meta_steps * recipe.sae.n
    if arms and train.aux_coef and train.meta_dead_after >= rows:
        yield (
            f"train.meta_dead_after = {train.meta_dead_after:,} rows, but the meta SAE reads {rows:,}, so none of its "
            "latents ever counts as dead and none is revived"
        )
    if arms and meta.n >= recipe.sae.n:
        yield f"meta.n = {meta.n:,} latents for sae.n = {recipe.sae.n:,} decoder rows: the meta SAE can copy every row"


def _doubts_of_measuring(recipe: Recipe) -> Iterator[str]:
    spec = recipe.measure
    if spec.meta_n >= 1:
        yield f"measure.meta_n = {spec.meta_n:g} gives a critic at least one latent per decoder row: it can copy rows"
    judge = max(1, round(spec.meta_n * recipe.sae.n))
    if spec.meta_k > judge:
        yield (
            f"measure.meta_k = {spec.meta_k} is more than the {judge} latents of a critic "
            f"(measure.meta_n = {spec.meta_n:g} of sae.n = {recipe.sae.n:,}), so it keeps all of them"
        )
    if spec.batch_topk and not spec.output_tokens:
        yield "measure.batch_topk has no effect with measure.output_tokens = 0"
    if spec.labels and not spec.concepts:
        yield "measure.labels has no effect with measure.concepts = 0"
    if spec.side_effects and not (spec.across and spec.keep_firings):
        yield (
            f"measure.side_effects = {spec.side_effects} has no effect without measure.across and measure.keep_firings"
        )
