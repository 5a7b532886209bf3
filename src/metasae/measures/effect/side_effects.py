"""Side effects of steering: how far a latent moves the model's output in text where it, or its counterpart, has nothing to say.

The firings of latent i in a window of text are taken out of it, and the very same activations are put, at the same places, into
a window where i is silent throughout. With D_t the change of the output at token t, summed over the tokens of these windows,

    own_i    = sum_t D_t(clean, x - z w_i) / firings         in its own text: what the model makes of it there
    silent_i = sum_t D_t(clean, x + z w_i) / firings         in silent text: the side effect

    bluntness_i = (silent_i / own_i) / (silent_r / own_r)    r: a random direction, as long, with the same activations

so at 1 a latent is aimed no better than a random direction. Both sides carry the same vectors at the same places, so a latent's
strength, the number of its firings and how easily its tokens are moved cancel, as far as the changes are small.

For a latent i and its counterpart j in another SAE, spill is what steering with i also moves where the concept of j is absent:

    spill_i = sum of D_t(clean, x - z w_i) over the firings t of i where j is silent / the same over all firings t of i
    apart_i = number of the firings t of i where j is silent / number of the firings of i

A latent that fires more widely than its counterpart spills more; spill / apart leaves that out. It is near 1 where the text that
only i fires on is moved as much as the rest, as by a blend, and well below 1 where i fires there but faintly.

D is KL(clean || changed) in nats for models that predict the next token, 1 - cos of the last hidden state for encoders.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from metasae.data.text.windows import Window, pad
from metasae.measures.effect.output import LOGITS_AT_ONCE, windows_of
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class SideEffects:
    """Of m latents, in the order asked for; float64 [m] is NaN where a latent has no pair of windows.

    latents: int64 [m]. own, silent: float64 [m], change of the output per firing; own_random, silent_random: the same for a
    random direction. moved: sparse float64 [m, T], D at the firings that were taken out, over the tokens of the text.
    firings, pairs: int64 [m], what the numbers of a latent rest on. never: latents that never fire. unpaired: latents that
    fire in every window, or only behind the end of the silent ones. unit: "nats" or "cosine distance".
    """

    latents: np.ndarray
    own: np.ndarray
    silent: np.ndarray
    own_random: np.ndarray
    silent_random: np.ndarray
    moved: "csr_array"
    firings: np.ndarray
    pairs: np.ndarray
    never: int
    unpaired: int
    unit: str

    @property
    def bluntness(self) -> np.ndarray:
        """float64 [m]; NaN where one of the four numbers is not above 0."""
        parts = np.stack([self.silent, self.own, self.silent_random, self.own_random])
        silent, own, silent_random, own_random = np.where((parts > 0).all(axis=0), parts, np.nan)
        return (silent / own) / (silent_random / own_random)

    def as_dict(self) -> dict:
        """Means over the latents that have the number; that of bluntness is geometric, so that 2 and 1/2 balance."""
        bluntness = self.bluntness
        n_latents = int(np.isfinite(bluntness).sum())
        return {
            "own": _mean(self.own),
            "silent": _mean(self.silent),
            "own_random": _mean(self.own_random),
            "silent_random": _mean(self.silent_random),
            "bluntness": _geometric_mean(bluntness),
            "unit": self.unit,
            "n_latents": n_latents,
            "n_firings": int(self.firings.sum()),
            "n_pairs": int(self.pairs.sum()),
            "excluded": {
                "never": self.never,
                "unpaired": self.unpaired,
                "no_effect": int(np.isfinite(self.own).sum()) - n_latents,
            },
            "per_latent": {
                "latent": self.latents,
                "own": self.own,
                "silent": self.silent,
                "bluntness": bluntness,
                "firings": self.firings,
            },
        }


@dataclass(frozen=True)
class PairedSideEffects:
    """Two SAEs, a and b, over matched latents; None where no match has the number.

    bluntness_a, bluntness_b: geometric means; bluntness_percent: of a against b; share_sharper: share of the matches in which a
    has the lower one, ties half. spill, apart: means; a's where b's latent is silent, b's where a's is.
    n_bluntness, n_spill: matches with the number on both sides, out of n_matches.
    """

    bluntness_a: float | None
    bluntness_b: float | None
    bluntness_percent: float | None
    share_sharper: float | None
    spill_a: float | None
    spill_b: float | None
    apart_a: float | None
    apart_b: float | None
    n_bluntness: int
    n_spill: int
    n_matches: int

    def as_dict(self) -> dict:
        """With spill_per_firing_a and spill_per_firing_b: the mean spill over the mean of apart, None where nothing is apart."""
        spill = {
            "a": self.spill_a / self.apart_a if self.apart_a else None,
            "b": self.spill_b / self.apart_b if self.apart_b else None,
        }
        return {**vars(self), **{f"spill_per_firing_{side}": value for side, value in spill.items()}}


@dataclass(frozen=True)
class _Trial:
    """Firings of latents[latent] at `places` of window `home`, to be taken out there and put into window `silent`.

    Only the first `length` tokens of both windows count. places: int64 [f], from a window's first own token. values: float32 [f].
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
    host,
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

    firings: of this SAE, on text harvested with `host` in windows of `context` tokens. pairs: windows drawn per latent, each
    with a silent one of the nearest length; for each pair the model runs 6 windows. seed: of the draw and the random directions.
    The activations are those of `firings`; where the SAE normalises per token they count in units of each token's own spread.
    """
    latents = np.asarray(latents, dtype=np.int64)
    windows = windows_of(firings, firings.n_tokens, host.frame.room(context))
    trials, fires = _draw(sae, firings, windows, latents, pairs, seed)
    trials.sort(key=lambda trial: len(windows[trial.home]))
    moved: list[np.ndarray] = []
    at_once = _at_once(host, windows, context, batch_tokens) if trials else 1
    with progress.task("side effects of steering", len(trials), "windows") as task:
        for start in range(0, len(trials), at_once):
            moved += _moved(host, sae, trials[start : start + at_once], windows)
            task.advance(len(moved) - start)

    sums, n_firings, n_pairs = (
        np.zeros((2, 2, len(latents))),
        np.zeros(len(latents), np.int64),
        np.zeros(len(latents), np.int64),
    )
    for trial, by_token in zip(trials, moved, strict=True):
        sums[:, :, trial.latent] += by_token.sum(axis=-1)
        n_firings[trial.latent] += len(trial.places)
        n_pairs[trial.latent] += 1
    (own, silent), (own_random, silent_random) = np.divide(
        sums, n_firings, out=np.full_like(sums, np.nan), where=n_firings > 0
    )
    return SideEffects(
        latents=latents,
        own=own,
        silent=silent,
        own_random=own_random,
        silent_random=silent_random,
        moved=_at_firings(trials, moved, windows, (len(latents), firings.n_tokens)),
        firings=n_firings,
        pairs=n_pairs,
        never=int((~fires).sum()),
        unpaired=int((fires & (n_pairs == 0)).sum()),
        unit="nats" if host.causal else "cosine distance",
    )


def compare_side_effects(
    a: SideEffects, b: SideEffects, matched: np.ndarray, firings_a: Firings, firings_b: Firings
) -> PairedSideEffects:
    """a, b: of two SAEs on the same text, with their firings. matched: int [m, 2], latents of a's SAE with their partners in b's.

    Raises ValueError for a latent that was not measured.
    """
    matched = np.asarray(matched, dtype=np.int64).reshape(-1, 2)
    rows_a, rows_b = _rows_of(a, matched[:, 0]), _rows_of(b, matched[:, 1])
    bluntness = _with_both(a.bluntness[rows_a], b.bluntness[rows_b])
    spill = _with_both(*_spill(a, rows_a, firings_b, matched[:, 1]), *_spill(b, rows_b, firings_a, matched[:, 0]))
    spill_a, apart_a, spill_b, apart_b = map(_mean, spill)
    mean_a, mean_b = _geometric_mean(bluntness[0]), _geometric_mean(bluntness[1])
    n_bluntness = bluntness.shape[1]
    return PairedSideEffects(
        bluntness_a=mean_a,
        bluntness_b=mean_b,
        bluntness_percent=100 * (mean_a / mean_b - 1) if n_bluntness else None,
        share_sharper=_mean((np.sign(bluntness[1] - bluntness[0]) + 1) / 2),
        spill_a=spill_a,
        spill_b=spill_b,
        apart_a=apart_a,
        apart_b=apart_b,
        n_bluntness=n_bluntness,
        n_spill=spill.shape[1],
        n_matches=len(matched),
    )


def _draw(
    sae: SAE, firings: Firings, windows: list[Window], latents: np.ndarray, pairs: int, seed: int
) -> tuple[list[_Trial], np.ndarray]:
    """(the trials of all latents, bool [m] whether a latent fires at all). A latent's trials depend on the seed and on it alone."""
    lengths = np.array([len(window) for window in windows], dtype=np.int64)
    ends = np.cumsum(lengths)
    by_latent = firings.csr[:, latents].tocsc()
    by_latent.sort_indices()
    trials, fires = [], np.zeros(len(latents), bool)
    for number, latent in enumerate(latents):
        column = slice(by_latent.indptr[number], by_latent.indptr[number + 1])
        tokens, values = by_latent.indices[column].astype(np.int64), by_latent.data[column]
        window_of = np.searchsorted(ends, tokens, side="right")
        homes = np.unique(window_of)
        fires[number] = len(homes) > 0
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
    return trials, fires


def _nearest_in_length(silent: np.ndarray, lengths: np.ndarray, wanted: int, rng: np.random.Generator) -> int:
    """One of the silent windows whose length is nearest to the one wanted; of two such lengths, the greater."""
    gaps = np.abs(lengths[silent] - wanted)
    nearest = silent[gaps == gaps.min()]
    return int(rng.choice(nearest[lengths[nearest] == lengths[nearest].max()]))


def _at_once(host, windows: list[Window], context: int, batch_tokens: int) -> int:
    """Trials to a batch, two windows each, so that neither its tokens nor its outputs are too many."""
    ids, mask, _ = pad(windows[:1], host.frame, host.pad_id)
    width = host.output(ids, mask).shape[-1]
    return max(1, min(batch_tokens, LOGITS_AT_ONCE // width) // (2 * context))


def _moved(host, sae: SAE, trials: list[_Trial], windows: list[Window]) -> list[np.ndarray]:
    """D of every counted token, for each trial float64 [2, 2, length]: its decoder row and the random one; taken out, put in."""
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
    clean, distance = host.output(ids, mask), _divergence if host.causal else _cosine_distance
    out = [np.zeros((2, 2, trial.length)) for trial in trials]
    for which in range(2):
        changed = host.output(
            ids, mask, replace=_stepped(sae, rows, columns, amounts * directions[trial_of, which].repeat(2, 1))
        )
        for row in range(len(batch)):
            side, number = divmod(row, len(trials))
            where = slice(before, before + trials[number].length)
            out[number][which, side] = distance(clean[row, where], changed[row, where]).cpu().numpy()
    return out


def _stepped(sae: SAE, rows: Tensor, columns: Tensor, steps: Tensor):
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
    log_p, log_q = clean.double().log_softmax(-1), changed.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _cosine_distance(clean: Tensor, changed: Tensor) -> Tensor:
    """Hidden states [t, D] -> 1 - cos, float64 [t]."""
    return 1 - nn.functional.cosine_similarity(clean.double(), changed.double(), dim=-1)


def _at_firings(
    trials: list[_Trial], moved: list[np.ndarray], windows: list[Window], shape: tuple[int, int]
) -> "csr_array":
    """D at the firings that were taken out, sparse [m, T]."""
    from scipy.sparse import csr_array

    starts = np.cumsum([0, *map(len, windows)])
    rows = np.repeat([trial.latent for trial in trials], [len(trial.places) for trial in trials])
    columns = [starts[trial.home] + trial.places for trial in trials]
    values = [by_token[0, 0, trial.places] for trial, by_token in zip(trials, moved, strict=True)]
    empty = np.zeros(0)
    return csr_array(
        (np.concatenate([*values, empty]), (rows.astype(np.int64), np.concatenate([*columns, empty]).astype(np.int64))),
        shape=shape,
    )


def _rows_of(effects: SideEffects, latents: np.ndarray) -> np.ndarray:
    """Where these latents stand in what was measured: int [m]."""
    place = {int(latent): row for row, latent in enumerate(effects.latents)}
    if missing := [int(latent) for latent in latents if int(latent) not in place]:
        raise ValueError(f"latent {missing[0]} is matched but was not measured")
    return np.array([place[int(latent)] for latent in latents], dtype=np.int64)


def _spill(effects: SideEffects, rows: np.ndarray, firings: Firings, partners: np.ndarray) -> np.ndarray:
    """spill and apart of each row against its partner: float64 [2, m], NaN where the row moved nothing."""
    if firings.n_tokens != effects.moved.shape[1]:
        raise ValueError(f"firings on {firings.n_tokens} tokens do not belong to effects on {effects.moved.shape[1]}")
    active = firings.csr[:, partners].tocsc()
    out = np.full((2, len(rows)), np.nan)
    for number, row in enumerate(rows):
        entries = slice(effects.moved.indptr[row], effects.moved.indptr[row + 1])
        moved, tokens = effects.moved.data[entries], effects.moved.indices[entries]
        absent = ~np.isin(tokens, active.indices[active.indptr[number] : active.indptr[number + 1]])
        if moved.sum() > 0:
            out[:, number] = moved[absent].sum() / moved.sum(), absent.mean()
    return out


def _with_both(*columns: np.ndarray) -> np.ndarray:
    """[columns, found]: the matches that have every number."""
    stacked = np.stack(columns)
    return stacked[:, np.isfinite(stacked).all(axis=0)]


def _mean(values: np.ndarray) -> float | None:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else None


def _geometric_mean(values: np.ndarray) -> float | None:
    mean = _mean(np.log(values))
    return None if mean is None else math.exp(mean)
