"""The table of fakes: it marks a measure that a fake turns, and no other."""

import numpy as np
import pytest
import torch
from fakes import FakeSplit
from scipy.sparse import csr_array
from small_subjects import dense, drawn_subject, subject_of

import metasae
from benchmarks.fakes import Spiked
from metasae.data.concepts.labels import Bank, Concept
from metasae.data.spikes.draw import Spike
from tools.fakes import FAKES, MORE_FAKES
from tools.fakes_table import BETTER, TruthNumbers, fakes_table, is_fooled, read_fakes


def row_of(table, name):
    return next(line for line in table.splitlines() if line.startswith(f"| {name} |"))


def test_a_bad_measure_is_marked_where_a_fake_turns_it():
    """More firings count as better: false firings turn it, lost ones do not. A measure that is constant is never."""
    subject = drawn_subject()
    fakes = {name: (FAKES | MORE_FAKES)[name] for name in ("false_firings", "thinned", "rotated_rows")}

    def numbers_of(fake):
        return {"busy": fake.firings.l0, "quiet": fake.firings.l0, "constant": 1.0, "nothing": None}

    better = {"busy": "higher", "quiet": "lower", "constant": "higher", "nothing": "lower"}
    after = read_fakes(subject, numbers_of, 3, fakes)
    assert {len(draws) for draws in after.values()} == {3}
    table = fakes_table(numbers_of(subject), after, better, {"thinned": "some lost"})
    busy, quiet, constant, nothing = (cell.strip() for cell in row_of(table, "false firings").split("|")[2:-1])
    assert busy.endswith("!") and quiet == busy.removesuffix(" !") and constant == "1.000" and nothing == "-"
    lost = row_of(table, "some lost").split("|")[2:-1]
    assert not lost[0].strip().endswith("!") and lost[1].strip().endswith("!")
    assert "!" not in row_of(table, "rotated rows") and "!" not in row_of(table, "*as trained*")
    assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("before", "after", "better", "fooled"),
    [
        (0.5, [0.6, 0.61, 0.62], "higher", True),
        (0.5, [0.6, 0.61, 0.62], "lower", False),
        (0.5, [0.4, 0.4, 0.4], "lower", True),
        (0.5, [0.4, 0.9, 0.3], "higher", False),
        (0.5, [0.5, 0.5, 0.5], "higher", False),
        (0.5, [0.5004], "higher", False),
        (0.5, [0.501], "higher", True),
        (None, [0.6], "higher", False),
        (0.5, [0.6, None], "higher", False),
    ],
)
def test_better_by_more_than_the_spread(before, after, better, fooled):
    assert is_fooled(before, after, better) is fooled


def test_numbers_of_an_oracle_and_of_its_fakes():
    """A latent for each spike-in and concept has nothing to gain, and merging costs it."""
    rng = np.random.default_rng(0)
    on = rng.random((3000, 12)) < 0.02
    subject = subject_of(on, np.linalg.qr(rng.standard_normal((12, 12)))[0], document_length=20)
    spikes = [Spike("concept", group, (), (), 1.0, 1.0) for group in range(12)]
    table = csr_array(dense(subject))
    bank = Bank([Concept(str(place), "token") for place in range(12)], table)
    numbers_of = TruthNumbers(spikes, table, subject.rows, bank)
    before = numbers_of(subject)
    assert list(before) == list(BETTER) and before["told apart"] is None and before["absorption"] is None
    assert before["recovery F1"] == before["best F1"] == 1 and before["cosine"] == pytest.approx(1)
    assert before["blend rate"] == before["blended"] == before["1000 x phi error"] == 0
    after = read_fakes(subject, numbers_of, 1, {name: FAKES[name] for name in ("merged_at_random", "rotated_rows")})
    assert after["merged_at_random"][0]["recovery F1"] < 0.8 and after["merged_at_random"][0]["blend rate"] > 0.9
    assert after["rotated_rows"][0]["recovery F1"] == 1 and after["rotated_rows"][0]["cosine"] < 0.8
    assert "!" not in fakes_table(before, after, BETTER)


def test_a_split_with_spike_ins():
    """Rows in any order and blocks are the activations with what is added to each token."""
    rng = np.random.default_rng(0)
    split = FakeSplit(rng.standard_normal((600, 8)), tokens=rng.integers(40, size=600))
    spikes = metasae.Spikes(split.x, split.tokens, n=6, rates=(0.02, 0.1))
    spiked, wanted = Spiked(split, spikes), spikes.add(split.x, split.tokens, split.documents, split.positions)
    assert not torch.equal(wanted, split.x)
    order = rng.integers(600, size=50)
    torch.testing.assert_close(spiked.rows(order), wanted[order])
    torch.testing.assert_close(torch.cat(list(spiked.blocks(64))), wanted)
    torch.testing.assert_close(spiked.whole(100).x, wanted[:100])
    assert spiked.whole().n_tokens == 600
