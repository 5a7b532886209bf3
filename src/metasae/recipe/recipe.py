"""A recipe: every choice of a run as typed values, read from and written to TOML.

An unknown key or a wrong value is one `UserError` line that names the nearest right one.
The recipes that ship with the package are `recipe/shipped/*.toml`; comments give the source of each value.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from metasae.encodings import text_in
from metasae.errors import UserError, nearest
from metasae.files import toml
from metasae.recipe.registry import ARMS, RENAMED, Known
from metasae.recipe.tables import Dictionary, Harvest, Hook, Measure, Meta, Model, Sae, Spikes, Table, Text, Train

__all__ = [
    "Dictionary",
    "Harvest",
    "Hook",
    "Measure",
    "Meta",
    "Model",
    "Recipe",
    "Sae",
    "Spikes",
    "Table",
    "Text",
    "Train",
    "names",
    "parse_override",
    "text_of",
]

# Values of text.source without text and without a model: a planted world, and activations that a user gave
# (`metasae.train`).
PLANTED, GIVEN = "planted", "given"
ArmName = Annotated[str, AfterValidator(Known("arm", ARMS))]


def _seed_list(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class Recipe(Table):
    """Everything that decides the result of a run, apart from the machine."""

    description: str = Field("", description="one line that `metasae recipes` prints")
    model: Model = Model()
    hook: Hook = Hook()
    text: Text = Text()
    harvest: Harvest = Harvest()
    sae: Sae = Sae()
    meta: Meta = Meta()
    train: Train = Train()
    spikes: Spikes = Spikes()
    measure: Measure = Measure()
    planted: dict[str, Any] = Field(
        {},
        description='the planted world for text.source = "planted": fields of metasae.data.planted.planted.WorldSpec',
    )
    arms: tuple[ArmName, ...] = Field(
        ("solo", "control", "joint"), description="the arms (ways of training) to train and compare"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seed_list)] = Field(
        (0,), description="a count (3 means 0, 1 and 2) or a list"
    )

    @model_validator(mode="after")
    def _windows_alone(self):
        if self.harvest.window_tokens and (self.hook.also or not self.reads_text):
            raise ValueError(
                "harvest.window_tokens works with one hook point and with text only: set it to 0, or leave hook.also "
                "empty"
            )
        if self.harvest.window_tokens and self.harvest.tokens:
            raise ValueError(
                "harvest.window_tokens deletes activations after training on them, so the tokens of harvest.tokens "
                "cannot be read again: set one of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _one_truth(self):
        if self.spikes.n and self.text.source == "planted":
            raise ValueError("a planted world has known features of its own: set spikes.n to 0")
        return self

    @model_validator(mode="after")
    def _arms_and_seeds(self):
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name at least one, and none twice: {list(values)}")
        return self

    def has_meta(self, arm: str) -> bool:
        """Whether an arm trains a meta SAE. An arm with the penalty does so only where train.lambda2 is above 0, as
        nothing else uses its meta SAE.
        """
        rules = ARMS[arm]
        return rules.meta and (not rules.penalty or self.train.lambda2 > 0)

    def charged(self, arm: str) -> dict[str, float]:
        """The further penalties that an arm is charged: {name: coefficient}."""
        return {name: coef for name, coef in self.train.penalties.items() if coef > 0} if ARMS[arm].penalty else {}

    @property
    def notes(self) -> list[str]:
        """A line for each name in an older recipe whose meaning has changed since.

        A recipe does not say when it was written, so the coefficient decides whether it is an older one.
        """
        charged = {name: coef for arm in self.arms for name, coef in self.charged(arm).items()}
        return [said for name, (most, said) in RENAMED.items() if 0 < charged.get(name, 0.0) <= most]

    @property
    def reads_text(self) -> bool:
        """Whether the activations come from a model that reads text."""
        return self.text.source not in (PLANTED, GIVEN)

    @property
    def split_tokens(self) -> dict[str, int]:
        """{split: tokens whose activations are needed}. A training of more tokens than `train` reads those again."""
        train = min(self.harvest.tokens or self.train.tokens, self.train.tokens)
        return {"train": train, "calibration": self.measure.calibration_tokens, "evaluation": self.measure.tokens}

    @classmethod
    def load(cls, source: str | Path | dict, overrides: dict[str, Any] | None = None) -> "Recipe":
        """Reads a recipe: a shipped name, a TOML file or a dictionary, with dotted overrides on top.

        Raises UserError for an unknown name or file, bad TOML, an unknown key or a wrong value.
        """
        return cls._validated(source, overrides or {}, {})

    @classmethod
    def stored(cls, source: str | Path | dict, overrides: dict[str, Any] | None = None) -> "Recipe":
        """As `load`, for a recipe that a run wrote into its folder or into an SAE's metadata.

        It may name a penalty or an architecture that a user defined in the Python process of that run. Such a recipe
        can be read, but training by it raises UserError.
        """
        return cls._validated(source, overrides or {}, {"stored": True})

    @classmethod
    def _validated(cls, source: str | Path | dict, overrides: dict[str, Any], context: dict[str, bool]) -> "Recipe":
        values = source if isinstance(source, dict) else _read(source)
        for key, value in overrides.items():
            values = _with(values, key.split("."), value)
        try:
            return cls.model_validate(values, context=context)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    def dump(self) -> str:
        """The recipe as TOML, with every value."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def save(self, path: str | Path) -> None:
        """Writes the recipe to a temporary file beside `path`, then renames that to `path`."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.dump())
        os.replace(part, path)


def names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(
        entry.name[:-5] for entry in resources.files("metasae.recipe.shipped").iterdir() if entry.name.endswith(".toml")
    )


def text_of(name: str) -> str:
    """The TOML text of a shipped recipe, with its comments. Raises UserError for an unknown name."""
    if name not in names():
        raise UserError(f"no recipe '{name}'{nearest(name, names())}")
    return (resources.files("metasae.recipe.shipped") / f"{name}.toml").read_text()


def parse_override(text: str) -> tuple[str, Any]:
    """`train.lambda2=0.1` -> ("train.lambda2", 0.1). The value is read as TOML, or as a plain string if it is not TOML.
    Raises UserError for text without a key and `=`.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set takes KEY=VALUE, not '{text}'")
    try:
        parsed = toml.loads(f"v = {value.strip()}")["v"]
    except toml.TOMLDecodeError:
        parsed = value.strip()
    return key.strip(), parsed


# No recipe is nearly this long. A longer file may hold weights, so it is not read.
_LONGEST = 1 << 20


def _read(source: str | Path) -> dict:
    try:
        text = _text_at(source)
    except (OSError, ValueError):
        raise UserError(f"{source} is not a recipe; give a TOML file or the name of a shipped recipe") from None
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML: {error}") from None


def _text_at(source: str | Path) -> str:
    """The TOML text of a file or of a shipped recipe. Raises ValueError for a file that cannot be a recipe, OSError if
    it cannot be read, UserError if there is none.
    """
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise UserError(f"no recipe file '{path}'")
        if path.stat().st_size > _LONGEST:
            raise ValueError("too long")
        try:
            return text_in(path)
        except UserError:
            if path.suffix == ".toml":
                raise
            raise ValueError("no text") from None
    if str(source) not in names() and (path / "recipe.toml").is_file():
        raise UserError(f"{path} is a run folder; did you mean {path / 'recipe.toml'} --out {path}?")
    return text_of(str(source))


def _with(values: dict, keys: list[str], value: Any) -> dict:
    head, *rest = keys
    if rest and not isinstance(values.get(head, {}), dict):
        raise UserError(f"'{head}' is a value, not a table, so there is no key '{'.'.join(keys)}'")
    return {**values, head: _with(values.get(head, {}), rest, value) if rest else value}


def _within_tables(where: list[str]) -> str:
    """A hint for a key that was given without its table: `; did you mean 'sae.n' or 'meta.n'?`. Empty if no table has
    such a key.
    """
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
