"""What the model itself makes of the reconstruction: its final output when the hooked activation is replaced.

Three replacements on the same held-out windows: the SAE's reconstruction, the mean activation and zero. Special positions
(BOS, [CLS], [SEP]) keep their own activation throughout, as the SAE never saw them in training.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.data.windows import Window, pad
from metasae.errors import UserError
from metasae.measures.screen import Screen
from metasae.progress import SILENT, Progress

NOTE = "special positions keep their own activation; windows are those of the harvest"
LOGITS_AT_ONCE = 2**25
ROWS_AT_ONCE = 256
# Clean outputs of an encoder are kept between SAEs up to this many numbers.
KEPT_NUMBERS = 2**26


def windows_of(split, n_tokens: int, room: int) -> list[Window]:
    """The first n_tokens tokens of a split as the windows they were harvested in.

    A window ends where the document changes, where positions do not go on by one, and at every multiple of `room`, the
    number of a document's own tokens in a window.
    """
    tokens, documents, positions = (np.asarray(column)[:n_tokens] for column in (split.tokens, split.documents, split.positions))
    if not len(tokens):
        return []
    goes_on = (np.diff(documents) == 0) & (np.diff(positions) == 1) & (positions[1:] % room != 0)
    starts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    ends = np.append(starts[1:], len(tokens))
    return [Window(tokens[a:b], int(documents[a]), int(positions[a])) for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class _Batch:
    """Padded windows: ids, mask int64 [b, t], own bool [b, t]. clean: the model's own output, or None where it is too large to keep."""

    ids: Tensor
    mask: Tensor
    own: Tensor
    clean: Tensor | None


@dataclass(frozen=True)
class OutputReference:
    """What the model gives on some windows without any SAE: clean, mean-ablated and zero-ablated. The same for every SAE of a run."""

    batches: tuple[_Batch, ...]
    sums: "_CausalSums | _EncoderSums"
    n_windows: int


@torch.no_grad()
def output_reference(
    host, split, n_tokens: int, context: int, mean: Tensor, batch_tokens: int = 4096, progress: Progress = SILENT
) -> OutputReference:
    """Runs the model on the first n_tokens tokens of `split`, three passes.

    context: tokens of a window with its special tokens, as harvested. mean: [d], for the mean-ablation.
    Raises UserError when the model's own cross-entropy is above log(vocabulary size): then the windows are not what it reads.
    """
    windows = windows_of(split, n_tokens, host.frame.room(context))
    ablations = {"mean": lambda x: mean.to(x).expand_as(x), "zero": torch.zeros_like}
    sums = _CausalSums() if host.causal else _EncoderSums()
    batches, room = [], 0 if host.causal else KEPT_NUMBERS
    with progress.task("model output, ablated", sum(len(window) for window in windows)) as task:
        for batch in _batches(windows, _windows_at_once(host, windows, context, batch_tokens)):
            ids, mask, own = pad(batch, host.frame, host.pad_id)
            clean = host.output(ids, mask)
            scored = sums.scored(clean, ids, mask, own)
            sums.count(scored)
            for name, ablation in ablations.items():
                sums.add(name, host.output(ids, mask, replace=_only_at(own, ablation)), scored)
            room -= clean.numel()
            batches.append(_Batch(ids, mask, own, clean if room >= 0 else None))
            task.advance(int(own.sum()))
    sums.check()
    return OutputReference(tuple(batches), sums, len(windows))


@torch.no_grad()
def output_effect(host, sae, reference: OutputReference, progress: Progress = SILENT) -> dict:
    """The output part of `fidelity` in measures.json, on the windows of `reference`, made by the same host. One pass where it kept clean outputs.

    Encoders: cosine distance 1 - cos(clean, changed) of the last hidden state, mean over tokens, and of its mean over each
    whole window (`pooled`; special tokens take part in that mean, as in sentence embeddings).
    Causal models: cross-entropy of the next token in nats, of every token of a document but a window's first; ce_delta =
    ce_sae - ce_clean; ce_recovered = (ce_zero - ce_sae) / (ce_zero - ce_clean); kl = KL(clean || with SAE) in nats.
    """
    screen, sums = Screen(sae, sae.threshold), copy.deepcopy(reference.sums)
    with progress.task("model output", sum(int(batch.own.sum()) for batch in reference.batches)) as task:
        for batch in reference.batches:
            ids, mask, own = batch.ids, batch.mask, batch.own
            clean = host.output(ids, mask) if batch.clean is None else batch.clean
            sums.add("sae", host.output(ids, mask, replace=_only_at(own, screen.reconstruct)), sums.scored(clean, ids, mask, own))
            task.advance(int(own.sum()))
    return {**sums.result(), "output_tokens": sums.n_tokens, "output_windows": reference.n_windows, "output_note": NOTE}


def _only_at(own: Tensor, replacement: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The replacement, [N, d] -> [N, d], at the positions own [b, t]; the clean activation elsewhere."""

    def change(x: Tensor) -> Tensor:
        where, changed = own.to(x.device), x.clone()
        changed[where] = replacement(x[where]).to(x)
        return changed

    return change


def _windows_at_once(host, windows: list[Window], context: int, batch_tokens: int) -> int:
    at_once = max(1, batch_tokens // context)
    if host.causal and windows:
        ids, mask, _ = pad(windows[:1], host.frame, host.pad_id)
        vocabulary = host.output(ids, mask).shape[-1]
        at_once = min(at_once, max(1, LOGITS_AT_ONCE // (context * vocabulary)))
    return at_once


def _batches(windows: list[Window], at_once: int) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padding."""
    ordered = sorted(windows, key=len)
    for start in range(0, len(ordered), at_once):
        yield ordered[start : start + at_once]


class _EncoderSums:
    """Sums of cosine distances over tokens and over windows."""

    def __init__(self):
        self.token_sums, self.pooled_sums = {}, {}
        self.n_tokens = self.n_windows = 0

    def scored(self, clean: Tensor, ids: Tensor, mask: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `count` and `add` need to know of a batch."""
        return clean.double(), mask.to(clean.device), own.to(clean.device)

    def count(self, scored: tuple[Tensor, Tensor, Tensor]) -> None:
        self.n_tokens += int(scored[2].sum())
        self.n_windows += len(scored[2])

    def check(self) -> None:
        """Hidden states have no number that says whether they are plausible."""

    def add(self, name: str, changed: Tensor, scored: tuple[Tensor, Tensor, Tensor]) -> None:
        clean, mask, own = scored
        changed = changed.double()
        distance = 1 - nn.functional.cosine_similarity(clean, changed, dim=-1)
        pooled = 1 - nn.functional.cosine_similarity(_pooled(clean, mask), _pooled(changed, mask), dim=-1)
        self.token_sums[name] = self.token_sums.get(name, 0.0) + float(distance[own].sum())
        self.pooled_sums[name] = self.pooled_sums.get(name, 0.0) + float(pooled.sum())

    def result(self) -> dict:
        if not self.n_tokens:
            return {}
        out = {}
        for name, total in self.token_sums.items():
            ending = "" if name == "sae" else f"_{name}_ablated"
            out[f"output_cosine_distance{ending}"] = total / self.n_tokens
            out[f"output_cosine_distance_pooled{ending}"] = self.pooled_sums[name] / self.n_windows
        return out


def _pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """[b, t, D], mask [b, t] -> mean over a window's tokens [b, D]. A positive factor leaves the cosine as it is."""
    return (hidden * mask[..., None]).sum(1)


class _CausalSums:
    """Sums of cross-entropies and of the divergence from the clean prediction."""

    def __init__(self):
        self.sums = dict.fromkeys(("clean", "sae", "mean", "zero", "kl"), 0.0)
        self.n_tokens = 0
        self.vocabulary = 0

    def scored(self, clean: Tensor, ids: Tensor, mask: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(clean logits [N, V], targets [N], where bool [b, t - 1]) of the N predictions that are scored."""
        # position t predicts token t + 1; both must be the document's own, so the prediction made at BOS is left out
        where = (own[:, :-1] & own[:, 1:]).to(clean.device)
        return clean[:, :-1][where], ids[:, 1:].to(clean.device)[where], where

    def count(self, scored: tuple[Tensor, Tensor, Tensor]) -> None:
        rows, targets, _ = scored
        self.vocabulary = rows.shape[-1]
        self.n_tokens += len(targets)
        for a in range(0, len(targets), ROWS_AT_ONCE):
            self.sums["clean"] += float(
                nn.functional.cross_entropy(rows[a : a + ROWS_AT_ONCE].float(), targets[a : a + ROWS_AT_ONCE], reduction="sum")
            )

    def check(self) -> None:
        """Refuses a model that predicts worse than chance, and one whose cross-entropy is no number."""
        if self.n_tokens and not (clean := self.sums["clean"] / self.n_tokens) <= (limit := math.log(self.vocabulary)):
            raise UserError(
                f"the model's own cross-entropy is {clean:.2f} nats, worse than guessing ({limit:.2f}); "
                "check model.name, model.dtype and that the cache was harvested with this model"
            )

    def add(self, name: str, changed: Tensor, scored: tuple[Tensor, Tensor, Tensor]) -> None:
        clean_rows, targets, where = scored
        rows = changed[:, :-1][where]
        for a in range(0, len(targets), ROWS_AT_ONCE):
            part = slice(a, a + ROWS_AT_ONCE)
            log_q = rows[part].float().log_softmax(-1)
            self.sums[name] -= float(log_q.gather(1, targets[part, None]).double().sum())
            if name == "sae":
                log_p = clean_rows[part].float().log_softmax(-1)
                self.sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())

    def result(self) -> dict:
        if not self.n_tokens:
            return {}
        mean = {name: total / self.n_tokens for name, total in self.sums.items()}
        damage = mean["zero"] - mean["clean"]
        return {
            "ce_clean": mean["clean"],
            "ce_sae": mean["sae"],
            "ce_mean": mean["mean"],
            "ce_zero": mean["zero"],
            "ce_delta": mean["sae"] - mean["clean"],
            "ce_delta_percent": 100 * (mean["sae"] - mean["clean"]) / mean["clean"] if mean["clean"] else None,
            "ce_recovered": (mean["zero"] - mean["sae"]) / damage if damage else None,
            "kl": mean["kl"],
        }
