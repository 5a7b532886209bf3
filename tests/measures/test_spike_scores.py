"""Scores of spike-ins, by hand on small tables, and with oracles that are damaged on purpose."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

import metasae
from metasae.data.spikes.draw import Spike
from metasae.errors import UserError
from metasae.measures.truth.probe import halves_of, probe_f1
from metasae.measures.truth.spike_scores import score_spikes
from metasae.measures.truth.spikes import Spikes
from metasae.sae.sae import SAE, SAEConfig

T, D = 60_000, 32


def spike(kind, group):
    return Spike(kind, group, (0,), (0,), 1.0, 1.0)


def scored(kinds, on, fires, documents=None, **rows):
    """on: a row of 0 and 1 for each spike-in; fires: likewise for each latent. Each token twice: in either half."""
    on, fires = (np.repeat(np.array(part, float).T, 2, axis=0) for part in (on, fires))
    documents = np.arange(len(on)) if documents is None else documents
    spikes = [spike(*kind) for kind in kinds]
    return score_spikes(spikes, csr_array(on), csr_array(fires), documents, **rows)


def test_f1_and_kinds_by_hand():
    # latent 0: 2 of 3 tokens of spike-in 0 and one more; latent 1 is spike-in 1
    scores = scored([("concept", 0), ("atom", 1)], [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
                    [[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]])  # fmt: skip
    assert scores["by_kind"]["concept"] == pytest.approx(2 * 2 / (3 + 3)) and scores["by_kind"]["atom"] == 1
    assert scores["recovery_f1"] == pytest.approx((2 / 3 + 1) / 2) and scores["n"] == 2
    assert scores["by_kind"]["sense"] is None and scores["told_apart"] is None and scores["absorption"] is None


def test_a_spike_in_that_one_half_lacks_is_left_out():
    on, fires = csr_array(np.array([[1.0], [0], [0], [0]])), csr_array(np.array([[1.0], [0], [0], [0]]))
    scores = score_spikes([spike("concept", 0)], on, fires, np.arange(4))
    assert scores["n"] == 0 and scores["recovery_f1"] is None and scores["phi_error"] is None


def test_told_apart_by_hand():
    senses, on = [("sense", 0), ("sense", 0)], [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert scored(senses, on, [[1, 1, 0, 0], [0, 0, 1, 1]])["told_apart"] == 1
    assert scored(senses, on, [[1, 1, 1, 1]])["told_apart"] == 0
    # the second latent has half of its recall on the other sense
    assert scored(senses, on, [[1, 1, 0, 0], [1, 0, 1, 0]])["told_apart"] == 0
    assert scored(senses, on, [[1, 0, 0, 0], [0, 0, 0, 0]])["told_apart"] == 0


def test_blend_rate_by_hand():
    free = [0] * 20
    on = [[1, 1, 1, 1, 0, 0, 0, 0, *free], [0, 0, 0, 0, 1, 1, 1, 1, *free]]
    clean, second = on
    apart, family = [("concept", 0), ("concept", 1)], [("parent", 0), ("child", 0)]
    assert scored(apart, on, [clean, second])["blend_rate"] == 0
    # recall 1 and 1/2, by chance 2/24 and 4/24: the second has .333 of 1.25
    leaking = [1, 1, 1, 1, 1, 1, 0, 0, *free]
    assert scored(apart, on, [leaking, second])["blend_rate"] == 0.5
    assert scored(family, on, [leaking, second])["blend_rate"] == 0
    assert scored([("sense", 0), ("sense", 0)], on, [leaking, second])["blend_rate"] == 0.5


def test_a_latent_that_fires_mostly_where_nothing_is_on_blends():
    on = [[1, 0, 0, 0, 0]]
    assert scored([("concept", 0)], on, [[1, 1, 0, 0, 0]])["blend_rate"] == 0
    assert scored([("concept", 0)], on, [[1, 1, 1, 0, 0]])["blend_rate"] == 1


def test_absorption_by_hand():
    parent, child = [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]
    fires = [[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    scores = scored([("parent", 0), ("child", 0)], [parent, child], fires)
    assert scores["absorption"] == pytest.approx(1 - 0.5)


def test_cosine_and_phi_error_by_hand():
    on = [[1, 1, 0, 0], [0, 1, 1, 0]]
    directions, rows = np.eye(2), np.array([[0.6, 0.8], [0.0, 1.0]])
    scores = scored([("concept", 0), ("concept", 1)], on, on, directions_MD=directions, rows_ND=rows)
    assert scores["cosine"] == pytest.approx(0.8) and scores["phi_error"] == 0
    fires = [[1, 1, 0, 0], [0, 0, 1, 0]]
    scores = scored([("concept", 0), ("concept", 1)], on, fires)
    # phi of the spike-ins is 0, of the latents -1/sqrt(3)
    assert scores["phi_error"] == pytest.approx(3**-0.5)


def test_halves_are_of_whole_documents():
    assert halves_of(np.array([7, 7, 9, 9, 9, 30])).tolist() == [False, False, True, True, True, False]


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 4001)
    tokens, place = rng.choice(4000, T, p=shares / shares.sum()), np.arange(T)
    return torch.randn(T, D, generator=torch.Generator().manual_seed(0)), tokens, place // 100, place % 100


@pytest.fixture(scope="module")
def spikes(text):
    return Spikes(text[0], text[1], n=40)


HELD_OUT, TRAIN = slice(T // 2, T), slice(0, T // 2)


def held_out(text):
    return [column[HELD_OUT] for column in text]


class Oracle:
    """Gives activations that were made beforehand, batch after batch."""

    def __init__(self, acts):
        self.acts, self.place = torch.as_tensor(acts), 0

    def __call__(self, x):
        block = self.acts[self.place : self.place + len(x)]
        self.place += len(x)
        return block


def planted(spikes, text):
    return spikes.set.strengths(*(column[HELD_OUT] for column in text[1:])).toarray()


def test_planted_firings_score_one(spikes, text):
    scores = spikes.score(Oracle(planted(spikes, text)), *held_out(text), rows=torch.tensor(spikes.set.directions))
    assert scores["recovery_f1"] == scores["told_apart"] == 1 and scores["blend_rate"] == scores["absorption"] == 0
    assert scores["cosine"] == pytest.approx(1) and scores["phi_error"] == pytest.approx(0, abs=1e-9)
    assert scores["n"] >= 35 and 0 < scores["added_energy"] < 0.1


def test_damaged_oracles_score_less(spikes, text):
    """Merged, swapped, thinned and noisy firings, each against what it must do."""
    true, rng = planted(spikes, text), np.random.default_rng(0)
    whole = spikes.score(Oracle(true), *held_out(text))
    merged = spikes.score(Oracle(np.maximum(true[:, ::2], true[:, 1::2])), *held_out(text))
    assert merged["recovery_f1"] < 0.85 and merged["blend_rate"] > 0.5
    thinned = spikes.score(Oracle(true * (rng.random(true.shape) < 0.5)), *held_out(text))
    # recall one half, precision 1
    assert thinned["recovery_f1"] == pytest.approx(2 / 3, abs=0.05) and thinned["blend_rate"] <= whole["blend_rate"]
    noisy = spikes.score(Oracle(true + (rng.random(true.shape) < 0.05)), *held_out(text))
    assert noisy["recovery_f1"] < 0.5 and noisy["blend_rate"] > 0.8
    swapped = true.copy()
    odd = halves_of(text[2][HELD_OUT]) == (text[2][HELD_OUT] % 4 > 1)
    swapped[odd] = np.roll(true[odd], 1, axis=1)
    identities = spikes.score(Oracle(swapped), *held_out(text))
    assert identities["recovery_f1"] < 0.75 and identities["blend_rate"] > 0.5


def test_directions_at_ten_times_the_spread_are_found(text):
    loud = Spikes(text[0], text[1], n=12, amplitudes=(2.0, 3.0))
    inverse = torch.linalg.pinv(torch.tensor(loud.set.directions))
    scores = loud.score(lambda x: x @ inverse - 6.0, *held_out(text))
    assert scores["recovery_f1"] > 0.95


def test_at_the_recipes_amplitudes_no_direction_passes_the_ceiling(spikes, text):
    """The spike-ins' own directions with the best threshold of each on a grid, against the linear probe."""
    train = [column[TRAIN] for column in text]
    rows = torch.tensor(spikes.set.directions)
    norm = float(text[0].norm(dim=1).median())
    scores = [
        spikes.score(lambda x, cut=cut: x @ rows.t() - cut * norm, *held_out(text), train=train)
        for cut in (0.15, 0.2, 0.3, 0.4)
    ]
    ceiling = scores[0]["ceiling_f1"]
    assert 0.05 < max(score["recovery_f1"] for score in scores) <= ceiling
    assert scores[0]["by_kind"]["sense"]["ceiling_f1"] > 0


def test_the_probe_is_fishers(text):
    """On two classes with one covariance the probe's F1 is that of the best threshold along Sigma^-1 (m1 - m0)."""
    rng = np.random.default_rng(1)
    on = rng.random(4000) < 0.3
    x = rng.standard_normal((4000, 3)) * [1, 3, 1] + np.outer(on, [2.0, 4.0, 0.0])
    documents = np.arange(4000)
    f1 = probe_f1(x, csr_array(on[:, None].astype(float)), documents)
    line = x @ [2.0, 4 / 9, 0]
    second = halves_of(documents)

    def f1_at(cut, half):
        fires = line[half] >= cut
        return 2 * (fires & on[half]).sum() / (fires.sum() + on[half].sum())

    best = max(line[~second], key=lambda cut: f1_at(cut, ~second))
    assert f1[0] == pytest.approx(f1_at(best, second), abs=0.01)


def test_wrong_input_is_one_line(spikes, text):
    x, tokens, documents, positions = held_out(text)
    with pytest.raises(UserError, match=r"spike-ins take x \[T, 32\]"):
        spikes.add(x[:, :5], tokens, documents, positions)
    with pytest.raises(UserError, match="T tokens, documents and positions"):
        spikes.add(x, tokens[:-1], documents, positions)
    with pytest.raises(UserError, match="finite matrix"):
        Spikes(torch.full((3, 2), float("nan")), tokens)
    assert metasae.Spikes is Spikes


def test_a_merged_latent_is_seen_in_spite_of_chance_recall_of_many_others():
    rng = np.random.default_rng(0)
    on = rng.random((40_000, 100)) < 0.01
    fires = on | (rng.random(on.shape) < 0.025)
    merged = fires.copy()
    merged[:, 0] |= on[:, 1]
    # the chance recall of 98 others takes the second of its own below a quarter of all
    recall = (on.T.astype(float) @ merged[:, 0]) / on.sum(0)
    assert recall[1] / recall.sum() < 0.25
    spikes = [spike("concept", group) for group in range(100)]
    whole, half = (
        score_spikes(spikes, csr_array(on.astype(float)), csr_array(table.astype(float)), np.arange(40_000))
        for table in (fires, merged)
    )
    assert whole["blend_rate"] == 0 and half["blend_rate"] == pytest.approx(1 / 100)


def test_amplitudes_like_those_of_an_sae(text):
    sae = SAE(SAEConfig(D, 40, k=4))
    sae.init_weights(torch.Generator().manual_seed(0))
    sae.threshold = torch.full((40,), 0.5)
    drawn = Spikes(text[0], text[1], n=40, like=sae)
    acts = sae.encode(text[0])
    own = torch.stack([acts[:, latent][acts[:, latent] > 0].mean() for latent in range(40)])
    low, high = own.quantile(0.1), own.quantile(0.9)
    amplitudes = torch.tensor([spike.amplitude for spike in drawn.set.spikes])
    assert low <= amplitudes.min() and amplitudes.max() <= high and amplitudes.std() > 0
    sae.threshold = torch.full((40,), 1e9)
    with pytest.raises(UserError, match="an SAE that fires"):
        Spikes(text[0], text[1], n=40, like=sae)


def test_a_draw_comes_back_from_its_file(spikes, text, tmp_path):
    spikes.fit(*(column[TRAIN] for column in text))
    spikes.save(tmp_path / "draw.safetensors")
    again = Spikes.load(tmp_path / "draw.safetensors")
    assert again.set.spikes == spikes.set.spikes and np.array_equal(again.set.directions, spikes.set.directions)
    columns = held_out(text)
    assert torch.equal(again.add(*columns), spikes.add(*columns)) and again.added_square == spikes.added_square
    (tmp_path / "cut").write_bytes((tmp_path / "draw.safetensors").read_bytes()[:200])
    for name in ("cut", "nothing"):
        with pytest.raises(UserError, match="holds no spike-ins"):
            Spikes.load(tmp_path / name)
