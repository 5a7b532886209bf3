"""Four steps of training on a rank: the bytes that it sends and the memory by which the process grows.

As a program, `python steps_on_ranks.py RECIPE FOLDER D`, it is one rank in a process of its own, whose memory nothing
else has grown.
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


def counting(collective, sent, share):
    """The same collective, which adds `share` of its tensor's bytes, what a rank of two sends, to sent[0]."""

    def inner(tensor, *args):
        sent[0] += share * tensor.nbytes
        return collective(tensor, *args)

    return inner


def trained(recipe, d, steps, ranks, sent):
    """The bytes sent in the primary and in the meta step, for each of so many steps."""
    trainer = trainer_of(recipe, recipe.arms[0], 0, torch.zeros(d), "cpu", ranks)
    sent_by_step = []
    for step in range(steps):
        x = torch.randn(recipe.train.batch, d, generator=torch.Generator().manual_seed(step))
        sent[0] = 0
        trainer.primary_step(x)
        primary, sent[0] = sent[0], 0
        if trainer.meta:
            trainer.meta_step()
        sent_by_step.append([primary, sent[0]])
    return sent_by_step


def four_steps(ranks, recipes, d):
    """What a rank says of four steps of each recipe. It runs in a process of its own, so what it replaces stays
    replaced.
    """
    keep_freed_memory()
    sent = [0]
    # an all-reduce on two ranks sends all of its bytes, an all-gather half of those of its result
    dist.all_reduce = counting(dist.all_reduce, sent, 1)
    ranks_module._all_gather = counting(ranks_module._all_gather, sent, 0.5)
    trained(Recipe.load({"sae": {"n": 64}, "meta": {"n": 8}, "train": {"batch": 64}}), 8, 2, ranks, sent)
    told = []
    for values in recipes:
        before = peak_resident()
        sent_by_step = trained(Recipe.load(values), d, 4, ranks, sent)
        told.append({"memory": peak_resident() - before, "sent": sent_by_step})
    return told


if __name__ == "__main__":
    with ranks_module.joined() as own_rank:
        report = four_steps(own_rank, [json.loads(sys.argv[1])], int(sys.argv[3]))
        Path(sys.argv[2], f"{own_rank.rank}.json").write_text(json.dumps(report[0]))
