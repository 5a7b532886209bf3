"""A planted world in place of an activation cache (`text.source = "planted"`): a run is compared with the truth."""

from dataclasses import fields

from metasae.data.cache.activations import fingerprint_of
from metasae.data.planted.planted import Plan, plant
from metasae.data.planted.planted_split import PlantedSplit
from metasae.data.text.text import SPLITS
from metasae.errors import UserError, nearest


class PlantedCache:
    """The interface of `ActivationCache`; splits are drawn when first asked for.

    world, and each split's `activations`: the truth.
    """

    def __init__(self, values: dict, tokens: dict[str, int]):
        """values: the recipe's table `planted`: `seed` and the fields of `Plan`.

        Raises UserError for an unknown or impossible one.
        """
        values = dict(values)
        self.seed, self.tokens = values.pop("seed", 0), tokens
        known = [field.name for field in fields(Plan)]
        wrong = next((key for key in values if key not in known), None)
        if wrong is not None:
            raise UserError(f"unknown key 'planted.{wrong}'{nearest(wrong, known)}")
        try:
            fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            self.world = plant(Plan(**{"d": 64} | fixed), self.seed)
        except (TypeError, ValueError) as error:
            raise UserError(f"planted: {error}") from None
        self.d = self.world.plan.d
        # without the number of tokens, as a longer sample begins with the shorter one
        self.fingerprint = fingerprint_of({"planted": values, "seed": self.seed})
        self._splits: dict[str, PlantedSplit] = {}

    def split(self, name: str) -> PlantedSplit:
        if name not in self._splits:
            # each split is drawn from a generator of its own
            self._splits[name] = PlantedSplit(
                self.world, self.tokens[name], 3 * self.seed + SPLITS.index(name) + 1, name
            )
        return self._splits[name]
