"""The tables of a recipe, each key with its default and meaning."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from metasae.errors import nearest
from metasae.recipe.registry import ARCHITECTURES, PENALTIES, Known, is_stored


class Table(BaseModel):
    """A table of the recipe. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Table):
    """The language model. `path` takes precedence over `name`; `package:PKG/FOLDER` is a folder inside an installed
    package. A GGUF file (`FILE.gguf` or `package:PKG/FILE.gguf`) is converted into a folder in the user's cache when it
    is first read.

    revision: a branch, tag or commit on the hub. device_map: `auto` spreads the layers over all GPUs and, if these are
    too small, the processor's memory (needs accelerate). bos: whether windows of a causal model begin with BOS; set
    false for SAEs that were trained without BOS. trust_remote_code: if true, code that comes with the model runs on
    this machine.
    """

    name: str = Field("", description="a model on the hub, as OWNER/NAME")
    path: str = Field(
        "",
        description="a folder written by save_pretrained, a .gguf file, or package:PKG/FOLDER or package:PKG/FILE.gguf "
        "in an installed package; takes precedence over name",
    )
    revision: str = Field("", description="a branch, tag or commit on the hub")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format the model runs in; auto: bf16 where that is fast, else fp32"
    )
    device_map: Literal["", "auto"] = Field(
        "", description="auto spreads the layers over all GPUs and memory (needs accelerate)"
    )
    bos: Literal["auto", True, False] = Field(
        "auto",
        description="whether windows of a causal model begin with BOS; auto: if its tokenizer has one",
    )
    trust_remote_code: bool = Field(False, description="true: code that comes with the model runs on this machine")

    @property
    def source(self) -> str:
        return self.path or self.name


class Hook(Table):
    """Where activations are read: a TransformerLens name (`blocks.4.hook_resid_pre`) or a module path with `:in` or
    `:out`.

    also: further points, harvested in the same pass, each into its own cache. Later runs at those points use that
    cache.
    """

    point: str = Field(
        "blocks.4.hook_resid_pre",
        description="where activations are read: a TransformerLens name, or a module path with :in or :out",
    )
    also: tuple[str, ...] = Field((), description="further points to harvest in the same pass, each into its own cache")


class Text(Table):
    """The text. `source` is `docs` (the documentation on this machine), `machine` (documentation, manual pages and
    comments), a local file or folder, or a dataset's name on the hub.

    `planted`: no text and no model, but a planted world: made-up activations with known features, which the table
    `planted` describes (`metasae.data.planted.planted.WorldSpec`).
    """

    source: str = Field(
        "docs",
        description="docs, machine (docs, manual pages and comments), a local file or folder, a dataset on the hub as "
        "OWNER/NAME, or planted (no text and no model)",
    )
    name: str = Field("", description="a dataset's configuration on the hub")
    split: str = Field("train", description="the split of a dataset, from the hub or saved to disk")
    column: str = Field("text", description="the field of a record that holds its text, its messages or its token ids")
    context: int = Field(
        128, ge=4, description="tokens in a window, the stretch of text that the model reads as one sequence"
    )
    calibration_share: float = Field(
        0.08, gt=0, lt=0.5, description="share of the documents that thresholds are set on, held out from training"
    )
    evaluation_share: float = Field(
        0.17, gt=0, lt=0.5, description="share of the documents that SAEs are measured on, held out from training"
    )


class Harvest(Table):
    """The activation cache. If `cache` is empty it lies beside the run folder and is shared by the runs there.

    tokens: 0 caches every training token; otherwise only this many, and a longer training reads them again, each time
    in a new order. window_tokens: 0 keeps all activations on the disk; otherwise training activations are harvested
    this many tokens at a time into the run folder, and deleted when every arm has trained on them. Batches are then
    shuffled within such a window.
    """

    cache: str = Field(
        "", description="folder of the activation cache; empty: beside the run folder, and shared by the runs there"
    )
    tokens: int = Field(
        0, ge=0, description="training tokens to cache; a longer training reads them again; 0: train.tokens"
    )
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="number format of the cached activations")
    batch_tokens: int = Field(8192, ge=1, description="tokens that the model reads in one pass")
    shard_tokens: int = Field(262_144, ge=1, description="tokens in one file of the cache")
    norm_limit: float = Field(
        8.0,
        ge=0,
        description="tokens whose activation norm is more than this many times the median (attention sinks) are left "
        "out of training and measuring; 0: none are",
    )
    window_tokens: int = Field(
        0,
        ge=0,
        description="0: all activations stay on the disk; otherwise training activations come this many tokens at a "
        "time and are deleted after use",
    )


Positive = Annotated[float, Field(gt=0)]


class Spikes(Table):
    """Spike-ins: known features that are added to the training activations, to count how many of them an SAE finds.

    All arms of seed s are trained with the features drawn by `seed` + s. Held-out text is measured without spike-ins,
    except for the part `spikes` of measures.json.
    """

    n: int = Field(0, ge=0, description="least number of known features; 5 to 10% of sae.n is a good number; 0: none")
    seed: int = Field(0, ge=0, description="seed of the first draw; SAEs of seed s are trained with draw seed + s")
    amplitudes: tuple[Positive, Positive] = Field(
        (0.15, 0.37), description="smallest and largest strength, as shares of the median token norm"
    )
    like: str = Field(
        "", description="folder of an SAE; the activations of its live latents set the amplitudes instead"
    )
    rates: tuple[Positive, Positive] = Field(
        (1e-4, 2e-2), description="smallest and largest share of tokens on which a known feature is present"
    )

    @model_validator(mode="after")
    def _least_and_most(self):
        for name, (least, most) in (("amplitudes", self.amplitudes), ("rates", self.rates)):
            if least > most:
                raise ValueError(f"{name} are the smallest and the largest value: {least} is more than {most}")
        if self.rates[1] > 0.1:
            raise ValueError(f"rates are shares of all tokens, at most 0.1: {self.rates[1]}")
        return self


ArchitectureName = Annotated[str, AfterValidator(Known("architecture", ARCHITECTURES, own=True))]


class Dictionary(Table):
    """The keys that the primary and the meta SAE share: n latents, of which on average k are kept per token (or per
    decoder row).

    l0: whether training drives the L0 of `relu` and `jumprelu`, which learn what fires, to k. l1: weight of the L1 term
    of `relu`. l0_coef, bandwidth, threshold: weight of the L0 term, width of the pseudo-derivative and first threshold
    of `jumprelu`. prefixes: nested prefixes of `matryoshka`, as shares of n.
    """

    n: int = Field(3072, ge=1, description="latents")
    k: int = Field(32, ge=1, description="latents kept per token on average; for relu and jumprelu see l0")
    architecture: ArchitectureName = Field("batchtopk", description="how the latents that fire are chosen")
    l0: Literal["k", "free"] = Field(
        "k",
        description="relu, jumprelu: k: training drives L0 to k; free: L0 follows from l1, or l0_coef and threshold",
    )
    l1: float = Field(2e-3, ge=0, description="relu: weight of the L1 term; with l0 = k only its first value")
    l0_coef: float = Field(0.1, ge=0, description="jumprelu: weight of the L0 term, whose target is k")
    bandwidth: float = Field(0.5, gt=0, description="jumprelu: width of the pseudo-derivative")
    threshold: float = Field(0.5, gt=0, description="jumprelu: first threshold; with l0 = k the first batch sets it")
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), description="matryoshka: nested prefixes as shares of n"
    )

    @model_validator(mode="after")
    def _k_within_n(self):
        if self.k > self.n:
            raise ValueError(f"k = {self.k} is more than n = {self.n}")
        return self


class Sae(Dictionary):
    """The primary SAE, which reads activations. k falls linearly from `k_start` over the share `k_anneal` of all steps;
    `k_start` 0: k is constant.
    """

    normalize: Literal["none", "global", "token"] = Field(
        "global",
        description="how inputs are scaled: not at all, by one factor for all tokens, or each token by its own",
    )
    b_enc: bool = Field(False, description="train an encoder bias")
    b_dec_init: Literal["zero", "mean"] = Field(
        "mean", description="first value of the decoder bias: zero, or the mean input"
    )
    tied_init: bool = Field(True, description="the encoder starts as the transpose of the decoder")
    k_start: int = Field(0, ge=0, description="k falls linearly from this value; 0: k is constant")
    k_anneal: float = Field(0.1, ge=0, le=1, description="share of all steps over which k falls from k_start")

    @model_validator(mode="after")
    def _k_falls(self):
        if self.k_start and not self.k <= self.k_start <= self.n:
            raise ValueError(f"k_start = {self.k_start} must lie between k = {self.k} and n = {self.n}, or be 0")
        if self.k_start and self.architecture in ("relu", "jumprelu"):
            raise ValueError(
                f"k_start anneals k, but {self.architecture} does not choose latents by k; set k_start to 0"
            )
        return self


class Meta(Dictionary):
    """The meta SAE, which reads the decoder rows of the primary: m latents (`n` here), of which on average k_m are kept
    per row (`k` here). `input` token normalises each row first.
    """

    n: int = Field(276, ge=1, description="latents of the meta SAE")
    k: int = Field(4, ge=1, description="latents kept per decoder row on average")
    input: Literal["raw", "token"] = Field(
        "token", description="raw: decoder rows as they are; token: each row is normalised first"
    )


class Nest(Table):
    """Nesting early in training, in the arms `atomic` and `atomic-joint`: the first latents also have to rebuild the
    input without the others (`metasae.train.atomic`). Times are shares of all steps.
    """

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.25,), description="inner prefixes, as shares of n: so many of the first latents rebuild the input alone"
    )
    weight: float = Field(
        0.1, ge=0, description="weight of each inner prefix's error; the whole SAE's error has weight 1; 0: no nesting"
    )
    hold: float = Field(0.25, ge=0, le=1, description="share of all steps until which the weight is constant")
    gone: float = Field(
        0.5, ge=0, description="share of all steps at which it has fallen to 0; above 1: it does not reach 0"
    )

    @model_validator(mode="after")
    def _falls(self):
        if self.gone < self.hold:
            raise ValueError(f"gone = {self.gone:g} comes before hold = {self.hold:g}")
        return self


class Train(Table):
    """Training. Counts are in tokens or in optimiser steps, as each key says."""

    tokens: int = Field(1_000_000, ge=1, description="training tokens per arm")
    batch: int = Field(2048, ge=1, description="tokens in a step of the primary SAE")
    init: str = Field(
        "",
        description="an existing SAE that every arm starts from, in place of a fresh one: the folder of a run's arm, "
        "or a folder, file or `hf:` address in any format that `metasae import` reads; it is measured beside the arms "
        "as `init`",
    )
    lambda2: float = Field(
        0.3,
        ge=0,
        description="weight of the decomposability penalty (joint), on decoder rows that the meta SAE can rebuild",
    )
    sigma_sq: float = Field(
        1.0,
        gt=0,
        description="sigma^2 of the penalty: in exp(-e / sigma^2), e the squared distance of a row from its meta "
        "reconstruction",
    )
    adaptive_sigma: bool = Field(
        False, description="sigma^2 follows the mean of e so that the penalty's strength kappa stays constant"
    )
    balanced: bool = Field(False, description="weight each row's penalty by its latent's firing rate")
    meta_gradient: Literal["stop", "full"] = Field(
        "stop",
        description="the penalty's gradient; full: also through the meta reconstruction; stop: that is a constant",
    )
    penalties: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="further penalties: {name = coefficient}"
    )
    penalty_every: int = Field(1, ge=1, description="further penalties act on every c-th primary step, multiplied by c")
    penalty_start: float = Field(0.0, ge=0, le=1, description="share of all steps before any penalty is charged")
    nest: Nest = Nest()
    margin: float = Field(
        0.1,
        ge=0,
        lt=0.6,
        description="in the arms `atomic` and `atomic-joint` a latent's threshold lies above the common one by this "
        "share of its own mean activation (`metasae.train.atomic`); 0: no margin; at .6 too few latents fire",
    )
    n_primary_steps: int = Field(10, ge=1, description="steps of the primary SAE in a round")
    n_meta_steps: int = Field(5, ge=1, description="steps of the meta SAE after them in the round")
    lr: float = Field(1e-3, gt=0, description="learning rate of the primary SAE")
    meta_lr: float = Field(0.0, ge=0, description="learning rate of the meta SAE; 0: the same as lr")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's betas")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    warmup: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    decay: float = Field(0.0, ge=0, le=1, description="share of all steps at the end over which lr falls to 0")
    clip: float = Field(1.0, gt=0, description="the gradient is clipped to this norm")
    dead_after: int = Field(10_000_000, ge=1, description="tokens without a firing after which a latent counts as dead")
    meta_dead_after: int = Field(
        10_000_000,
        ge=1,
        description="decoder rows without a firing after which a latent of the meta SAE counts as dead",
    )
    k_aux: int = Field(0, ge=0, description="dead latents in the auxiliary loss per token; 0: half of d")
    aux_coef: float = Field(1 / 32, ge=0, description="weight of the auxiliary loss that revives dead latents")
    aux_residual: Literal["detached", "attached"] = Field(
        "detached",
        description="whether the auxiliary loss sends its gradient through the residual (attached) or not (detached)",
    )
    renormalise: Literal["after", "before"] = Field(
        "after", description="whether decoder rows are set to norm 1 after or before the step"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of matrix products; auto: bf16 where that is fast, else fp32"
    )
    kernels: Literal["auto", "fast", "triton", "reference"] = Field(
        "fast", description="fast, triton (a GPU), the slow reference, or auto: what suits the device"
    )
    checkpoint_every: int = Field(500, ge=1, description="primary steps between two checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, values, info: ValidationInfo):
        # earlier runs made births, and had a margin that fell; the exported thresholds have its last value
        if not is_stored(info):
            return values
        kept = {key: value for key, value in values.items() if key != "births"}
        if isinstance(kept.get("margin"), dict):
            kept["margin"] = kept["margin"].get("end", 0.1)
        return kept

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
    """How the trained SAEs are measured. All arms are measured on the same held-out tokens and by the same rule."""

    tokens: int = Field(200_000, ge=1, description="tokens of the evaluation split to measure on")
    calibration_tokens: int = Field(100_000, ge=1, description="tokens to set the thresholds on")
    threshold: Literal["rate", "relative", "per_latent", "eer"] = Field(
        "rate", description="rule by which a fixed threshold replaces the top-k of a batch"
    )
    output_tokens: int = Field(
        20_000,
        ge=0,
        description="tokens on which the model's own output is measured with the SAE in place; 0 leaves it out",
    )
    batch_topk: bool = Field(
        False,
        description="measure the model's output under batch top-k too, as the paper's code does; needs output_tokens",
    )
    keep_firings: bool = Field(
        True, description="keep the firings on the evaluation tokens in the arm's folder, 8 bytes for each firing"
    )
    shifts: int = Field(
        3,
        ge=0,
        description="rotations of the text for the document-shift null; 0 leaves it out",
    )
    lift: bool = Field(
        True,
        description="measure the excess |phi| over fixed marginals, the dependence of firing, and the lift with false "
        "discoveries controlled",
    )
    excess_blocks: bool = Field(
        True,
        description="also measure the excess without each block of documents, for its interval; each block costs as "
        "much again",
    )
    pursuit_k: int = Field(
        3, ge=0, le=6, description="most other decoder rows that a decoder row is rebuilt from; 0 leaves this out"
    )
    meta_n: float = Field(0.09, gt=0, description="latents of a judging meta SAE (critic), as a share of n")
    meta_k: int = Field(4, ge=1, description="latents that a critic keeps per decoder row")
    meta_steps: int = Field(200, ge=1, description="steps that a critic is trained for")
    critics: int = Field(
        5, ge=1, description="number of critics, each with a seed of its own; their spread is part of the interval"
    )
    critic_grid: bool = Field(False, description="also train critics of several widths and k")
    senses: str = Field(
        "", description="file or folder of sense-tagged sentences (JSONL: word, sense, before, target, after)"
    )
    concepts: int = Field(50, ge=0, description="concepts to draw from the text, per family; 0 leaves all concepts out")
    labels: str = Field(
        "",
        description="file or folder of sentences labelled with concepts of your own (JSONL: concept, before, target, "
        "after; family); needs concepts",
    )
    across: bool = Field(
        True,
        description="measure what takes two SAEs: latents found again in other seeds, splits of solo's latents; needs "
        "keep_firings",
    )
    explorer: bool = Field(
        True, description="build the explorer's store, from which the report takes its windows too; needs keep_firings"
    )
    side_effects: int = Field(
        0,
        ge=0,
        description="number of matched latents per seed whose side effects in steering are measured; 0 leaves it out; "
        "needs across and keep_firings",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that decide one SAE's measures, as JSON: all but those for several SAEs and for the pages."""
        return self.model_dump(mode="json", exclude={"across", "explorer", "side_effects"})
