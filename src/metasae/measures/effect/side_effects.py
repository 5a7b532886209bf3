"""Side effects of steering: how far a latent moves the model's output in text on which it is silent.

The firings of latent i in a window of text are taken out of it, and the very same activations are put, at the same
places, into a window where i is silent throughout. With D_t the change of the output at token t, summed over the tokens
of these windows,

    own_i    = sum_t D_t(clean, x - z w_i) / firings         in its own text: the wanted effect
    silent_i = sum_t D_t(clean, x + z w_i) / firings         in silent text: the side effect

    bluntness_i = (silent_i / own_i) / (silent_r / own_r)    r: a random direction, as long, with the same activations

so at 1 a latent is aimed no better than a random direction. Both sides carry the same vectors at the same places, so a
latent's strength, the number of its firings and how easily its tokens are moved cancel, as far as the changes are
small.

D is KL(clean || changed) in nats for models that predict the next token, 1 - cos of the last hidden state for encoders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from metasae.data.model.host import Host
from metasae.data.text.windows import Window, pad
from metasae.device import widest
from metasae.measures.effect.effects import cosine_distance
from metasae.measures.effect.output import LOGITS_AT_ONCE, windows_of
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.sae.sae import SAE


@dataclass(frozen=True)
class SideEffects:
    """The side effects of m latents, in the order asked for; float64 [m] is NaN where a latent has no pair of windows.

    latents: int64 [m]. own, silent: float64 [m], change of the output per firing; own_random, silent_random: the same
    for a random direction. moved: sparse float64 [m, T], D at the firings that were taken out, over the tokens of the
    text.
    firings: int64 [m], how many were moved.
    """

    latents: np.ndarray
    own: np.ndarray
    silent: np.ndarray
    own_random: np.ndarray
    silent_random: np.ndarray
    moved: csr_array
    firings: np.ndarray

    @property
    def bluntness(self) -> np.ndarray:
        """float64 [m]; NaN where one of the four numbers is not above 0."""
        parts = np.stack([self.silent, self.own, self.silent_random, self.own_random])
        silent, own, silent_random, own_random = np.where((parts > 0).all(axis=0), parts, np.nan)
        return (silent / own) / (silent_random / own_random)


@dataclass(frozen=True)
class _Trial:
    """Firings of latents[latent] at `places` of window `home`, to be taken out there and put into window `silent`.

    Only the first `length` tokens of both windows count. places: int64 [f], from a window's first own token. values:
    float32 [f].
    directions: float32 [2, d], the decoder row and a random one of its length.
    """

    latent: int
    home: int
    silent: int
    length: int
    places: np.ndarray
    values: np.ndarray
    directions: Tensor


@torch.no_grad()
def side_effects(
    host: Host,
    sae: SAE,
    firings: Firings,
    latents: Sequence[int],
    context: int,
    pairs: int = 8,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> SideEffects:
    """The side effects of these latents; see the module for the definition.

    firings: of this SAE, on text harvested with `host` in windows of `context` tokens. pairs: windows drawn per latent,
    each with a silent one of the nearest length; for each pair the model runs 6 windows. seed: of the draw and the
    random directions. The activations are those of `firings`; where the SAE normalises per token they count in units of
    each token's own spread.
    """
    latents = np.asarray(latents, dtype=np.int64)
    windows = windows_of(firings, firings.n_tokens, host.frame.room(context))
    trials = _draw(sae, firings, windows, latents, pairs, seed)
    trials.sort(key=lambda trial: len(windows[trial.home]))
    moved: list[np.ndarray] = []
    at_once = _at_once(host, windows, context, batch_tokens) if trials else 1
    together = [trials[start : start + at_once] for start in range(0, len(trials), at_once)]
    for some in tracked(progress, together, "side effects of steering", len(trials), "windows"):
        moved += _moved(host, sae, some, windows)

    sums, n_firings = np.zeros((2, 2, len(latents))), np.zeros(len(latents), np.int64)
    for trial, by_token in zip(trials, moved, strict=True):
        sums[:, :, trial.latent] += by_token.sum(axis=-1)
        n_firings[trial.latent] += len(trial.places)
    per_firing = np.divide(sums, n_firings, out=np.full_like(sums, np.nan), where=n_firings > 0)
    (own, silent), (own_random, silent_random) = per_firing
    starts = np.cumsum([0, *map(len, windows)])
    rows = np.repeat([trial.latent for trial in trials], [len(trial.places) for trial in trials]).astype(np.int64)
    empty = np.zeros(0)
    tokens = np.concatenate([empty, *(starts[trial.home] + trial.places for trial in trials)]).astype(np.int64)
    taken_out = [by_token[0, 0, trial.places] for trial, by_token in zip(trials, moved, strict=True)]
    shape = len(latents), firings.n_tokens
    at_firings = csr_array((np.concatenate([empty, *taken_out]), (rows, tokens)), shape=shape)
    return SideEffects(latents, own, silent, own_random, silent_random, at_firings, n_firings)


def _draw(
    sae: SAE, firings: Firings, windows: list[Window], latents: np.ndarray, pairs: int, seed: int
) -> list[_Trial]:
    """The trials of all latents. A latent's trials depend on nothing but the seed and the latent."""
    lengths = np.array([len(window) for window in windows], dtype=np.int64)
    ends = np.cumsum(lengths)
    by_latent = firings.csr[:, latents].tocsc()
    by_latent.sort_indices()
    trials = []
    for number, latent in enumerate(latents):
        column = slice(by_latent.indptr[number], by_latent.indptr[number + 1])
        tokens, values = by_latent.indices[column].astype(np.int64), by_latent.data[column]
        window_of = np.searchsorted(ends, tokens, side="right")
        homes = np.unique(window_of)
        silent = np.setdiff1d(np.arange(len(windows)), homes)
        if not len(silent):
            continue
        rng = np.random.default_rng([seed, int(latent)])
        row = sae.W_dec[int(latent)].detach().cpu().float()
        for home in rng.permutation(homes)[:pairs]:
            partner = _nearest_in_length(silent, lengths, lengths[home], rng)
            length = int(min(lengths[home], lengths[partner]))
            random = torch.from_numpy(rng.standard_normal(len(row), dtype=np.float32))
            directions = torch.stack([row, random * (row.norm() / random.norm())])
            places = tokens - (ends[home] - lengths[home])
            counted = (window_of == home) & (places < length)
            if counted.any():
                trials.append(_Trial(number, int(home), partner, length, places[counted], values[counted], directions))
    return trials


def _nearest_in_length(silent: np.ndarray, lengths: np.ndarray, wanted: int, rng: np.random.Generator) -> int:
    """One of the silent windows whose length is nearest to the one wanted; of two such lengths, the greater."""
    gaps = np.abs(lengths[silent] - wanted)
    nearest = silent[gaps == gaps.min()]
    return int(rng.choice(nearest[lengths[nearest] == lengths[nearest].max()]))


def _at_once(host: Host, windows: list[Window], context: int, batch_tokens: int) -> int:
    """Trials to a batch, two windows each, so that neither its tokens nor its outputs are too many."""
    ids, mask, _ = pad(windows[:1], host.frame, host.pad_id)
    width = host.output(ids, mask).shape[-1]
    return max(1, min(batch_tokens, LOGITS_AT_ONCE // width) // (2 * context))


def _moved(host: Host, sae: SAE, trials: list[_Trial], windows: list[Window]) -> list[np.ndarray]:
    """D of every counted token, for each trial float64 [2, 2, length]: its decoder row and the random one; taken out,
    put in."""
    batch = [windows[trial.home] for trial in trials] + [windows[trial.silent] for trial in trials]
    ids, mask, _ = pad(batch, host.frame, host.pad_id)
    before, n_places = len(host.frame.prefix), [len(trial.places) for trial in trials]
    trial_of = torch.from_numpy(np.repeat(np.arange(len(trials)), n_places))
    columns = torch.from_numpy(np.concatenate([trial.places for trial in trials]) + before).repeat(2)
    rows = torch.cat([trial_of, trial_of + len(trials)])
    values = torch.from_numpy(np.concatenate([trial.values for trial in trials]).astype(np.float32))
    amounts = torch.cat([-values, values])[:, None]
    directions = torch.stack([trial.directions for trial in trials])
    # all passes in batches of one shape, so that tokens which nothing reaches cancel to the bit in any precision
    clean, distance = host.output(ids, mask), _divergence if host.causal else cosine_distance
    out = [np.zeros((2, 2, trial.length)) for trial in trials]
    for which in range(2):
        steps = amounts * directions[trial_of, which].repeat(2, 1)
        changed = host.output(ids, mask, replace=_stepped(sae, rows, columns, steps))
        for row in range(len(batch)):
            side, number = divmod(row, len(trials))
            where = slice(before, before + trials[number].length)
            out[number][which, side] = distance(clean[row, where], changed[row, where]).cpu().numpy()
    return out


def _stepped(sae: SAE, rows: Tensor, columns: Tensor, steps: Tensor) -> Callable[[Tensor], Tensor]:
    """The replacement that adds steps [s, d], in the SAE's units, at the tokens (rows, columns) [s]."""

    def change(x: Tensor) -> Tensor:
        at = rows.to(x.device), columns.to(x.device)
        old = x[at].float()
        std = sae.normalise(old)[2]
        out = x.clone()
        out[at] = (old + steps.to(x.device) * (1 if std is None else std)).to(x)
        return out

    return change


def _divergence(clean: Tensor, changed: Tensor) -> Tensor:
    """Logits [t, V] -> KL(clean || changed) in nats, float64 [t]."""
    wide = widest(clean.device)
    log_p, log_q = clean.to(wide).log_softmax(-1), changed.to(wide).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
