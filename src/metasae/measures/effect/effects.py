"""Per-token effects of a replaced activation on a model's output, and their means with blocks of documents left out.

Cross-entropy and divergence of next-token predictions are worked out a slice of the vocabulary at a time, so that
memory stays flat. With logits a_v (clean) and b_v (changed), m a running maximum, A = logsumexp a, B = logsumexp b and
p = softmax a:

    cross-entropy of target y   B - b_y
    KL(clean || changed)        sum_v p_v (a_v - b_v) - A + B
    sum_v p_v (a_v - b_v)       sum_v e^(a_v - m) (a_v - b_v) / sum_v e^(a_v - m)

Each sum is made slice by slice and rescaled when m rises; within a slice in fp32, over slices in float64 (in fp32 on
Apple's GPUs).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from metasae.data.model.readout import LinearReadOut, WholeLogits
from metasae.device import widest
from metasae.errors import UserError
from metasae.measures.firing.firings import document_blocks

# Numbers of one slice of logits in memory at once.
NUMBERS_AT_ONCE = 2**23

Numbers = dict[str, Tensor]
ReadOut = LinearReadOut | WholeLogits


def predictions(readout: ReadOut, hidden: dict[str, Tensor], targets_N: Tensor) -> tuple[Numbers, Numbers]:
    """(ce, kl): name -> float64 [N]: cross-entropy in nats of each prediction, and its KL from the clean one (not for
    'clean').

    hidden: name -> [N, D], what the read-out makes logits of; 'clean' must be one. targets_N: int64 [N].
    """
    widest = max(end - start for start, end in readout.slices())
    rows = max(1, NUMBERS_AT_ONCE // widest)
    parts = []
    for start in range(0, max(len(targets_N), 1), rows):
        here = slice(start, start + rows)
        parts.append(_of_rows(readout, {name: h[here] for name, h in hidden.items()}, targets_N[here]))
    ce, kl = zip(*parts, strict=True)
    return _joined(ce), _joined(kl)


def _joined(parts: Sequence[Numbers]) -> Numbers:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Running:
    """Sums over slices of one set of logits: e^(a - m), and of e^(a - m) (a - b) for others b."""

    def __init__(self, targets_N: Tensor):
        shape = {"size": targets_N.shape, "dtype": widest(targets_N.device), "device": targets_N.device}
        self.highest = torch.full(fill_value=-torch.inf, **shape)
        self.total, self.target = torch.zeros(**shape), torch.zeros(**shape)
        self.moved: dict[str, Tensor] = {}

    def add(self, logits: Tensor, others: dict[str, Tensor]) -> None:
        highest = torch.maximum(self.highest, logits.max(dim=1).values.to(self.highest.dtype))
        rescale = torch.exp(self.highest - highest)
        share = torch.exp(logits - highest[:, None].float())
        self.total = self.total * rescale + share.sum(1).to(self.total.dtype)
        for name, other in others.items():
            moved = (share * (logits - other)).sum(1).to(self.total.dtype)
            self.moved[name] = self.moved.get(name, 0.0) * rescale + moved
        self.highest = highest

    def logsumexp(self) -> Tensor:
        return self.highest.float().to(self.total.dtype) + self.total.log()


def _of_rows(readout: ReadOut, hidden: dict[str, Tensor], targets_N: Tensor) -> tuple[Numbers, Numbers]:
    running = {name: _Running(targets_N) for name in hidden}
    for start, end in readout.slices():
        logits = {name: readout.logits(h, start, end) for name, h in hidden.items()}
        others = {name: values for name, values in logits.items() if name != "clean"}
        inside = ((targets_N >= start) & (targets_N < end)).nonzero().squeeze(1)
        for name, sums in running.items():
            sums.target[inside] = logits[name][inside, targets_N[inside] - start].to(sums.target.dtype)
            sums.add(logits[name], others if name == "clean" else {})
    ce = {name: sums.logsumexp() - sums.target for name, sums in running.items()}
    clean = running["clean"]
    kl = {
        name: moved / clean.total - clean.logsumexp() + running[name].logsumexp() for name, moved in clean.moved.items()
    }
    return ce, kl


ENCODER_ENDINGS = {"sae": "", "mean": "_mean_ablated", "zero": "_zero_ablated", "batch_topk": "_batch_topk"}
CAUSAL_ENDINGS = {"sae": "", "batch_topk": "_batch_topk"}


# The effects in a batch of windows, for each kind of unit (tokens first): name -> number of every unit float64, and
# "documents", the document of each unit.
Piece = list[dict[str, np.ndarray]]


@dataclass
class Batch:
    """Padded windows: ids, mask int64 [b, t], own bool [b, t], documents int64 [b].

    clean: the model's own state, None where too large to keep. piece: the numbers that take no SAE.
    """

    ids: Tensor
    mask: Tensor
    own: Tensor
    documents: Tensor
    clean: Tensor | None = None
    piece: Piece = field(default_factory=list)


def n_tokens_of(pieces: Sequence[Piece]) -> int:
    return sum(len(piece[0]["documents"]) for piece in pieces)


def _means(pieces: Sequence[dict[str, np.ndarray]]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """(means over all units, means without each block of documents in turn; none where there is a single block)."""
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    documents = columns.pop("documents")
    order = np.argsort(documents, kind="stable")
    blocks = document_blocks(documents[order])
    sizes = np.bincount(blocks)
    sums = {name: np.bincount(blocks, values[order]) for name, values in columns.items()}
    everything = {name: float(total.sum() / sizes.sum()) for name, total in sums.items()}
    left = sizes.sum() - sizes
    return everything, [
        {name: float((total.sum() - total[block]) / left[block]) for name, total in sums.items()}
        for block in range(len(sizes) if len(sizes) > 1 else 0)
    ]


class _Effect:
    """The effect of a change on one kind of model, unit by unit."""

    def piece(self, clean: Tensor, changed: dict[str, Tensor], batch: Batch) -> Piece:
        """The effects in one batch. clean, changed: [b, t, D]."""
        kinds = self._values(clean, changed, batch)
        return [{name: value.cpu().double().numpy() for name, value in values.items()} for values in kinds]

    def check(self, pieces: Sequence[Piece]) -> None:
        """Raises UserError for a reference that a model that reads its text cannot give; does nothing where no number
        shows it.
        """

    def result(self, pieces: Sequence[Piece]) -> dict:
        """Key -> number; `leave_one_out`: key -> the number without each block of documents in turn.

        Empty without tokens.
        """
        if not n_tokens_of(pieces):
            return {}
        means = [_means(kind) for kind in zip(*pieces, strict=True)]
        everything = self._numbers(*(whole for whole, _ in means))
        left_out = [self._numbers(*blocks) for blocks in zip(*(without for _, without in means), strict=False)]
        without = {key: [numbers[key] for numbers in left_out] for key in everything} if left_out else {}
        return {**everything, "leave_one_out": without}


class EncoderEffect(_Effect):
    """Cosine distances of the last hidden state, per token and of its mean over each window."""

    def _values(self, clean: Tensor, changed: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], ...]:
        mask, own = batch.mask.to(clean.device)[..., None], batch.own.to(clean.device)
        tokens = {"documents": batch.documents.repeat_interleave(batch.own.sum(1))}
        windows = {"documents": batch.documents}
        for name, state in changed.items():
            tokens[name] = cosine_distance(clean, state)[own]
            # the sum over a window: a positive factor leaves the cosine as it is
            windows[name] = cosine_distance((_wide(clean) * mask).sum(1), (_wide(state) * mask).sum(1))
        return tokens, windows

    def _numbers(self, tokens: dict[str, float], windows: dict[str, float]) -> dict[str, float]:
        key = "output_cosine_distance"
        return {
            **{key + ENCODER_ENDINGS[name]: value for name, value in tokens.items()},
            **{f"{key}_pooled" + ENCODER_ENDINGS[name]: value for name, value in windows.items()},
        }


def cosine_distance(clean: Tensor, changed: Tensor) -> Tensor:
    """Hidden states [..., D] -> 1 - cos, float64 [...]."""
    return 1 - nn.functional.cosine_similarity(_wide(clean), _wide(changed), dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(widest(x.device))


@dataclass
class CausalEffect(_Effect):
    """Cross-entropy of the next token and its divergence from the clean prediction.

    readout: see `metasae.data.model.readout`.
    """

    readout: ReadOut

    def _values(self, clean: Tensor, changed: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], ...]:
        # position t predicts token t + 1; both must be the document's own, so the prediction made at BOS is left out
        scored = batch.own[:, :-1] & batch.own[:, 1:]
        where = scored.to(clean.device)
        hidden = {name: state[:, :-1][where] for name, state in {"clean": clean, **changed}.items()}
        ce, kl = predictions(self.readout, hidden, batch.ids[:, 1:].to(clean.device)[where])
        documents = {"documents": batch.documents.repeat_interleave(scored.sum(1))}
        ce = {f"ce_{name}": value for name, value in ce.items()}
        return (documents | ce | {f"kl_{name}": value for name, value in kl.items()},)

    def check(self, pieces: Sequence[Piece]) -> None:
        """Raises UserError for a model that predicts worse than chance, and one whose cross-entropy is NaN."""
        clean, limit = self.result(pieces).get("ce_clean", 0.0), math.log(self.readout.n_vocabulary)
        if not clean <= limit:
            raise UserError(
                f"the model's own cross-entropy is {clean:.2f} nats, worse than guessing ({limit:.2f}); "
                "check model.name, model.dtype and that the cache was harvested with this model"
            )

    def _numbers(self, mean: dict[str, float]) -> dict[str, float | None]:
        clean, zero = mean["ce_clean"], mean["ce_zero"]
        numbers = {name: mean[name] for name in ("ce_clean", "ce_mean", "ce_zero", "kl_mean", "kl_zero")}
        for name, ending in CAUSAL_ENDINGS.items():
            if f"ce_{name}" not in mean:
                continue
            ce = mean[f"ce_{name}"]
            numbers |= {
                f"ce_sae{ending}": ce,
                f"ce_delta{ending}": ce - clean,
                f"ce_delta_percent{ending}": 100 * (ce - clean) / clean if clean else None,
                f"ce_recovered{ending}": (zero - ce) / (zero - clean) if zero != clean else None,
                f"kl{ending}": mean[f"kl_{name}"],
            }
        return numbers
