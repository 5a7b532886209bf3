"""A small source of batches with a cursor, and small recipes."""

import torch

from metasae.recipe import Recipe


class Batches:
    """Sparse non-negative combinations of fixed directions, a fresh batch per position."""

    def __init__(self, batch=64, d=16, seed=0):
        self.batch, self.d, self.seed, self.position = batch, d, seed, 0
        self.directions = torch.randn(24, d, generator=torch.Generator().manual_seed(99))

    def next(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.position)
        self.position += 1
        codes = torch.rand(self.batch, 24, generator=generator)
        return (codes * (codes > 0.85)) @ self.directions + 0.3

    def seek(self, position):
        self.position = position


def small_recipe(**train) -> Recipe:
    values = {"tokens": 64 * 40, "batch": 64, "n_primary_steps": 4, "n_meta_steps": 3, "dead_after": 500, "k_aux": 4, "checkpoint_every": 7}
    return Recipe.load({"sae": {"n": 48, "k": 3}, "meta": {"n": 8, "k": 2}, "train": {**values, **train}})
