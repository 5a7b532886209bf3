"""The tables of a recipe, each key with its default and meaning."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from metasae.errors import nearest
from metasae.recipe.registry import ARCHITECTURES, PENALTIES, Known, is_stored


class Table(BaseModel):
    """A table of the recipe. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Table):
    """The language model. `path` wins over `name`; `package:PKG/FOLDER` is a folder inside an installed package. A GGUF
    file, `FILE.gguf` or `package:PKG/FILE.gguf`, is made into a folder in the user's cache when it is first read.

    revision: a branch, tag or commit on the hub. device_map: `auto` spreads the layers over all GPUs and, where they
    are too small, the processor's memory (needs accelerate). bos: whether windows of a causal model begin with BOS;
    false for SAEs that were trained without it. trust_remote_code: the model's own code runs on this machine.
    """

    name: str = Field("", description="a model on the hub, as OWNER/NAME")
    path: str = Field(
        "",
        description="a folder written by save_pretrained, a .gguf file, or package:PKG/FOLDER or package:PKG/FILE.gguf "
        "in an installed package; wins over name",
    )
    revision: str = Field("", description="a branch, tag or commit on the hub")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="what the model runs in; auto: bf16 where it is fast, else fp32"
    )
    device_map: Literal["", "auto"] = Field(
        "", description="auto spreads the layers over all GPUs and memory (needs accelerate)"
    )
    bos: Literal["auto", True, False] = Field(
        "auto",
        description="whether windows of a causal model begin with BOS; auto: where its tokenizer has one",
    )
    trust_remote_code: bool = Field(False, description="true: the model's own code runs on this machine")

    @property
    def source(self) -> str:
        return self.path or self.name


class Hook(Table):
    """Where activations are read: a TransformerLens name (`blocks.4.hook_resid_pre`) or a module path with `:in` or
    `:out`.

    also: further points harvested in the same pass, each into its own cache, where later runs at those points find
    them.
    """

    point: str = Field(
        "blocks.4.hook_resid_pre",
        description="where activations are read: a TransformerLens name, or a module path with :in or :out",
    )
    also: tuple[str, ...] = Field(
        (), description="further points that are harvested in the same pass, each into its own cache"
    )


class Text(Table):
    """The text. `source` is `docs` (this machine's documentation), `machine` (more of the kind), a local file or
    folder, or a dataset's name on the hub.

    `planted`: no text and no model, but a planted world, whose features the table `planted` describes
    (`metasae.data.planted.planted.WorldSpec`).
    """

    source: str = Field(
        "docs",
        description="docs, machine (docs, manual pages and comments), a local file or folder, a dataset on the hub as "
        "OWNER/NAME, or planted (no text and no model)",
    )
    name: str = Field("", description="a dataset's configuration on the hub")
    split: str = Field("train", description="the split of a dataset, from the hub or saved to disk")
    column: str = Field("text", description="where a record keeps its text, its messages or its token ids")
    context: int = Field(128, ge=4, description="tokens of a window")
    calibration_share: float = Field(
        0.08, gt=0, lt=0.5, description="share of the documents for thresholds, held out from training"
    )
    evaluation_share: float = Field(
        0.17, gt=0, lt=0.5, description="share of the documents for measuring, held out from training"
    )


class Harvest(Table):
    """The activation cache. `cache` empty: beside the run folder, shared by the runs there.

    tokens: 0 caches every training token; else only so many, and a longer training reads them again, each time in a
    fresh order. window_tokens: 0 keeps all activations on the disk; else training activations are harvested so many
    tokens at a time into the run folder, and deleted once every arm has trained on them. Batches are then shuffled
    within a window.
    """

    cache: str = Field(
        "", description="folder of the activation cache; empty: beside the run folder, shared by the runs there"
    )
    tokens: int = Field(
        0, ge=0, description="training tokens that are cached, and read again by a longer training; 0: as train.tokens"
    )
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="what activations are kept in")
    batch_tokens: int = Field(8192, ge=1, description="tokens that the model reads at a time")
    shard_tokens: int = Field(262_144, ge=1, description="tokens in one file of the cache")
    norm_limit: float = Field(
        8.0,
        ge=0,
        description="tokens with activations longer than so many times the median norm (attention sinks) are left out "
        "of training and measuring; 0: none",
    )
    window_tokens: int = Field(
        0, ge=0, description="0: all activations are kept on the disk; else so many tokens at a time"
    )


Positive = Annotated[float, Field(gt=0)]


class Spikes(Table):
    """Spike-ins: known features added to the activations that SAEs are trained on, so that how many they find is known.

    All arms of seed s meet the draw `seed` + s; held-out text is measured without spike-ins, but for `spikes` in
    measures.json.
    """

    n: int = Field(0, ge=0, description="known features, at least; 5 to 10% of sae.n is a good number; 0: none")
    seed: int = Field(0, ge=0, description="of the first draw; SAEs of seed s meet draw seed + s")
    amplitudes: tuple[Positive, Positive] = Field(
        (0.15, 0.37), description="least and most strength, as shares of the median token norm"
    )
    like: str = Field("", description="folder of an SAE whose live latents set the amplitudes instead")
    rates: tuple[Positive, Positive] = Field((1e-4, 2e-2), description="least and most share of tokens they are on")

    @model_validator(mode="after")
    def _least_and_most(self):
        for name, (least, most) in (("amplitudes", self.amplitudes), ("rates", self.rates)):
            if least > most:
                raise ValueError(f"{name} are the least and the most: {least} is more than {most}")
        if self.rates[1] > 0.1:
            raise ValueError(f"rates are shares of all tokens, at most 0.1: {self.rates[1]}")
        return self


ArchitectureName = Annotated[str, AfterValidator(Known("architecture", ARCHITECTURES, own=True))]


class Dictionary(Table):
    """What the primary and the meta SAE have in common: n latents, k kept per token (or decoder row) on average.

    l0: whether `relu` and `jumprelu`, which learn what fires, are brought to k in training. l1: weight of the L1 term
    of `relu`. l0_coef, bandwidth, threshold: L0 term, pseudo-derivative width and first threshold of `jumprelu`.
    prefixes: nested prefixes of `matryoshka`, as shares of n.
    """

    n: int = Field(3072, ge=1, description="latents")
    k: int = Field(
        32, ge=1, description="latents kept per token on average; relu and jumprelu are brought to it, see l0"
    )
    architecture: ArchitectureName = Field("batchtopk", description="how latents are chosen")
    l0: Literal["k", "free"] = Field(
        "k",
        description="relu, jumprelu: k: brought to k in training; free: what l1, or l0_coef and threshold, come to",
    )
    l1: float = Field(2e-3, ge=0, description="relu: weight of the L1 term, with l0 = k that of the first step")
    l0_coef: float = Field(0.1, ge=0, description="jumprelu: weight of the L0 term, whose target is k")
    bandwidth: float = Field(0.5, gt=0, description="jumprelu: width of the pseudo-derivative")
    threshold: float = Field(0.5, gt=0, description="jumprelu: first threshold; with l0 = k the first batch decides it")
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), description="matryoshka: nested prefixes as shares of n"
    )

    @model_validator(mode="after")
    def _k_within_n(self):
        if self.k > self.n:
            raise ValueError(f"k = {self.k} is more than n = {self.n}")
        return self


class Sae(Dictionary):
    """The primary SAE. `k_start` and `k_anneal`: k falls linearly from k_start (0: none) over this share of all
    steps.
    """

    normalize: Literal["none", "global", "token"] = Field(
        "global", description="inputs as they are, by one scale for all, or each token by its own"
    )
    b_enc: bool = Field(False, description="train an encoder bias")
    b_dec_init: Literal["zero", "mean"] = Field("mean", description="where the decoder bias begins")
    tied_init: bool = Field(True, description="the encoder begins as the transpose of the decoder")
    k_start: int = Field(0, ge=0, description="k falls linearly from here; 0: k from the beginning")
    k_anneal: float = Field(0.1, ge=0, le=1, description="share of all steps over which k falls from k_start")

    @model_validator(mode="after")
    def _k_falls(self):
        if self.k_start and not self.k <= self.k_start <= self.n:
            raise ValueError(f"k_start = {self.k_start} must lie between k = {self.k} and n = {self.n}, or be 0")
        if self.k_start and self.architecture in ("relu", "jumprelu"):
            raise ValueError(f"k_start anneals k, by which {self.architecture} chooses no latents; set it to 0")
        return self


class Meta(Dictionary):
    """The meta SAE: m latents (`n` here), k_m kept per decoder row on average; `input` token normalises each row
    first.
    """

    n: int = Field(276, ge=1, description="latents of the meta SAE")
    k: int = Field(4, ge=1, description="latents kept per decoder row on average")
    input: Literal["raw", "token"] = Field("token", description="token normalises each decoder row first")


class LetGo(Table):
    """A table of something that holds until the share `hold` of all steps and has gone at the share `gone`."""

    @model_validator(mode="after")
    def _falls(self):
        if self.gone < self.hold:
            raise ValueError(f"gone = {self.gone:g} comes before hold = {self.hold:g}")
        return self


class Nest(LetGo):
    """Nesting that is let go, in the arms `atomic` and `atomic-joint`: the first latents also rebuild the input alone
    (`metasae.train.moves.nest`). Times are shares of all steps.
    """

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.25,), description="inner prefixes, as shares of n"
    )
    weight: float = Field(0.3, ge=0, description="of each inner prefix's error beside the whole SAE's; 0: no nesting")
    hold: float = Field(0.25, ge=0, le=1, description="until when the weight holds")
    gone: float = Field(0.5, ge=0, description="when it has fallen to 0; above 1: never wholly")


class Margin(LetGo):
    """A margin that is let go, in the arms `atomic` and `atomic-joint`: a latent's threshold lies above the common one
    by a share of its own mean activation (`metasae.train.moves.margin`). Times are shares of all steps.
    """

    start: float = Field(0.4, ge=0, lt=1, description="the share until `hold`; at .6 too few latents fire")
    end: float = Field(0.1, ge=0, lt=1, description="the share from `gone` on, which the exported thresholds have")
    hold: float = Field(0.5, ge=0, le=1, description="until when the first share holds")
    gone: float = Field(0.75, ge=0, le=1, description="when it has come to the last one")


class Births(Table):
    """Latents that are split on evidence, in the arms `atomic` and `atomic-joint` (`metasae.train.moves.births`). Times
    are shares of all steps.
    """

    share: float = Field(0.0175, ge=0, le=1, description="most births at a time, as a share of n; 0: none")
    every: float = Field(0.1, gt=0, le=1, description="time between births, as a share of all steps")
    until: float = Field(0.75, ge=0, le=1, description="no births after this share of all steps")
    window: int = Field(
        400, ge=1, description="steps before births whose firings decide them, and the least that lie between births"
    )
    two_points: float = Field(
        0.42, ge=0, le=1, description="least (skew^2 + 1) / kurtosis: 1 for two points, .56 uniform, .33 normal"
    )
    firings: int = Field(3, ge=2, description="least firings in the window of each of the two that a latent becomes")
    encoder: Literal["ridge", "duals", "change", "parent"] = Field(
        "ridge", description="how the encoder rows of a birth are made"
    )


class Train(Table):
    """Training. Counts are in tokens or optimiser steps as the names say; `decay` is the share of steps at the end."""

    tokens: int = Field(1_000_000, ge=1, description="training tokens per arm")
    batch: int = Field(2048, ge=1, description="tokens of a primary step")
    init: str = Field(
        "",
        description="an existing SAE that every arm starts from, in place of a fresh one: the folder of a run's arm, "
        "or a folder, file or `hf:` address in any format that `metasae import` reads; it is measured beside the arms "
        "as `init`",
    )
    lambda2: float = Field(0.3, ge=0, description="weight of the decomposability penalty (joint)")
    sigma_sq: float = Field(
        1.0,
        gt=0,
        description="sigma^2 of the penalty: in exp(-e / sigma^2), e the squared distance of a row from its meta "
        "reconstruction",
    )
    adaptive_sigma: bool = Field(False, description="sigma^2 follows the mean of e, kappa held")
    balanced: bool = Field(False, description="weigh each row's penalty with its latent's firing rate")
    meta_gradient: Literal["stop", "full"] = Field(
        "stop", description="full: through the meta reconstruction too; stop: that is fixed"
    )
    penalties: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="further penalties by name, with their coefficients"
    )
    penalty_every: int = Field(
        1, ge=1, description="further penalties are worked out on every c-th primary step, c-fold"
    )
    penalty_start: float = Field(0.0, ge=0, le=1, description="share of all steps before any penalty is charged")
    nest: Nest = Nest()
    margin: Margin = Margin()
    births: Births = Births()
    n_primary_steps: int = Field(10, ge=1, description="primary steps in a round")
    n_meta_steps: int = Field(5, ge=1, description="meta steps after them")
    lr: float = Field(1e-3, gt=0, description="the primary SAE's step size")
    meta_lr: float = Field(0.0, ge=0, description="0: the same as lr")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's")
    eps: float = Field(1e-8, gt=0, description="Adam's")
    warmup: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    decay: float = Field(0.0, ge=0, le=1, description="share of all steps at the end over which lr falls to 0")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    dead_after: int = Field(10_000_000, ge=1, description="tokens without a firing until a latent counts as dead")
    meta_dead_after: int = Field(10_000_000, ge=1, description="rows seen by the meta SAE, likewise")
    k_aux: int = Field(0, ge=0, description="0: half of d")
    aux_coef: float = Field(1 / 32, ge=0, description="weight of the auxiliary loss that revives dead latents")
    aux_residual: Literal["detached", "attached"] = Field(
        "detached", description="whether the residual of the auxiliary loss takes part in the gradient"
    )
    renormalise: Literal["after", "before"] = Field(
        "after", description="when decoder rows are set to norm 1: after or before the step"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="what matrix products are computed in; auto: bf16 where it is fast"
    )
    kernels: Literal["auto", "fast", "triton", "reference"] = Field(
        "fast", description="fast, triton (a GPU), the slow reference, or what suits the device"
    )
    checkpoint_every: int = Field(500, ge=1, description="primary steps")

    @model_validator(mode="after")
    def _known_penalties(self, info: ValidationInfo):
        for name in self.penalties:
            if name not in PENALTIES and not is_stored(info):
                raise ValueError(f"no penalty '{name}'{nearest(name, PENALTIES)}")
        return self

    @model_validator(mode="after")
    def _betas_below_one(self):
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1): {self.betas}")
        return self


class Measure(Table):
    """What the trained SAEs are judged on; every arm meets the same held-out tokens and the same rule."""

    tokens: int = Field(200_000, ge=1, description="evaluation tokens")
    calibration_tokens: int = Field(100_000, ge=1, description="tokens that thresholds are set on")
    threshold: Literal["rate", "relative", "per_latent", "eer"] = Field(
        "rate", description="how BatchTopK becomes a fixed rule"
    )
    output_tokens: int = Field(20_000, ge=0, description="tokens for the model's own output; 0 leaves it out")
    batch_topk: bool = Field(
        False, description="the model's output under batch top-k as well, as in the paper's code; needs output_tokens"
    )
    keep_firings: bool = Field(
        True, description="keep the firings on the evaluation tokens in the arm's folder, 8 bytes each"
    )
    shifts: int = Field(3, ge=0, description="rotations of the text for the document-shift null; 0 leaves it out")
    lift: bool = Field(
        True,
        description="excess over fixed marginals, dependence of firing, and lift with false discoveries controlled",
    )
    excess_blocks: bool = Field(
        True,
        description="the excess without each block of documents too, for its interval; costs as much again per block",
    )
    pursuit_k: int = Field(3, ge=0, le=6, description="most rows that a pursuit rebuilds a row from; 0 leaves it out")
    meta_n: float = Field(0.09, gt=0, description="width of the judging meta SAE as a share of n")
    meta_k: int = Field(4, ge=1, description="rows that the judging meta SAE keeps per decoder row")
    meta_steps: int = Field(200, ge=1, description="steps it is trained for")
    critics: int = Field(
        5, ge=1, description="judging meta SAEs, each of a seed of its own; their spread is part of the interval"
    )
    critic_grid: bool = Field(False, description="meta SAEs of several widths and k")
    senses: str = Field(
        "", description="file or folder of sense-tagged sentences (JSONL: word, sense, before, target, after)"
    )
    concepts: int = Field(50, ge=0, description="concepts drawn from the text, per family; 0 leaves all concepts out")
    labels: str = Field(
        "",
        description="file or folder of sentences labelled with concepts of your own (JSONL: concept, before, target, "
        "after; family); needs concepts",
    )
    across: bool = Field(
        True,
        description="what needs two SAEs: latents found again in other seeds, splits of solo's latents; needs "
        "keep_firings",
    )
    explorer: bool = Field(
        True, description="the explorer's store, from which the report shows windows too; needs keep_firings"
    )
    side_effects: int = Field(
        0,
        ge=0,
        description="matched latents per seed whose side effects in steering are measured; 0 leaves it out; needs "
        "across and keep_firings",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides one SAE's measures, as JSON: all but what is done with several SAEs, or for the pages."""
        return self.model_dump(mode="json", exclude={"across", "explorer", "side_effects"})
