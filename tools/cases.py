"""Pairs of dictionaries with a known answer: which of the two is more atomic. A measure that anybody should trust gets
them right.

Most cases make a dictionary look better to some measure without making any latent more atomic (`tools/fakes.py` has
what does so to any dictionary); three make it more atomic. Everything is small enough that a case takes a second or
two: at most 256 latents and 25,000 tokens.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch

from metasae.data.cache.stream import Stream
from metasae.data.planted.planted import World, WorldSpec, plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.firing.firings import fire
from metasae.sae.architectures import Options
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.gradients import Arithmetic, Auxiliary, forward, sae_gradients
from metasae.sae.kernels import fast
from metasae.sae.optimiser import UnitRowAdam
from metasae.sae.sae import SAE, SAEConfig
from metasae.sae.weights import Weights
from tools.fakes import FAKES
from tools.subjects import (
    Subject,
    dictionary,
    in_fewer_documents,
    noisy,
    read_by_encoder,
    sparser_at_equal_fvu,
    thinned,
    twinned,
)

TOKENS = 24_576
# Some of everything: features on their own, in correlated pairs, under parents, as senses of words, as atoms of
# composites.
MIXED = WorldSpec(
    d=48,
    independent=40,
    groups=8,
    parents=6,
    words=12,
    sense_shares=(0.6, 0.4),
    atoms=16,
    composites=12,
    top_rate=0.12,
    max_cosine=0.5,
    floor=0.1,
    spread=0.6,
    noise=0.05,
    topics=4,
    boost=2.5,
)
# Co-occurrence by topics alone, whose lift does not depend on the rates.
TOPICAL = replace(MIXED, groups=0, parents=0, independent=96, atoms=0, composites=0, boost=3.0)
MEAN_RATE, NARROW, WIDE = 0.025, 1.0, 1.3
# For training: few enough features for 32 dimensions and a second.
SMALL = replace(
    MIXED, d=32, top_rate=0.15, boost=2.0, independent=32, groups=4, parents=0, words=8, atoms=0, composites=0
)
SMALL_LATENTS, SMALL_K, BATCH, LR, FEW_STEPS, STEPS = 64, 2, 512, 1e-2, 30, 600
HIGHER = 36 / 32


@dataclass(frozen=True)
class Case:
    """says: what `after` is in truth, compared with `before`. fixed: what is the same on both sides."""

    name: str
    says: Literal["not more atomic", "more atomic"]
    before: Subject
    after: Subject
    fixed: str


def thinned_firing(seed: int) -> Case:
    before = _reference(seed)
    return _not(
        "thinned_firing", before, thinned(before, 0.1, seed), "decoder; firing is lost at random, in 10% of the cases"
    )


def widened_rates(seed: int) -> Case:
    """The rates of single features get a wider log-normal spread; their sum, all topics and all lifts stay."""
    before, after = (_with_rates(seed, spread) for spread in (NARROW, WIDE))
    return _not("widened_rates", before, after, "decoder, lift of every pair, sum of rates")


def noisy_rows(seed: int) -> Case:
    before = _reference(seed)
    return _not("noisy_rows", before, noisy(before, 0.3, seed), "firings, encoder")


def lower_k(seed: int) -> Case:
    """Before: strengths as a linear encoder reads them. After: fewer and refitted, as a better encoder would have
    them."""
    before = read_by_encoder(_reference(seed))
    return _not("lower_k", before, sparser_at_equal_fvu(before), "decoder, FVU")


def duplicated(seed: int) -> Case:
    before = _reference(seed)
    after = twinned(before, np.arange(len(before.rows)))
    return _not("duplicated", before, after, "reconstruction; every latent is there twice, both fire, half as strong")


def duplicated_in_turns(seed: int) -> Case:
    before = _reference(seed)
    after = twinned(before, np.arange(len(before.rows)), seed)
    return _not(
        "duplicated_in_turns",
        before,
        after,
        "reconstruction, L0; every latent is there twice, at random one of the two fires",
    )


def undertrained(seed: int) -> Case:
    after, before = trained_subjects(seed, (FEW_STEPS, STEPS))
    return _not("undertrained", before, after, "initial weights, batches, L0")


def narrower(seed: int) -> Case:
    before = _reference(seed)
    after = in_fewer_documents(before, 0.5, seed)
    return _not(
        "narrower",
        before,
        after,
        "decoder, mix of senses; every latent fires in half of the documents, drawn at random",
    )


def higher_k(seed: int) -> Case:
    before = trained_subjects(seed, (FEW_STEPS, STEPS))[1]
    after = recalibrated(before, seed, k=HIGHER * SMALL_K)
    return _not(
        "higher_k", before, after, "decoder, encoder; the threshold falls until L0 is 36 / 32 of k, as 36 for 32"
    )


def eer_rule(seed: int) -> Case:
    before = trained_subjects(seed, (FEW_STEPS, STEPS))[1]
    return _not("eer_rule", before, recalibrated(before, seed, rule="eer"), "decoder, encoder; thresholds by `eer`")


def faked(name: str, seed: int) -> Case:
    before = _reference(seed)
    return _not(name, before, FAKES[name].make(before, seed), f"all but this: {FAKES[name].words}")


def split_senses(seed: int) -> Case:
    split = _evaluation(seed)
    return _more(
        "split_senses",
        dictionary(split, blended=_words(split)),
        dictionary(split),
        "all other latents, tokens that fire",
    )


def split_senses_at_width(seed: int) -> Case:
    """Before: each word has two latents too, but the firings go to them at random, not by sense."""
    split = _evaluation(seed)
    blended = dictionary(split, blended=_words(split))
    n, words = len(blended.rows), len(_words(split))
    before = twinned(blended, np.arange(n - words, n), seed)
    return _more(
        "split_senses_at_width",
        before,
        dictionary(split),
        "all other latents, number of latents, tokens that fire, nearly L0",
    )


def composites_to_atoms(seed: int) -> Case:
    """After, a composite fires its 2 to 4 atoms in place of one latent, so L0 rises and atoms co-fire as the world has
    them."""
    split = _evaluation(seed)
    return _more(
        "composites_to_atoms",
        dictionary(split, composed=True),
        dictionary(split),
        "all other latents, nearly the reconstruction",
    )


CASES: dict[str, Callable[[int], Case]] = {
    case.__name__: case
    for case in (
        thinned_firing,
        widened_rates,
        noisy_rows,
        lower_k,
        duplicated,
        duplicated_in_turns,
        undertrained,
        narrower,
        higher_k,
        eer_rule,
    )
}
CASES |= {name: partial(faked, name) for name in FAKES}
CASES |= {case.__name__: case for case in (split_senses, split_senses_at_width, composites_to_atoms)}


@lru_cache(maxsize=32)
def trained_subjects(seed: int, steps: tuple[int, ...]) -> tuple[Subject, ...]:
    """One solo BatchTopK SAE, trained on a small world, as it is after each of these numbers of steps (rising).

    Steps are those of the `solo` arm: closed-form gradients, AuxK, Adam with unit rows, at a constant learning rate.
    Each SAE gets the threshold at which its L0 on the training tokens is k.
    """
    world = plant(SMALL, seed)
    train, evaluation = _training(world, seed), PlantedSplit(world, TOKENS, 2 * seed + 1, "evaluation")
    subjects, stream = [], Stream(train, BATCH, seed)
    start = SAE(SAEConfig(SMALL.d, SMALL_LATENTS, k=SMALL_K))
    start.init_weights(torch.Generator().manual_seed(2 * seed))
    weights = Weights(start.W_enc.t().clone(), start.W_dec.clone(), train.x.mean(0))
    adam = UnitRowAdam(weights, betas=(0.9, 0.999), eps=1e-8, clip=1.0, renormalise="after")
    how, architecture, cut = Arithmetic(fast, torch.float32), BatchTopK(Options(SMALL_K)), 0.0
    silent = torch.zeros(SMALL_LATENTS, dtype=torch.int64)
    for step in range(1, steps[-1] + 1):
        codes = forward(stream.next(), weights, architecture, SMALL_K, cut, how)
        cut = codes.cut
        silent.add_(BATCH).masked_fill_(codes.kept.counts() > 0, 0)
        dead = Auxiliary(silent >= 20 * BATCH, SMALL.d // 2, 1 / 32, detach=True)
        adam.step(sae_gradients(codes, weights, architecture, dead, how).weights, LR)
        if step in steps:
            subjects.append(_at_rate(weights, train, evaluation))
    return tuple(subjects)


def recalibrated(subject: Subject, seed: int, k: float = SMALL_K, rule: str = "rate") -> Subject:
    """A subject of `trained_subjects` with the thresholds of another k or rule."""
    sae = copy.deepcopy(subject.sae)
    sae.config.k, sae.threshold = k, None
    calibrate(sae, _training(subject.split.world, seed), rule=rule)
    return replace(subject, sae=sae, firings=fire(sae, subject.split))


def _training(world: World, seed: int) -> PlantedSplit:
    return PlantedSplit(world, TOKENS, 2 * seed, "train")


def _at_rate(weights: Weights, train: PlantedSplit, evaluation: PlantedSplit) -> Subject:
    sae = SAE(SAEConfig(SMALL.d, SMALL_LATENTS, k=SMALL_K))
    sae.W_enc.copy_(weights.W_enc_ND.t())
    sae.W_dec.copy_(weights.W_dec_ND)
    sae.b_dec.copy_(weights.b_dec_D)
    calibrate(sae, train)
    return Subject(sae, fire(sae, evaluation), evaluation)


def _evaluation(seed: int) -> PlantedSplit:
    return PlantedSplit(plant(MIXED, seed), TOKENS, seed, "evaluation")


def _words(split: PlantedSplit) -> tuple[int, ...]:
    return tuple(range(split.world.spec.words))


@lru_cache(maxsize=32)
def _reference(seed: int) -> Subject:
    """A dictionary with work left to do: half of the words blended, composites with latents of their own."""
    split = _evaluation(seed)
    return dictionary(split, blended=_words(split)[::2], composed=True)


def _with_rates(seed: int, spread: float) -> Subject:
    """Rates of single features at the quantiles of a log-normal distribution, in an order drawn from the seed; their
    mean is MEAN_RATE."""
    from scipy.special import ndtri

    world = plant(TOPICAL, seed)
    single = np.flatnonzero(world.word < 0)
    quantiles = ndtri((np.random.default_rng(seed).permutation(len(single)) + 0.5) / len(single))
    rates = world.rates.copy()
    rates[single] = np.exp(spread * quantiles)
    rates[single] *= MEAN_RATE / rates[single].mean()
    split = PlantedSplit(replace(world, rates=rates), TOKENS, seed, "evaluation")
    return dictionary(split, blended=_words(split)[::2])


def _not(name: str, before: Subject, after: Subject, fixed: str) -> Case:
    return Case(name, "not more atomic", before, after, fixed)


def _more(name: str, before: Subject, after: Subject, fixed: str) -> Case:
    return Case(name, "more atomic", before, after, fixed)
