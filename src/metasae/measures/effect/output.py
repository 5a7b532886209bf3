"""The model's final output when the hooked activation is replaced by a reconstruction.

Three replacements on the same held-out windows: the SAE's reconstruction, the mean activation and zero. Special
positions (BOS, [CLS], [SEP]) and tokens that are left out keep their own activation throughout, as the SAE never saw
them in training. Neither they nor the predictions at them are in any average.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metasae.data.model.host import Host
from metasae.data.model.readout import LOGITS_AT_ONCE, WholeLogits
from metasae.data.split import Split, head, in_text
from metasae.data.text.windows import Window, pad
from metasae.measures.effect.effects import Batch, CausalEffect, EncoderEffect, n_tokens_of
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.selection import Screen, batch_topk_reconstruction
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.sae.sae import SAE

# Clean states of the model are kept between SAEs up to this many numbers.
KEPT_NUMBERS = 2**26


def windows_of(split: Split | Firings, n_tokens: int, room: int) -> list[Window]:
    """The first n_tokens tokens of a split as the windows they were harvested in.

    A window ends where the document changes, where positions do not go on by one, and at every multiple of `room`, the
    number of a document's own tokens in a window. Tokens that are left out stand in the windows and do not count.
    """
    text, own = (split, None) if isinstance(split, Firings) else in_text(head(split, n_tokens))
    tokens, documents, positions = (
        np.asarray(column)[:n_tokens] if own is None else np.asarray(column)
        for column in (text.tokens, text.documents, text.positions)
    )
    if not len(tokens):
        return []
    goes_on = (np.diff(documents) == 0) & (np.diff(positions) == 1) & (positions[1:] % room != 0)
    starts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    ends = np.append(starts[1:], len(tokens))
    return [
        Window(tokens[a:b], int(documents[a]), int(positions[a]), None if own is None else own[a:b])
        for a, b in zip(starts, ends, strict=True)
    ]


@dataclass(frozen=True)
class OutputReference:
    """The model's output on some windows without any SAE: clean, mean-ablated and zero-ablated.

    The same for every SAE of a run.
    """

    batches: tuple[Batch, ...]
    effect: CausalEffect | EncoderEffect


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
    UserError when the model's own cross-entropy is above log(vocabulary size): then these are not the windows that it
    was trained to read.
    """
    windows = windows_of(split, n_tokens, host.frame.room(context))
    ablations = {"mean": lambda x: mean.to(x).expand_as(x), "zero": torch.zeros_like}
    effect = CausalEffect(host.readout) if host.causal and windows else EncoderEffect()
    batches, room = [], KEPT_NUMBERS
    name, together = "model output, clean and ablated", _batches(windows, host, context, batch_tokens)
    own_tokens = sum(map(len, windows))
    for some in tracked(progress, together, name, own_tokens, size=lambda some: sum(map(len, some))):
        batch = Batch(*pad(some, host.frame, host.pad_id), torch.tensor([window.document for window in some]))
        clean = _state(host, batch)
        changed = {name: _state(host, batch, ablation) for name, ablation in ablations.items()}
        batch.piece = effect.piece(clean, changed, batch)
        room -= clean.numel()
        batch.clean = clean if room >= 0 else None
        batches.append(batch)
    effect.check([batch.piece for batch in batches])
    return OutputReference(tuple(batches), effect)


@torch.no_grad()
def output_effect(
    host: Host, sae: SAE, reference: OutputReference, progress: Progress = SILENT, batch_topk: bool = False
) -> dict:
    """The output part of `fidelity` in measures.json, on the windows of `reference`, which the same host made. The
    model runs once for each rule, and once more where the reference did not keep its clean states.

    Encoders: cosine distance 1 - cos(clean, changed) of the last hidden state, mean over tokens, and of its mean over
    each whole window (`pooled`; special tokens take part in that mean, as in sentence embeddings).
    Causal models: cross-entropy of the next token in nats, of every token of a document but a window's first; ce_delta
    = ce_sae - ce_clean; ce_recovered = (ce_zero - ce_sae) / (ce_zero - ce_clean); kl = KL(clean || with SAE) in nats.
    The SAE works at its thresholds; batch_topk: the paper's rule as well, k * B entries of each batch of windows, under
    keys that end with `_batch_topk`. leave_one_out: key -> the number without each block of documents in turn
    (`metasae.measures.firing.firings`).
    """
    screen = Screen(sae, sae.threshold)
    rules = {"sae": screen.reconstruct}
    if batch_topk:
        rules["batch_topk"] = partial(batch_topk_reconstruction, sae)
    effect, pieces, name = reference.effect, [], "model output with the SAE in place"
    n_tokens = sum(map(_n_own, reference.batches))
    for batch in tracked(progress, reference.batches, name, n_tokens, size=_n_own):
        clean = _state(host, batch) if batch.clean is None else batch.clean
        with_sae = effect.piece(clean, {name: _state(host, batch, rule) for name, rule in rules.items()}, batch)
        # the numbers of the reference stay as they are, and come first
        pieces.append([known | own | known for known, own in zip(batch.piece, with_sae, strict=True)])
    return {
        **effect.result(pieces),
        "output_tokens": n_tokens_of(pieces),
        "output_windows": sum(len(batch.ids) for batch in reference.batches),
        "output_note": "special positions and tokens that are left out keep their own activation; windows are those of "
        "the harvest",
    }


def _n_own(batch: Batch) -> int:
    return int(batch.own.sum())


def _state(host: Host, batch: Batch, replacement: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What the effect is measured on: an encoder's output, or what a causal model makes logits of. [b, t, D].

    replacement: [N, d] -> [N, d], at the windows' own positions; the clean activation elsewhere.
    """

    def change(x: Tensor) -> Tensor:
        where, changed = batch.own.to(x.device), x.clone()
        changed[where] = replacement(x[where]).to(x)
        return changed

    run = host.before_readout if host.causal else host.output
    return run(batch.ids, batch.mask, None if replacement is None else change)


def _batches(windows: list[Window], host: Host, context: int, batch_tokens: int) -> Iterator[list[Window]]:
    """Batches of windows of like length, so that there is little padding; the size of whole logits limits a batch."""
    at_once, ordered = max(1, batch_tokens // context), sorted(windows, key=len)
    if host.causal and isinstance(host.readout, WholeLogits):
        at_once = min(at_once, max(1, LOGITS_AT_ONCE // (context * host.readout.n_vocabulary)))
    for start in range(0, len(ordered), at_once):
        yield ordered[start : start + at_once]
