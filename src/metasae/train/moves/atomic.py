"""The three parts of the arm `atomic` in one object, which the trainer asks before and after every primary step.

    before a step   prefixes(done)   which prefixes of the latents rebuild the input alone           nest.py
                    offset(...)      by how much each latent's threshold lies above the common one   margin.py
    in a step       look(...)        the firings and the residual of its batch
    after a step    move(done)       latents are split, where a window of steps ends                 births.py

`done`: primary steps done so far. `Moves` itself is the plain SAE of all other arms, and does nothing.
"""

from types import ModuleType

from torch import Tensor

from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.sae.gradients import Prefixes, Reconstruction
from metasae.sae.spread import Whole
from metasae.train.learner import Learner
from metasae.train.moves import margin, nest
from metasae.train.moves.births import Births


class Moves:
    """Nothing beside the gradient step."""

    # the arm's births; None where none are made
    births: Births | None = None

    def prefixes(self, done: int) -> Prefixes | None:
        """The prefixes that the next step's error is taken over; None for those of the architecture."""
        return None

    def offset(self, done: int, learner: Learner) -> Tensor | None:
        """How far each latent's pre-activation must lie above the common threshold in the next step: [n], >= 0, in the
        units of the pre-activations; None for no margin. learner: whose latents they are, all of them or a process's.
        """
        return None

    def look(self, done: int, passed: Reconstruction, kernels: ModuleType) -> None:
        """Takes in the forward pass of a step, after its firings were counted."""

    def move(self, done: int) -> int | None:
        """Changes latents where that is due after a step; returns how many births it made, None where none were due."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep beside the learner: a row per latent."""
        return self.births.tensors() if self.births else {}

    def facts(self) -> dict | None:
        """The rest of the state, JSON-able."""
        return self.births and self.births.facts()

    def load(self, tensors: dict[str, Tensor], facts: dict | None) -> None:
        """Puts back what `tensors` and `facts` gave."""
        if self.births:
            for name, tensor in self.births.tensors().items():
                tensor.copy_(tensors[name])
            vars(self.births).update(facts)


class Atomic(Moves):
    """Nesting, margin and births (`train.nest`, `train.margin`, `train.births`) on the latents of `learner`.

    total: primary steps of the training. spread: how the latents lie over processes.
    """

    def __init__(self, recipe: Recipe, learner: Learner, total: int, seed: int, spread: Whole):
        self.spec, self.learner, self.total, self.spread = recipe.train, learner, total, spread
        births = recipe.train.births
        self.births = Births(births, learner, total, seed, spread) if births.share else None

    def prefixes(self, done):
        return nest.prefixes(self.spec.nest, done, self.total, len(self.learner.weights.W_dec_ND), self.spread)

    def offset(self, done, learner):
        share = margin.share(self.spec.margin, done, self.total)
        return share * learner.mean_activation() if share else None

    def look(self, done, passed, kernels):
        if self.births and self.births.is_looking(done):
            self.births.look(passed, kernels)
        self.learner.sum_activations(passed.kept)

    def move(self, done):
        return self.births.make(done) if self.births and self.births.ends_window(done) else None


def moves_of(recipe: Recipe, arm: str, learner: Learner, total: int, seed: int, spread: Whole) -> Moves:
    """What an arm does beside the gradient step. Arguments as of `Atomic`."""
    return Atomic(recipe, learner, total, seed, spread) if ARMS[arm].atomic else Moves()
