"""The last map of a causal model, hidden state -> logits, a slice of the vocabulary at a time.

With 256,000 entries in the vocabulary the logits of a small batch take gigabytes, and no measure needs them all at
once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Entries of the vocabulary in one slice, and logits in all at once where a model can only give them whole.
SLICE = 8192
LOGITS_AT_ONCE = 2**25


class LinearReadOut:
    """logits = cap(h W^T + b), formed in fp32.

    W [V, D], b [V] or None; cap(y) = c tanh(y / c) where the model caps (Gemma 2).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, cap: float | None):
        self.weight, self.bias, self.cap = weight, bias, cap
        self.n_vocabulary = weight.shape[0]

    def logits(self, hidden_ND: Tensor, start: int, end: int) -> Tensor:
        """[N, D] -> fp32 [N, end - start]."""
        bias = None if self.bias is None else self.bias[start:end].float()
        out = nn.functional.linear(hidden_ND.float(), self.weight[start:end].float(), bias)
        return out if self.cap is None else out.div_(self.cap).tanh_().mul_(self.cap)

    def slices(self) -> Iterator[tuple[int, int]]:
        starts = range(0, self.n_vocabulary, SLICE)
        return ((start, min(start + SLICE, self.n_vocabulary)) for start in starts)


class WholeLogits:
    """For models whose logits are made in another way: the 'hidden state' is the logits themselves."""

    def __init__(self, n_vocabulary: int):
        self.n_vocabulary = n_vocabulary

    def logits(self, hidden_ND: Tensor, start: int, end: int) -> Tensor:
        """[N, V] -> fp32 [N, end - start]."""
        return hidden_ND[:, start:end].float()

    def slices(self) -> Iterator[tuple[int, int]]:
        yield 0, self.n_vocabulary


def readout_of(model: nn.Module) -> LinearReadOut | None:
    """The model's read-out where it is one linear map, perhaps capped; None where it is not.

    The caller must check it on an input.
    """
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return None
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return LinearReadOut(linear.weight, linear.bias, getattr(config, "final_logit_softcapping", None))


def agrees(readout: LinearReadOut, hidden_ND: Tensor, logits_NV: Tensor) -> bool:
    """Whether it gives the model's own logits, but for rounding in the model's dtype."""
    own = torch.cat([readout.logits(hidden_ND, start, end) for start, end in readout.slices()], dim=1)
    wanted = logits_NV.float()
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 5e-3}.get(hidden_ND.dtype, 1e-4)
    return own.shape == wanted.shape and bool((own - wanted).abs().max() <= tolerance * wanted.abs().max())
