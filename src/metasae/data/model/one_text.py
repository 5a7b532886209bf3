"""The activations of one text that a user typed, read in the same way as training documents."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasae.data.model.host import Host
from metasae.data.text.windows import cut, pad, prompt_ids
from metasae.errors import UserError

# Windows that the model reads at a time.
_WINDOWS = 8


@dataclass(frozen=True)
class ReadText:
    """ids: int32 [T], the text's tokens without the model's special ones. x: fp32 [T, d], their activations. left_out:
    tokens after these that were not read.
    """

    ids: np.ndarray
    x: Tensor
    left_out: int


def read_text(host: Host, text: str, context: int, most: int | None = None) -> ReadText:
    """Reads the text in windows of `context` tokens, or of the most that the model takes, each with the model's special
    tokens round it. most: tokens that are read; None: all.

    Raises UserError for a text without a token.
    """
    ids = np.asarray(prompt_ids(host.tokenizer, text, host.frame), dtype=np.int32)
    if not len(ids):
        raise UserError("the tokenizer makes no token of this text; try another")
    kept = ids[:most]
    windows = list(cut(kept, 0, host.frame.room(min(context, host.max_context or context))))
    rows = []
    for first in range(0, len(windows), _WINDOWS):
        ids_BT, mask_BT, own_BT = pad(windows[first : first + _WINDOWS], host.frame, host.pad_id)
        rows.append(host.activations(ids_BT, mask_BT)[own_BT].float())
    return ReadText(kept, torch.cat(rows), len(ids) - len(kept))
