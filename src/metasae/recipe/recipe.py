"""A recipe: every choice of a run as typed values, read from and written to TOML.

An unknown key or a wrong value is one `UserError` line that names the nearest right one.
Recipes that ship with the package lie in `recipe/shipped/*.toml`, each value commented with its source.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli
import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metasae.errors import UserError, nearest
from metasae.recipe.registry import ARCHITECTURES, ARMS, PENALTIES, Known

ArmName = Annotated[str, AfterValidator(Known("arm", ARMS))]


class Table(BaseModel):
    """A table of the recipe. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Table):
    """The language model. `path` wins over `name`; `package:PKG/FOLDER` is a folder inside an installed package.

    revision: a branch, tag or commit on the hub. device_map: `auto` spreads the layers over all GPUs and, where they are too
    small, the processor's memory (needs accelerate). trust_remote_code: the model's own code runs on this machine.
    """

    name: str = Field("", description="a model on the hub, as OWNER/NAME")
    path: str = Field(
        "",
        description="a folder written by save_pretrained, or package:PKG/FOLDER in an installed package; wins over name",
    )
    revision: str = Field("", description="a branch, tag or commit on the hub")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="what the model runs in; auto: bf16 where it is fast, else fp32"
    )
    device_map: Literal["", "auto"] = Field(
        "", description="auto spreads the layers over all GPUs and memory (needs accelerate)"
    )
    trust_remote_code: bool = Field(False, description="true: the model's own code runs on this machine")

    @property
    def source(self) -> str:
        return self.path or self.name


class Hook(Table):
    """Where activations are read: a TransformerLens name (`blocks.4.hook_resid_pre`) or a module path with `:in` or `:out`.

    also: further points harvested in the same pass, each into its own cache, where later runs at those points find them.
    """

    point: str = Field(
        "blocks.4.hook_resid_pre",
        description="where activations are read: a TransformerLens name, or a module path with :in or :out",
    )
    also: tuple[str, ...] = Field(
        (), description="further points that are harvested in the same pass, each into its own cache"
    )


class Text(Table):
    """The text. `source` is `docs` (this machine's documentation), a local file or folder, or a dataset's name on the hub.

    `planted`: no text and no model, but a planted world, whose features the table `planted` describes (`metasae.data.planted.planted.Plan`).
    """

    source: str = Field(
        "docs",
        description="docs, a local file or folder, a dataset on the hub as OWNER/NAME, or planted (no text and no model)",
    )
    name: str = Field("", description="a dataset's configuration on the hub")
    split: str = Field("train", description="the split of a dataset, from the hub or saved to disk")
    column: str = Field("text", description="where a record keeps its text")
    context: int = Field(128, ge=4, description="tokens of a window")
    calibration_share: float = Field(
        0.08, gt=0, lt=0.5, description="share of the documents for thresholds, held out from training"
    )
    evaluation_share: float = Field(
        0.17, gt=0, lt=0.5, description="share of the documents for measuring, held out from training"
    )


class Harvest(Table):
    """The activation cache. `cache` empty: beside the run folder, shared by the runs there.

    tokens: 0 caches every training token; else only so many, and a longer training reads them again, each time in a fresh order.
    window_tokens: 0 keeps all activations on the disk; else training activations are harvested so many tokens at a time into the run
    folder, and deleted once every arm has trained on them. Batches are then shuffled within a window.
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
    window_tokens: int = Field(
        0, ge=0, description="0: all activations are kept on the disk; else so many tokens at a time"
    )


ArchitectureName = Annotated[str, AfterValidator(Known("architecture", ARCHITECTURES))]


class Dictionary(Table):
    """What the primary and the meta SAE have in common: n latents, k kept per token (or decoder row) on average.

    l1: weight of the L1 term of `relu`. l0_coef, bandwidth, threshold: L0 term, pseudo-derivative width and first threshold of
    `jumprelu`, whose L0 target is k. prefixes: nested prefixes of `matryoshka`, as shares of n.
    """

    n: int = Field(3072, ge=1, description="latents")
    k: int = Field(
        32, ge=1, description="latents kept per token on average; relu has none, jumprelu takes it as its L0 target"
    )
    architecture: ArchitectureName = Field("batchtopk", description="how latents are chosen")
    l1: float = Field(2e-3, ge=0, description="relu: weight of the L1 term")
    l0_coef: float = Field(0.1, ge=0, description="jumprelu: weight of the L0 term, whose target is k")
    bandwidth: float = Field(0.5, gt=0, description="jumprelu: width of the pseudo-derivative")
    threshold: float = Field(0.5, gt=0, description="jumprelu: first threshold")
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), description="matryoshka: nested prefixes as shares of n"
    )

    @model_validator(mode="after")
    def _k_within_n(self):
        if self.k > self.n:
            raise ValueError(f"k = {self.k} is more than n = {self.n}")
        return self


class Sae(Dictionary):
    """The primary SAE. `k_start` and `k_anneal`: k falls linearly from k_start (0: none) over this share of all steps."""

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
    """The meta SAE: m latents (`n` here), k_m kept per decoder row on average; `input` token normalises each row first."""

    n: int = Field(276, ge=1, description="latents of the meta SAE")
    k: int = Field(4, ge=1, description="latents kept per decoder row on average")
    input: Literal["raw", "token"] = Field("token", description="token normalises each decoder row first")


class Train(Table):
    """Training. Counts are in tokens or optimiser steps as the names say; `decay` is the share of steps at the end."""

    tokens: int = Field(1_000_000, ge=1, description="training tokens per arm")
    batch: int = Field(2048, ge=1, description="tokens of a primary step")
    lambda2: float = Field(0.3, ge=0, description="weight of the decomposability penalty (joint)")
    sigma_sq: float = Field(
        1.0,
        gt=0,
        description="sigma^2 of the penalty: in exp(-e / sigma^2), e the squared distance of a row from its meta reconstruction",
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
    def _known_penalties(self):
        for name in self.penalties:
            if name not in PENALTIES:
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
    threshold: Literal["rate", "per_latent", "eer"] = Field("rate", description="how BatchTopK becomes a fixed rule")
    output_tokens: int = Field(20_000, ge=0, description="tokens for the model's own output; 0 leaves it out")
    batch_topk: bool = Field(
        False, description="the model's output under batch top-k as well, as in the paper's code; needs output_tokens"
    )
    keep_firings: bool = Field(
        True, description="keep the firings on the evaluation tokens in the arm's folder, 8 bytes each"
    )
    shifts: int = Field(3, ge=0, description="rotations of the text for the document-shift null; 0 leaves it out")
    lift: bool = Field(True, description="excess over fixed marginals, and lift with false discoveries controlled")
    excess_blocks: bool = Field(
        True,
        description="the excess without each block of documents too, for its interval; costs as much again per block",
    )
    pursuit_k: int = Field(3, ge=0, le=6, description="most rows that a pursuit rebuilds a row from; 0 leaves it out")
    meta_n: float = Field(0.09, gt=0, description="width of the judging meta SAE as a share of n")
    meta_k: int = Field(4, ge=1, description="rows that the judging meta SAE keeps per decoder row")
    meta_steps: int = Field(200, ge=1, description="steps it is trained for")
    critic_grid: bool = Field(False, description="meta SAEs of several widths and k")
    senses: str = Field(
        "", description="file or folder of sense-tagged sentences (JSONL: word, sense, before, target, after)"
    )
    across: bool = Field(
        True,
        description="what needs two SAEs: latents found again in other seeds, splits of solo's latents; needs keep_firings",
    )
    explorer: bool = Field(
        True, description="the explorer's store, from which the report shows windows too; needs keep_firings"
    )
    side_effects: int = Field(
        0,
        ge=0,
        description="matched latents per seed whose side effects in steering are measured; 0 leaves it out; needs across and keep_firings",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides one SAE's measures, as JSON: all but what is done with several SAEs, or for the pages."""
        return self.model_dump(mode="json", exclude={"across", "explorer", "side_effects"})


def _seed_list(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class Recipe(Table):
    """Everything that decides the result of a run, apart from the machine."""

    description: str = Field("", description="one line for `metasae recipes`")
    model: Model = Model()
    hook: Hook = Hook()
    text: Text = Text()
    harvest: Harvest = Harvest()
    sae: Sae = Sae()
    meta: Meta = Meta()
    train: Train = Train()
    measure: Measure = Measure()
    planted: dict[str, Any] = Field(
        {}, description='the planted world, as in metasae.data.planted.planted.Plan; with text.source = "planted"'
    )
    arms: tuple[ArmName, ...] = Field(("solo", "control", "joint"), description="what is trained")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seed_list)] = Field(
        (0,), description="a count (3: 0, 1 and 2) or a list"
    )

    @model_validator(mode="after")
    def _windows_alone(self):
        if self.harvest.window_tokens and (self.hook.also or self.text.source == "planted"):
            raise ValueError(
                "harvest.window_tokens goes with one hook point, read from text: set it to 0, or leave hook.also empty"
            )
        if self.harvest.window_tokens and self.harvest.tokens:
            raise ValueError(
                "harvest.window_tokens deletes what was trained on, so harvest.tokens cannot be read again: set one of them to 0"
            )
        return self

    @model_validator(mode="after")
    def _arms_and_seeds(self):
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name at least one, each once: {list(values)}")
        return self

    def has_meta(self, arm: str) -> bool:
        """Whether an arm trains a meta SAE. Without a penalty's weight nothing would look at that of a penalised one."""
        rules = ARMS[arm]
        return rules.meta and (not rules.penalty or self.train.lambda2 > 0)

    def charged(self, arm: str) -> dict[str, float]:
        """The further penalties that an arm is charged, by name, with their coefficients."""
        return {name: coef for name, coef in self.train.penalties.items() if coef > 0} if ARMS[arm].penalty else {}

    @property
    def split_tokens(self) -> dict[str, int]:
        """Split -> tokens that its activations are wanted of. A training longer than `train` reads those again."""
        train = min(self.harvest.tokens or self.train.tokens, self.train.tokens)
        return {"train": train, "calibration": self.measure.calibration_tokens, "evaluation": self.measure.tokens}

    @classmethod
    def load(cls, source: str | Path | dict, overrides: dict[str, Any] | None = None) -> "Recipe":
        """Reads a recipe: a shipped name, a TOML file or a dictionary, with dotted overrides on top.

        Raises UserError for an unknown name or file, bad TOML, an unknown key or a wrong value.
        """
        values = source if isinstance(source, dict) else _read(source)
        for key, value in (overrides or {}).items():
            values = _with(values, key.split("."), value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    def dump(self) -> str:
        """The recipe as TOML, every value resolved."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def save(self, path: str | Path) -> None:
        """Writes the recipe beside its place, then renames it into it."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.dump())
        os.replace(part, path)


def names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        entry.name[:-5] for entry in resources.files("metasae.recipe.shipped").iterdir() if entry.name.endswith(".toml")
    )


def text_of(name: str) -> str:
    """The TOML text of a shipped recipe, comments and all. Raises UserError for an unknown name."""
    if name not in names():
        raise UserError(f"no recipe '{name}'{nearest(name, names())}")
    return (resources.files("metasae.recipe.shipped") / f"{name}.toml").read_text()


def parse_override(text: str) -> tuple[str, Any]:
    """`train.lambda2=0.1` -> ("train.lambda2", 0.1). The value is read as TOML, and as a plain string where it is none."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set takes KEY=VALUE, not '{text}'")
    try:
        parsed = tomli.loads(f"v = {value.strip()}")["v"]
    except tomli.TOMLDecodeError:
        parsed = value.strip()
    return key.strip(), parsed


# No recipe is nearly as long; a file that is may hold weights, and is not read whole.
_LONGEST = 1 << 20


def _read(source: str | Path) -> dict:
    try:
        text = _text_at(source)
    except (OSError, ValueError):
        raise UserError(f"{source} is no recipe; give a TOML file or a shipped recipe's name") from None
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML: {error}") from None


def _text_at(source: str | Path) -> str:
    """The TOML text of a file or of a shipped recipe. Raises ValueError for a file that cannot be one, OSError where it cannot be read."""
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise UserError(f"no recipe file '{path}'")
        if path.stat().st_size > _LONGEST:
            raise ValueError("too long")
        return path.read_text(encoding="utf-8")
    if str(source) not in names() and (path / "recipe.toml").is_file():
        raise UserError(f"{path} is a run folder; did you mean {path / 'recipe.toml'} --out {path}?")
    return text_of(str(source))


def _with(values: dict, keys: list[str], value: Any) -> dict:
    head, *rest = keys
    if rest and not isinstance(values.get(head, {}), dict):
        raise UserError(f"'{head}' is a value, not a table, so '{'.'.join(keys)}' names nothing")
    return {**values, head: _with(values.get(head, {}), rest, value) if rest else value}


def _within_tables(where: list[str]) -> str:
    """A hint for a key that was given without its table: `; did you mean 'sae.n' or 'meta.n'?`. Nothing where no table has such a key."""
    tables = {name: field.annotation for name, field in Recipe.model_fields.items() if len(where) == 1}
    names = [f"'{name}.{where[0]}'" for name, table in tables.items() if where[0] in getattr(table, "model_fields", {})]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        table: Any = Recipe
        for part in where[:-1]:
            table = table.model_fields[part].annotation
        prefix = "".join(part + "." for part in where[:-1])
        options = [prefix + key for key in table.model_fields]
        return f"unknown key '{'.'.join(where)}'{_within_tables(where) or nearest(prefix + where[-1], options)}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], (dict, BaseModel)) else f" (given: {first['input']!r})"
    hint = ""
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        hint = nearest(
            first["input"], [option.strip(" '") for option in first["ctx"]["expected"].replace(" or ", ",").split(",")]
        )
    return f"{'.'.join(where) or 'recipe'}: {message}{given}{hint}"
