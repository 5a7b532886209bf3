"""Writes windows of latents as the cache that the MetaSAE paper's scorer reads (arXiv 2604.03436, its released code).

    OUT/LABEL.safetensors             tokens int32 [m, K, L], peak_vals fp32 [m, K], feature_indices int32 [m]
    OUT/LABEL_meta.json               the sizes of the pools, and feature_indices
    OUT/random_contexts.safetensors   tokens int32 [r, L]
    OUT/feature_pairs.npz             where rows p of two arms are a pair: LABEL_indices int32 [m], cosines fp32 [m]

A window is the L tokens that end at a firing, and peak_vals the activation there. K = train + fuzz + detect + boundary
windows, in this order. The firings of a latent are cut by strength into fifths, the strongest first:
    train      30 of the first fifth, 5 of each other one      to explain from
    fuzz       5 of each fifth, shuffled                       to predict the strength of: `sim_spearman`
    detect     25 of the first fifth                           to be told from random windows
    boundary   of the last fifth                               none, unless asked for

Three things differ from the draws of the paper's code; the layout is the same. The windows of train come from one half
of the documents and all others from the other half, fifths being made in each half; a window lies within one document;
and a latent that cannot fill every pool is left out and counted, while the paper's code fills its pools up with zeros.
Random windows are of the second half; the format has one set of them for all latents, so a latent may fire in some.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.files import write_json
from metasae.interop import checked
from metasae.interop.outputs import new_folder, write_safetensors
from metasae.interop.stored_firings import StoredFirings, stored_firings
from metasae.interp.excerpts import END, Text
from metasae.measures.rows.seeds import match
from metasae.progress.progress import SILENT, Progress

FIFTHS = 5


@dataclass(frozen=True)
class Pools:
    """Windows per latent; the defaults are the paper's.

    train_top, train_each: of the strongest fifth, of each other.
    """

    train_top: int = 30
    train_each: int = 5
    fuzz_each: int = 5
    detect: int = 25
    boundary: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        train, fuzz = self.train_top + (FIFTHS - 1) * self.train_each, FIFTHS * self.fuzz_each
        return {"n_train": train, "n_fuzz": fuzz, "n_detect": self.detect, "n_boundary": self.boundary}

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def export_paper_cache(
    arm_folder: str | Path,
    out: str | Path,
    *,
    other: str | Path | None = None,
    context: int = 64,
    random: int = 200,
    pools: Pools | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict:
    """Writes windows of an arm's latents, or of pairs of latents where `other` is another arm's folder.

    Pairs are matched one to one by decoder cosine. The paper's scorer needs the labels joint and solo, so both arms.
    context: L. random: windows. pools: windows per latent; None for the paper's. seed: of every draw. Returns {label:
    {"written", "left_out"}}, `left_out` being latents (or pairs) without enough firings. Raises UserError where an arm
    keeps no firings, `out` is not empty, the arms were judged on different text, or no latent has enough.
    """
    if context < 1:
        raise UserError(f"context must be at least 1, not {context}")
    pools = pools or Pools()
    arms = [stored_firings(folder, progress) for folder in (arm_folder, other) if folder is not None]
    labels, first = _labels(arms), arms[0].firings
    for stored in arms[1:]:
        if not np.array_equal(first.tokens, stored.firings.tokens):
            raise UserError(
                f"the firings of {stored.arm.folder} are on other text than the first arm's; "
                "measure both on the same text"
            )
    text = Text(first.documents, first.tokens, first.positions, lambda places: [""] * len(places), seed)
    wanted, cosines = _wanted(arms)
    drawn = [_drawn(arm, text, rows, context, pools, seed, progress) for arm, rows in zip(arms, wanted, strict=True)]
    full = np.logical_and.reduce([(ends >= 0).all(1) for ends, _ in drawn])
    if not full.any():
        raise UserError(
            f"no latent has the {pools.total} windows of {context} tokens that are asked for; take fewer, or more text"
        )
    latents = [rows[full].astype("<i4") for rows in wanted]
    with new_folder(Path(out)) as part:
        for label, rows, (ends, values) in zip(labels, latents, drawn, strict=True):
            _write(part, label, _window_tokens(text, ends[full], context), values[full], rows, pools)
        # different tokens of the scoring half whose window lies within a document
        tokens = text.scoring_tokens
        whole = tokens[text.windows(tokens, context, END)[1]]
        ends = np.random.default_rng([seed, 1]).permutation(whole)[:random]
        write_safetensors(part / "random_contexts.safetensors", {"tokens": _window_tokens(text, ends, context)})
        if other is not None:
            pairs = {f"{label}_indices": rows for label, rows in zip(labels, latents, strict=True)}
            np.savez(part / "feature_pairs.npz", **pairs, cosines=cosines[full].astype(np.float32))
    return {label: {"written": int(full.sum()), "left_out": int((~full).sum())} for label in labels}


def _labels(arms: Sequence[StoredFirings]) -> list[str]:
    """The arms' names, which name files and so must be different words."""
    labels = [stored.arm.name for stored in arms]
    for label in labels:
        if not label.isidentifier():
            raise UserError(f"{checked.shown(label)} cannot name a file; the arm's name must be letters, digits and _")
    if len(set(labels)) < len(labels):
        raise UserError(f"both arms are named '{labels[0]}'; the paper's cache holds one folder of each name")
    return labels


def _wanted(arms: Sequence[StoredFirings]) -> tuple[list[np.ndarray], np.ndarray]:
    """Latents of each arm, int64 [m], and the cosines of the pairs; pairs of which one never fires are left out."""
    rows = np.flatnonzero(arms[0].by_latent.counts())
    if len(arms) == 1:
        return [rows], np.ones(len(rows))
    pairs = match(*(stored.arm.sae().W_dec.detach() for stored in arms))
    rows = rows[pairs.partner[rows] >= 0]
    rows = rows[arms[1].by_latent.counts()[pairs.partner[rows]] > 0]
    return [rows, pairs.partner[rows]], pairs.cosine[rows]


def _drawn(
    stored: StoredFirings, text: Text, latents: np.ndarray, length: int, pools: Pools, seed: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """The windows of m latents: the token of the split that each ends at, int64 [m, K], and the activation there, fp32
    [m, K].

    ends of -1 where a latent has too few firings.
    """
    ends, values = np.full((len(latents), pools.total), -1, np.int64), np.zeros((len(latents), pools.total), np.float32)
    with progress.task(f"windows of {stored.arm.name}", len(latents), "latents") as task:
        for row, latent in enumerate(latents):
            tokens, strengths = (np.asarray(array) for array in stored.by_latent.latent(int(latent)))
            whole = np.flatnonzero(text.windows(tokens, length, END)[1])
            rng = np.random.default_rng([seed, int(latent)])
            chosen = draw(strengths[whole], text.scoring[tokens[whole]], pools, rng)
            if chosen is not None:
                ends[row], values[row] = tokens[whole[chosen]], strengths[whole[chosen]]
            task.advance(1)
    return ends, values


def draw(strengths: np.ndarray, scoring: np.ndarray, pools: Pools, rng: np.random.Generator) -> np.ndarray | None:
    """The firings of one latent, strengths float [c], scoring bool [c] -> int64 [K], those that are drawn.

    None where there are too few.

    No firing is drawn twice. Fifths: c // 5 each of the firings in falling order, the last with what is left; ties to
    the earlier.
    """
    train = _fifths(strengths, np.flatnonzero(~scoring))
    rest = [rng.permutation(fifth) for fifth in _fifths(strengths, np.flatnonzero(scoring))]
    counts = [pools.train_top, *[pools.train_each] * (FIFTHS - 1)]
    extra = [pools.detect, *[0] * (FIFTHS - 2), pools.boundary]
    wanted = [*counts, *(pools.fuzz_each + more for more in extra)]
    if any(len(fifth) < count for fifth, count in zip([*train, *rest], wanted, strict=True)):
        return None
    chosen = [rng.choice(fifth, count, replace=False) for fifth, count in zip(train, counts, strict=True)]
    fuzz = rng.permutation(np.concatenate([fifth[: pools.fuzz_each] for fifth in rest]))
    after = [fifth[pools.fuzz_each :][:more] for fifth, more in zip(rest, extra, strict=True)]
    return np.concatenate([*chosen, fuzz, *after]).astype(np.int64)


def _fifths(strengths: np.ndarray, firings: np.ndarray) -> list[np.ndarray]:
    ordered = firings[np.argsort(-strengths[firings], kind="stable")]
    size = max(1, len(ordered) // FIFTHS)
    return [ordered[size * fifth : size * (fifth + 1) if fifth < FIFTHS - 1 else None] for fifth in range(FIFTHS)]


def _window_tokens(text: Text, ends: np.ndarray, length: int) -> tuple:
    """The tokens of windows, as `write_safetensors` takes them: int32 [*ends.shape, L], a latent's at a time."""
    before = np.arange(length) - (length - 1)
    return (*ends.shape, length), np.dtype("<i4"), (text.tokens[row[..., None] + before].astype("<i4") for row in ends)


def _write(folder: Path, label: str, tokens: tuple, values: np.ndarray, latents: np.ndarray, pools: Pools) -> None:
    """Writes an arm's two files. tokens: of the windows [m, K, L], as `write_safetensors` takes them."""
    tensors = {
        "tokens": tokens,
        "peak_vals": (values.shape, values.dtype, [values]),
        "feature_indices": (latents.shape, latents.dtype, [latents]),
    }
    write_safetensors(folder / f"{label}.safetensors", tensors)
    n_features, total, context = tokens[0]
    sizes = {"n_features": n_features, "K_total": total, **pools.sizes, "ctx_len": context}
    write_json(folder / f"{label}_meta.json", {"label": label, **sizes, "feature_indices": latents.tolist()})
