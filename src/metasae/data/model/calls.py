"""Finds out from one call of a transformers model which of its tokens are padding, in any version of transformers.

transformers renamed the argument that carries the cache (`past_key_values`, then `cache`), so a cache is recognised by
its methods.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metasae.errors import UserError


def arguments_of(signature: inspect.Signature, args: Sequence, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by name. Names that the signature lacks stay: a decorator may rename them on the way in."""
    return {**dict(zip(signature.parameters, args, strict=False)), **kwargs}


def caches_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """{name: cache} of the caches of earlier tokens among a call's arguments or a model's output."""
    return {name: value for name, value in values.items() if hasattr(value, "get_seq_length")}


def steerable(call: Mapping[str, Any], keep: Sequence[int], start: int = 0) -> Tensor:
    """Arguments of a model's call -> bool [b, t]: its tokens that are neither padding nor of the ids to keep.

    start: columns of the whole text before it, those in a cache included, are left out. Raises UserError where the call
    does not show which they are.
    """
    ids, embeddings = call.get("input_ids"), call.get("inputs_embeds")
    if ids is None and embeddings is None:
        raise UserError(
            "the model was called without input_ids and inputs_embeds, so its tokens are not known; pass one of them"
        )
    if ids is None and keep:
        raise UserError(
            "the model was called without input_ids, so its special tokens are not known; "
            "pass keep=() to steer them too"
        )
    like = embeddings[..., 0] if ids is None else ids
    mask = call.get("attention_mask")
    if isinstance(mask, dict):
        # generation prepares one for each kind of layer, and None for a kind that needs none; padding is the same in
        # all
        mask = next((of_kind for of_kind in mask.values() if of_kind is not None), None)
    cache, t = next(iter(caches_in(call).values()), None), like.shape[1]
    rows = torch.ones_like(like, dtype=torch.bool)
    if mask is not None:
        rows = attended(mask, t, cache).to(like.device)
    rows = rows & (torch.arange(t, device=rows.device) >= start - _past(mask, t, cache))
    return rows & ~torch.isin(ids, torch.tensor(keep, device=ids.device)) if keep else rows


def _past(mask: Tensor | None, t: int, cache) -> int:
    """The tokens before a call's t own ones: the mask's other columns, else the cache's."""
    if mask is not None and mask.ndim == 2:
        return mask.shape[1] - t
    return 0 if cache is None else int(cache.get_seq_length())


def attended(mask: Tensor, t: int, cache) -> Tensor:
    """The attention mask of a call -> bool [b, t], whether each of its t tokens is attended to.

    mask: [b, T] over the cached tokens and the t new ones; or [b, 1, t, T], which generation prepares for a cache of
    fixed length T: there a token is padding where it does not attend to itself. A cache shorter than the text has the
    newest tokens last.
    Raises UserError for a mask of another form, and for more columns than tokens without the cache that they belong to.
    """
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, -t:].bool()
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise UserError(
            "steer reads padding from an attention mask [b, t], which this call does not have; "
            "use another attention implementation"
        )
    if cache is None and mask.shape[-1] != t:
        raise UserError(
            f"the attention mask has {mask.shape[-1]} columns for {t} tokens and the call carries no cache, "
            "so padding cannot be recognised; "
            "pass a mask [b, t], or the cache as an argument of the model"
        )
    past = 0 if cache is None else min(int(cache.get_seq_length()), mask.shape[-1] - t)
    itself = mask[:, 0].diagonal(past, dim1=1, dim2=2)
    return itself == 0 if itself.is_floating_point() else itself.bool()
