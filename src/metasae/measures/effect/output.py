"""What the model itself makes of the reconstruction: its final output when the hooked activation is replaced.

Three replacements on the same held-out windows: the SAE's reconstruction, the mean activation and zero. Special
positions (BOS, [CLS], [SEP]) keep their own activation throughout, as the SAE never saw them in training.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metasae.data.model.host import Host
from metasae.data.model.readout import LOGITS_AT_ONCE, WholeLogits
from metasae.data.split import Split
from metasae.data.text.windows import Window, pad
from metasae.measures.effect.effects import CausalEffect, EncoderEffect
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.screen import Screen
from metasae.measures.firing.selection import batch_topk_reconstruction
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE

NOTE = "special positions keep their own activation; windows are those of the harvest"
# Clean states of the model are kept between SAEs up to this many numbers.
KEPT_NUMBERS = 2**26


def windows_of(split: Split | Firings, n_tokens: int, room: int) -> list[Window]:
    """The first n_tokens tokens of a split as the windows they were harvested in.

    A window ends where the document changes, where positions do not go on by one, and at every multiple of `room`, the
    number of a document's own tokens in a window.
    """
    tokens, documents, positions = (
        np.asarray(column)[:n_tokens] for column in (split.tokens, split.documents, split.positions)
    )
    if not len(tokens):
        return []
    goes_on = (np.diff(documents) == 0) & (np.diff(positions) == 1) & (positions[1:] % room != 0)
    starts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    ends = np.append(starts[1:], len(tokens))
    return [Window(tokens[a:b], int(documents[a]), int(positions[a])) for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class _Batch:
    """Padded windows: ids, mask int64 [b, t], own bool [b, t].

    clean: the model's own state, None where too large to keep.
    """

    ids: Tensor
    mask: Tensor
    own: Tensor
    clean: Tensor | None


@dataclass(frozen=True)
class OutputReference:
    """What the model gives on some windows without any SAE: clean, mean-ablated and zero-ablated.

    The same for every SAE of a run.
    """

    batches: tuple[_Batch, ...]
    effect: CausalEffect | EncoderEffect
    n_windows: int


@torch.no_grad()
def output_reference(
    host: Host,
    split: Split,
    n_tokens: int,
    context: int,
    mean: Tensor,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> OutputReference:
    """Runs the model on the first n_tokens tokens of `split`, three passes.

    context: tokens of a window with its special tokens, as harvested. mean: [d], for the mean-ablation. Raises
    UserError when the model's own cross-entropy is above log(vocabulary size): then the windows are not what it reads.
    """
    windows = windows_of(split, n_tokens, host.frame.room(context))
    ablations = {"mean": lambda x: mean.to(x).expand_as(x), "zero": torch.zeros_like}
    effect = CausalEffect(host.readout) if host.causal and windows else EncoderEffect()
    batches, room = [], KEPT_NUMBERS
    with progress.task("the model without these activations", sum(len(window) for window in windows)) as task:
        for some in _batches(windows, _windows_at_once(host, context, batch_tokens)):
            ids, mask, own = pad(some, host.frame, host.pad_id)
            documents = np.array([window.document for window in some], dtype=np.int32)
            clean = _state(host, ids, mask)
            changed = {name: _state(host, ids, mask, _only_at(own, ablation)) for name, ablation in ablations.items()}
            effect.add(clean, changed, ids, mask, own, documents)
            room -= clean.numel()
            batches.append(_Batch(ids, mask, own, clean if room >= 0 else None))
            task.advance(int(own.sum()))
    effect.check()
    return OutputReference(tuple(batches), effect, len(windows))


@torch.no_grad()
def output_effect(
    host: Host, sae: SAE, reference: OutputReference, progress: Progress = SILENT, batch_topk: bool = False
) -> dict:
    """The output part of `fidelity` in measures.json, on the windows of `reference`, made by the same host.

    One pass where it kept clean states.

    Encoders: cosine distance 1 - cos(clean, changed) of the last hidden state, mean over tokens, and of its mean over
    each whole window (`pooled`; special tokens take part in that mean, as in sentence embeddings).
    Causal models: cross-entropy of the next token in nats, of every token of a document but a window's first; ce_delta
    = ce_sae - ce_clean; ce_recovered = (ce_zero - ce_sae) / (ce_zero - ce_clean); kl = KL(clean || with SAE) in nats.
    The SAE works at its thresholds; batch_topk: the paper's rule as well, k * B entries of each batch of windows, under
    keys that end with `_batch_topk`. leave_one_out: key -> the number without each block of documents in turn
    (`metasae.measures.firing.blocks`).
    """
    screen = Screen(sae, sae.threshold)
    rules = {"sae": screen.reconstruct}
    if batch_topk:
        rules["batch_topk"] = partial(batch_topk_reconstruction, sae)
    effect = reference.effect.copy()
    n_tokens = sum(int(batch.own.sum()) for batch in reference.batches)
    with progress.task("the model with the SAE in place", n_tokens) as task:
        for batch in reference.batches:
            ids, mask, own = batch.ids, batch.mask, batch.own
            clean = _state(host, ids, mask) if batch.clean is None else batch.clean
            changed = {name: _state(host, ids, mask, _only_at(own, rule)) for name, rule in rules.items()}
            effect.add(clean, changed, ids, mask, own)
            task.advance(int(own.sum()))
    return {
        **effect.result(),
        "output_tokens": effect.n_tokens,
        "output_windows": reference.n_windows,
        "output_note": NOTE,
    }


def _state(host: Host, ids: Tensor, mask: Tensor, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What the effect is measured on: an encoder's output, or what a causal model makes logits of. [b, t, D]."""
    return host.before_readout(ids, mask, replace) if host.causal else host.output(ids, mask, replace)


def _only_at(own: Tensor, replacement: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The replacement, [N, d] -> [N, d], at the positions own [b, t]; the clean activation elsewhere."""

    def change(x: Tensor) -> Tensor:
        where, changed = own.to(x.device), x.clone()
        changed[where] = replacement(x[where]).to(x)
        return changed

    return change


def _windows_at_once(host: Host, context: int, batch_tokens: int) -> int:
    at_once = max(1, batch_tokens // context)
    if host.causal and isinstance(host.readout, WholeLogits):
        at_once = min(at_once, max(1, LOGITS_AT_ONCE // (context * host.readout.n_vocabulary)))
    return at_once


def _batches(windows: list[Window], at_once: int) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padding."""
    ordered = sorted(windows, key=len)
    for start in range(0, len(ordered), at_once):
        yield ordered[start : start + at_once]
