"""What fakes do to the scores of spike-ins and concepts, on real activations, as Markdown (docs/measures.md shows it).

    python -m benchmarks.fakes [--tokens 720000] [--draws 3] [--out runs/fakes]

Trains a solo SAE on the demo's activations with spike-ins, takes its firings on held-out tokens, applies each fake of
`tools/fakes.py` to them, and scores spike-ins and concepts before and after. A number is fooled, and marked with !,
where a fake makes it better by more than its spread over draws of the fake. A second call with the same --out takes the
SAE that is there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metasae
from metasae.arms.source import Source
from metasae.data.cache.stream import Stream
from metasae.data.concepts.labels import LabelledText, concept_bank
from metasae.data.split import Rows, Split
from metasae.data.text.token_text import text_of_token
from metasae.interop.saelens_trainer import train_on
from metasae.measures.firing.firings import fire
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE
from tools.fakes import FAKES, MORE_FAKES
from tools.fakes_table import BETTER, TruthNumbers, fakes_table, read_fakes
from tools.subjects import Subject

# Rows of training activations that spike-ins, the input scale and the first b_dec come from.
SAMPLE = 16_384


class Spiked:
    """A split with spike-ins added, itself a split."""

    def __init__(self, split: Split, spikes: metasae.Spikes):
        self.split, self.spikes, self.n_tokens = split, spikes, split.n_tokens
        self.tokens, self.documents, self.positions = split.tokens, split.documents, split.positions

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        places = torch.as_tensor(indices, dtype=torch.int64)
        columns = (np.asarray(column)[places.numpy()] for column in (self.tokens, self.documents, self.positions))
        return self.spikes.add(self.split.rows(places).float(), *columns)

    def blocks(self, size: int) -> Iterator[Tensor]:
        for first in range(0, self.n_tokens, size):
            yield self.rows(torch.arange(first, min(first + size, self.n_tokens)))

    def whole(self, limit: int | None = None) -> Rows:
        """The first `limit` tokens, or all, in memory."""
        return Rows(self.rows(torch.arange(min(limit or self.n_tokens, self.n_tokens))))


def trained(recipe: Recipe, cache, spikes: metasae.Spikes, seed: int, folder: Path) -> SAE:
    """A solo SAE of the recipe on the cache's activations with spike-ins."""
    train, calibration = (Spiked(cache.split(name), spikes) for name in ("train", "calibration"))
    stream = Stream(train, recipe.train.batch, seed)
    batches = iter(stream.next, None)
    saes = train_on(batches, recipe, "solo", seed, folder, sample=train.whole(SAMPLE), calibration=calibration.whole())
    return saes["primary"]


def truth_of(split: Split, spikes: metasae.Spikes, tokenizer) -> TruthNumbers:
    """What is known of the tokens of a split: their spike-ins, and concepts that the text itself tells."""
    places = split.tokens, split.documents, split.positions
    ids = np.unique(split.tokens)
    string_of = text_of_token(tokenizer)
    strings = {number: string_of(number) for number in ids.tolist()}
    bank = concept_bank(LabelledText(*places, strings.__getitem__))
    return TruthNumbers(spikes.set.spikes, spikes.set.strengths(*places), spikes.set.directions, bank)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=720_000, help="training tokens, at 512 a step")
    options.add_argument("--draws", type=int, default=3, help="draws of each fake")
    options.add_argument("--spikes", type=int, default=148, help="spike-ins, at least")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("runs/fakes"))
    given = options.parse_args()
    recipe = Recipe.load("demo", {"train.tokens": given.tokens})
    source = Source(recipe, given.out, "cpu", Progress(True))
    cache = source.open(recipe.split_tokens)
    train, held_out = cache.split("train"), cache.split("evaluation")
    sample = train.rows(torch.arange(min(SAMPLE, train.n_tokens))).float()
    spikes = metasae.Spikes(sample, train.tokens, n=given.spikes, seed=given.seed)
    sae = trained(recipe, cache, spikes, given.seed, given.out)
    spiked = Spiked(held_out, spikes)
    subject = Subject(sae, fire(sae, spiked), spiked)
    numbers_of = truth_of(held_out, spikes, source.host.tokenizer)
    before = numbers_of(subject)
    after = read_fakes(subject, numbers_of, given.draws)
    print(
        f"A solo SAE, n = {recipe.sae.n}, k = {recipe.sae.k}, {given.tokens:,} training tokens, seed {given.seed}; "
        f"{held_out.n_tokens:,} held-out tokens, L0 {subject.firings.l0:.1f}, {len(subject.live)} live latents; "
        f"{len(spikes)} spike-ins, {len(numbers_of.bank.concepts)} concepts; {given.draws} draws of each fake.\n"
    )
    words = {name: fake.words for name, fake in (FAKES | MORE_FAKES).items()}
    print(fakes_table(before, after, BETTER, words))


if __name__ == "__main__":
    main()
