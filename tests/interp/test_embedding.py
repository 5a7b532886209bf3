"""The embedding score against loops over pairs, and on planted text where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import planted, view_of

from metasae.data.text.windows import Frame
from metasae.errors import UserError
from metasae.interp.choice import CHANCE
from metasae.interp.draws import KINDS, Windows, activating_windows, with_silent
from metasae.interp.embedding import EmbeddingScorer, sentence_encoder
from metasae.interp.excerpts import Text, WindowSpec, planted_strings
from metasae.interp.scores import auc, other_latents


def words_encoder(texts):
    """A sentence encoder that counts names, strengths left aside; words it has not met before hash to one of 512
    places.
    """
    rows = np.zeros((len(texts), 512), np.float32)
    for row, text in enumerate(texts):
        for name in text.replace("/", " ").split():
            rows[row, hash_of(name.split(":")[0])] += 1
    return rows


def hash_of(name):
    number = int(name[1:])
    return number if name[0] == "f" else 100 + number if name[0] == "w" else 256 + number % 256


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=8), st.lists(st.integers(-3, 3), max_size=8))
def test_auc_against_all_pairs(positive, negative):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    expected = sum(pairs) / len(pairs) if pairs else np.nan
    assert auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(expected, nan_ok=True)


@pytest.fixture(scope="module")
def world():
    split, firings, _, _ = planted(12_000)
    spec = WindowSpec(length=8, train=10, score=10, silent=10)
    text = Text(firings.documents, firings.tokens, firings.positions, planted_strings(split), 0)
    view = view_of(firings)
    enough, _ = activating_windows(text, view, spec, 0)
    near = np.random.default_rng(0).integers(0, view.n_latents, (view.n_latents, 3))
    return text, spec, [with_silent(text, view, enough[latent], near[latent], spec, 0) for latent in sorted(enough)]


def test_scores_against_loops(world):
    text, spec, latents = world
    latents = latents[:4]
    by = [2, 0, 3, 1]
    score = EmbeddingScorer(text, words_encoder, spec, batch=7)(None, latents, by)

    def unit(start):
        row = words_encoder(["".join(text.strings(start, spec.length))])[0].astype(np.float64)
        return row / np.linalg.norm(row)

    for explained_by in (None, by):
        for place, latent in enumerate(latents):
            source = latents[place if explained_by is None else by[place]]
            centre = sum(unit(start) for start in source.train.starts)
            similar = {
                start: unit(start) @ centre for part in (latent.score, *latent.silent.values()) for start in part.starts
            }
            scores = score.values if explained_by is None else score.shuffled
            for kind in KINDS:
                pairs = [
                    (similar[p] > similar[n] + 1e-6) + 0.5 * (abs(similar[p] - similar[n]) <= 1e-6)
                    for p in latent.score.starts
                    for n in latent.silent[kind].starts
                ]
                if len(latent.silent[kind]) < spec.silent:
                    assert np.isnan(scores[kind][place])
                else:
                    # float32 may break a tie, latent of which is worth one half
                    ties = sum(pair == 0.5 for pair in pairs)
                    assert abs(scores[kind][place] - np.mean(pairs)) <= 0.5 * ties / len(pairs) + 1e-9


def starts_of(latents):
    drawn = [windows for latent in latents for windows in (latent.train, latent.score, *latent.silent.values())]
    return {start for windows in drawn for start in windows.starts.tolist()}


def test_every_window_is_embedded_once(world):
    text, spec, latents = world
    asked = []

    def counting(texts):
        asked.extend(texts)
        return words_encoder(texts)

    score = EmbeddingScorer(text, counting, spec)
    score(None, latents[:5], None)
    first = len(asked)
    score(None, latents[:5], None)
    assert first == len(starts_of(latents[:5])) == len(asked)
    score(None, latents[:7], None)
    assert len(asked) == len(starts_of(latents[:7]))


def test_an_encoder_that_sees_the_features_scores_well_and_shuffled_windows_stay_at_chance(world):
    text, spec, latents = world
    score = EmbeddingScorer(text, words_encoder, spec)(None, latents, other_latents(len(latents), 0))
    own, floor = (np.nanmean(part["random"]) for part in (score.values, score.shuffled))
    assert own > 0.8 and 0.35 < floor < 0.65 and CHANCE["embedding"] == 0.5


def test_an_encoder_of_noise_is_at_chance(world):
    text, spec, latents = world
    rng = np.random.default_rng(0)
    score = EmbeddingScorer(text, lambda texts: rng.standard_normal((len(texts), 16)), spec)(None, latents, None)
    assert abs(np.nanmean(score.values["random"]) - 0.5) < 0.06 and score.shuffled == {}


def test_a_kind_with_too_few_windows_is_not_a_number(world):
    text, spec, latents = world
    none = Windows(*(np.zeros(0, dtype) for dtype in (np.int64, np.int64, np.float32, np.int8)), spec.length)
    poor = type(latents[0])(
        latents[0].latent, latents[0].train, latents[0].score, {**latents[0].silent, "same_token": none}
    )
    score = EmbeddingScorer(text, words_encoder, spec)(None, [poor, latents[1]], None)
    assert np.isnan(score.values["same_token"][0]) and np.isfinite(score.values["random"][0])


def test_a_broken_encoder_is_one_line(world):
    text, spec, latents = world
    for broken in (lambda texts: np.full((len(texts), 4), np.nan), lambda texts: np.ones((1, 4))):
        with pytest.raises(UserError, match="sentence encoder"):
            EmbeddingScorer(text, broken, spec)(None, latents[:2], None)


def test_the_encoder_is_the_mean_of_the_last_hidden_state_whatever_stands_beside(load):
    host = load("bert", "blocks.1.hook_resid_pre")
    encode = sentence_encoder(host.model, host.tokenizer)
    texts = ["The river ran past the old mill", "Snow", "gulls argued over 3 fish " * 60]
    rows, frame = encode(texts), Frame.of(host.tokenizer, causal=False)
    for text, row in zip(texts, rows, strict=True):
        ids = host.tokenizer(text, add_special_tokens=False)["input_ids"][: frame.room(64)]
        ids = torch.tensor([[*frame.prefix, *ids, *frame.suffix]])
        expected = host.output(ids, torch.ones_like(ids))[0].mean(0)
        np.testing.assert_allclose(row, (expected / expected.norm()).numpy(), atol=1e-5)
