"""The logit lens of a causal model: the next tokens that a latent's decoder row alone makes more or less likely.

    logits(w) = U (norm(w) - norm(0)),  less their mean over the vocabulary

U is the unembedding and norm the model's last normalisation, so that its gains count and its shift does not; the length
of a row does not matter. The layers between the hook point and the end of the model are left out (nostalgebraist,
"interpreting GPT: the logit lens", 2020): a row read far from the end says little here.
"""

import json
import sqlite3

import torch
from torch import Tensor, nn

from metasae.data.model.host import Host
from metasae.data.model.readout import LinearReadOut, readout_of
from metasae.explore.store.firing_rows import token_texts
from metasae.explore.store.schema import key_of

TOP = 10
ROWS = 1024


def write_logits(store: sqlite3.Connection, sae: int, rows: Tensor, host: Host) -> None:
    """rows [n, d]. Writes nothing for a model that does not end in one linear map that takes vectors of width d."""
    readout = readout_of(host.model)
    if readout is None or readout.weight.is_meta or readout.weight.shape[1] != rows.shape[1]:
        return
    # the cap of some models bends all logits alike, so it changes no order
    up, down = lens(rows, LinearReadOut(readout.weight, None, None), last_norm(host))
    ids = torch.cat([up[0], down[0]]).unique()
    text = dict(zip(ids.tolist(), token_texts(host.tokenizer, ids.numpy()), strict=True))
    columns = {side: (ids.tolist(), values.tolist()) for side, (ids, values) in (("up", up), ("down", down))}
    for i in range(len(rows)):
        shown = {
            side: [[text[token], float(f"{value:.4g}")] for token, value in zip(ids[i], values[i], strict=True)]
            for side, (ids, values) in columns.items()
        }
        store.execute("INSERT INTO logits VALUES (?, ?)", (key_of(sae, i), json.dumps(shown)))


@torch.no_grad()
def lens(
    rows: Tensor, readout: LinearReadOut, norm: nn.Module | None, count: int = TOP
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((ids, values) of the largest logits, (ids, values) of the smallest), each [n, count], the most extreme first.

    rows [n, d].
    """
    count = min(count, readout.n_vocabulary)
    tiles: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for tile in rows.detach().float().split(ROWS):
        hidden = tile if norm is None else _through(norm, tile)
        best = [(torch.zeros(len(tile), 0, dtype=torch.int64), torch.zeros(len(tile), 0))] * 2
        total = torch.zeros(len(tile), 1)
        for start, end in readout.slices():
            logits = readout.logits(hidden, start, end)
            total += logits.sum(1, keepdim=True)
            new = torch.arange(start, end).expand(len(tile), -1)
            for side, largest in enumerate((True, False)):
                ids, values = (torch.cat(pair, dim=1) for pair in zip(best[side], (new, logits), strict=True))
                top = values.topk(min(count, values.shape[1]), dim=1, largest=largest)
                best[side] = ids.gather(1, top.indices), top.values
        for side, (ids, values) in zip(tiles, best, strict=True):
            side.append((ids, values - total / readout.n_vocabulary))
    up, down = (tuple(torch.cat(column) for column in zip(*side, strict=True)) for side in tiles)
    return up, down


def _through(norm: nn.Module, tile: Tensor) -> Tensor:
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)
    return (norm(tile.to(dtype)) - norm(torch.zeros_like(tile, dtype=dtype))).float()


@torch.no_grad()
def last_norm(host: Host) -> nn.Module | None:
    """The normalisation whose output enters the unembedding; None where something else stands before it."""
    outputs: list[tuple[Tensor, nn.Module]] = []
    entered: list[Tensor] = []
    norms = [module for module in host.model.modules() if "norm" in type(module).__name__.lower()]
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs.append((output, module))) for module in norms
    ]
    unembedding = host.model.get_output_embeddings()
    handles.append(unembedding.register_forward_pre_hook(lambda _, args: entered.append(args[0])))
    first = host.bos_id if host.bos_id is not None else host.pad_id
    try:
        host.output(torch.tensor([[first, host.pad_id]]), torch.ones(1, 2, dtype=torch.long))
    finally:
        for handle in handles:
            handle.remove()
    # a slice of the last positions is a view of the same numbers
    same = (module for output, module in reversed(outputs) if entered and torch.equal(output, entered[-1]))
    return next(same, None)
