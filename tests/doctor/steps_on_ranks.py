"""Four steps of training on a rank: the messages that they take and the memory by which the process grows.

As a program, `python steps_on_ranks.py RECIPE FOLDER D`, it is one rank in a process of its own, whose memory nothing else has grown.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from metasae.device import keep_freed_memory
from metasae.doctor.machine import peak_resident
from metasae.ranks import ranks as ranks_module
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.trainer import trainer_of


def watched(call, counted):
    """The same call, which counts in counted[0] how often it is made."""

    def inner(*args, **kwargs):
        counted[0] += 1
        return call(*args, **kwargs)

    return inner


def trained(recipe, d, steps, ranks, counted):
    """The messages of the primary and of the meta step, for each of so many steps."""
    trainer = trainer_of(recipe, recipe.arms[0], 0, torch.zeros(d), "cpu", ranks)
    messages = []
    for step in range(steps):
        x = torch.randn(recipe.train.batch, d, generator=torch.Generator().manual_seed(step))
        counted[0] = 0
        trainer.primary_step(x)
        primary, counted[0] = counted[0], 0
        if trainer.meta:
            trainer.meta_step()
        messages.append([primary, counted[0]])
    return messages


def four_steps(ranks, recipes, d):
    """What a rank says of four steps of each recipe. It runs in a process of its own, so what it replaces stays replaced."""
    keep_freed_memory()
    counted = [0]
    dist.all_reduce, ranks_module._all_gather = (
        watched(dist.all_reduce, counted),
        watched(ranks_module._all_gather, counted),
    )
    trained(Recipe.load({"sae": {"n": 64}, "meta": {"n": 8}, "train": {"batch": 64}}), 8, 2, ranks, counted)
    told = []
    for values in recipes:
        before = peak_resident()
        messages = trained(Recipe.load(values), d, 4, ranks, counted)
        told.append({"memory": peak_resident() - before, "messages": messages})
    return told


if __name__ == "__main__":
    with ranks_module.joined() as own_rank:
        report = four_steps(own_rank, [json.loads(sys.argv[1])], int(sys.argv[3]))
        Path(sys.argv[2], f"{own_rank.rank}.json").write_text(json.dumps(report[0]))
