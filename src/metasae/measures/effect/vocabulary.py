"""Cross-entropy and divergence of next-token predictions, the vocabulary a slice at a time, so that memory stays flat.

With logits a_v (clean) and b_v (changed), m a running maximum, A = logsumexp a, B = logsumexp b and p = softmax a:

    cross-entropy of target y   B - b_y
    KL(clean || changed)        sum_v p_v (a_v - b_v) - A + B
    sum_v p_v (a_v - b_v)       sum_v e^(a_v - m) (a_v - b_v) / sum_v e^(a_v - m)

Each sum is made slice by slice and rescaled when m rises; within a slice in fp32, over slices in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from metasae.data.model.readout import LinearReadOut, WholeLogits

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
        shape = {"size": targets_N.shape, "dtype": torch.float64, "device": targets_N.device}
        self.highest = torch.full(fill_value=-torch.inf, **shape)
        self.total, self.target = torch.zeros(**shape), torch.zeros(**shape)
        self.moved: dict[str, Tensor] = {}

    def add(self, logits: Tensor, others: dict[str, Tensor]) -> None:
        highest = torch.maximum(self.highest, logits.max(dim=1).values.double())
        rescale = torch.exp(self.highest - highest)
        share = torch.exp(logits - highest[:, None].float())
        self.total = self.total * rescale + share.sum(1).double()
        for name, other in others.items():
            self.moved[name] = self.moved.get(name, 0.0) * rescale + (share * (logits - other)).sum(1).double()
        self.highest = highest

    def logsumexp(self) -> Tensor:
        return self.highest.float().double() + self.total.log()


def _of_rows(readout: ReadOut, hidden: dict[str, Tensor], targets_N: Tensor) -> tuple[Numbers, Numbers]:
    running = {name: _Running(targets_N) for name in hidden}
    for start, end in readout.slices():
        logits = {name: readout.logits(h, start, end) for name, h in hidden.items()}
        others = {name: values for name, values in logits.items() if name != "clean"}
        inside = ((targets_N >= start) & (targets_N < end)).nonzero().squeeze(1)
        for name, sums in running.items():
            sums.target[inside] = logits[name][inside, targets_N[inside] - start].double()
            sums.add(logits[name], others if name == "clean" else {})
    ce = {name: sums.logsumexp() - sums.target for name, sums in running.items()}
    clean = running["clean"]
    kl = {
        name: moved / clean.total - clean.logsumexp() + running[name].logsumexp() for name, moved in clean.moved.items()
    }
    return ce, kl
