"""Steering: latents are set, added to, scaled or ablated while the model runs.

With z = encode(x) at the hook point, z' the edited activations, and std that of the token where the SAE normalises per
token (else 1), a steered token continues as

    x' = x + std (z' - z) W_dec                 the SAE's reconstruction error x - decode(z) is kept, or
    x' = decode(z) + std (z' - z) W_dec         without it: decode(z')

In the first form only the edited latents are encoded, and a token on which no edited activation changes keeps x to the
bit. Everything is computed in fp32 and cast back to the model's dtype; which latents fire is exact up to the rounding
of that product.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metasae.data.model import calls, hooks
from metasae.data.model.host import Host
from metasae.errors import UserError
from metasae.sae.sae import SAE, SAEConfig
from metasae.steering.edits import Edit, Set, check_edit


@contextmanager
def steer(
    model: nn.Module | Host,
    sae: SAE,
    edits: Mapping[int, Edit | float],
    point: str | None = None,
    error: bool = True,
    keep: Sequence[int] | None = None,
    start: int = 0,
) -> Iterator[None]:
    """A context in which every forward pass and every `generate` of the model runs with the edited latents.

    model: a transformers model, or a Host. edits: {latent: Set(3.0) | Add(2.0) | Scale(0.5) | Ablate()}; a plain number
    means Set. point: the hook point; None takes the SAE's own (`hook_name` in its metadata), then the Host's. error:
    whether the SAE's reconstruction error is added back. keep: ids of tokens that keep their own activation, as SAEs
    are not trained on special tokens; None: the Host's special tokens, or the BOS of the model's config; () for none.
    Padding keeps its own activation as well; it is found by the attention mask of each call, on either side, with a
    cache or without. start: the first column of the text that is steered, padding counted; with `input_ids.shape[1]` a
    `generate` reads its prompts without edits and is steered in what it writes. The first written token is then still
    the model's own choice, as it is predicted at the last token of the prompt.

    Contexts may be nested; at the same hook point the outer one acts first. Neither the model nor the SAE is changed,
    and the hooks are removed even after an error inside. Raises UserError for no or unknown latents, values that are
    not finite, an SAE without threshold or of another width, an unknown hook point, and a call in which padding or
    special tokens cannot be recognised.
    """
    module = model.model if isinstance(model, Host) else model
    place = _place(model, module, point or sae.config.metadata.get("hook_name"))
    edits = checked(edits, sae)
    device = next(place.module.parameters(), next(module.parameters())).device
    edited = _subset(sae, list(edits), device)
    whole = None if error else _subset(sae, range(sae.n_latents), device)

    with _rows_of_call(module, place, _kept_ids(model, module, keep), start) as rows:

        def change(x: Tensor) -> Tensor:
            if x.shape[-1] != sae.config.d_in:
                raise UserError(
                    f"the SAE reads vectors of width {sae.config.d_in}, '{place.path}' has {x.shape[-1]}; "
                    "check the hook point"
                )
            return _steered(x, rows(x), edited, list(edits.values()), whole)

        with hooks.hooked(place, change):
            yield


def _place(model: nn.Module | Host, module: nn.Module, point: str | None) -> hooks.Place:
    point = point or (model.point if isinstance(model, Host) else None)
    if not hasattr(module, "config"):
        raise UserError(f"steer takes a transformers model or a Host, not a {type(module).__name__}")
    if not point:
        raise UserError(
            "the SAE does not say where it was trained (hook_name in its metadata); "
            "pass point='blocks.4.hook_resid_pre' or the like"
        )
    n_layers = module.config.get_text_config().num_hidden_layers
    return hooks.resolve(module, point, module.config.model_type, n_layers)


def _kept_ids(model: nn.Module | Host, module: nn.Module, keep: Sequence[int] | None) -> list[int]:
    if keep is not None:
        return list(keep)
    if isinstance(model, Host):
        return [*model.frame.prefix, *model.frame.suffix]
    bos = getattr(module.config.get_text_config(), "bos_token_id", None)
    return [] if bos is None else [bos]


def checked(edits: Mapping[int, Edit | float], sae: SAE) -> dict[int, Edit]:
    """Every edit as an object. Raises UserError for edits that this SAE cannot take."""
    if sae.threshold is None:
        raise UserError("this SAE has no threshold yet; calibrate it first (metasae.measures.firing.calibrate)")
    if sae.config.rule == "topk":
        raise UserError(
            "this SAE keeps the k largest latents of each token, which cannot be found from the edited latents alone; "
            "steer one with thresholds"
        )
    if not edits:
        raise UserError("nothing to steer: give at least one edit, e.g. {17: 5.0}")
    objects = {int(latent): edit if isinstance(edit, Edit) else Set(float(edit)) for latent, edit in edits.items()}
    for latent, edit in objects.items():
        check_edit(latent, edit, sae.n_latents)
    return objects


@torch.no_grad()
def _subset(sae: SAE, latents: Sequence[int], device: torch.device) -> SAE:
    """The same SAE with these latents only, in fp32."""
    chosen = torch.as_tensor(latents, device=sae.W_dec.device)
    out = SAE(SAEConfig(sae.config.d_in, len(latents), normalize=sae.config.normalize)).to(device)
    out.W_enc.copy_(sae.W_enc[:, chosen])
    out.b_enc.copy_(sae.b_enc[chosen])
    out.W_dec.copy_(sae.W_dec[chosen])
    out.b_dec.copy_(sae.b_dec)
    out.threshold = sae.threshold.to(sae.W_dec.device)[chosen].to(device, torch.float32)
    return out


def _steered(x: Tensor, rows: Tensor, edited: SAE, edits: list[Edit], whole: SAE | None) -> Tensor:
    """x [b, t, d] with the rows bool [b, t] steered.

    edited: the edited latents; whole: all latents, where the reconstruction error is dropped.
    """
    with torch.autocast(edited.W_dec.device.type, enabled=False):
        x32 = x.to(edited.W_dec.device, torch.float32)
        codes = edited.codes(x32)
        change = torch.stack([edit(z) - z for edit, z in zip(edits, codes.acts.unbind(-1), strict=True)], -1)
        step = change @ edited.W_dec
        step = step if codes.std is None else step * codes.std
        moved = (x32 if whole is None else whole.decode(whole.codes(x32))) + step
        if whole is None:
            rows = rows & (change != 0).any(-1).to(rows.device)
    return torch.where(rows[..., None].to(x.device), moved.to(x), x)


@contextmanager
def _rows_of_call(
    model: nn.Module, place: hooks.Place, keep: list[int], start: int
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives rows(x [b, t, d]) -> bool [b, t]: the tokens of the call under way from column `start` on that are neither
    padding nor kept.
    """
    reader = _reader(model, place)
    signature = inspect.signature(reader.forward)
    under_way: list[Tensor] = []

    def before(_module, args, kwargs):
        under_way[:] = [calls.steerable(calls.arguments_of(signature, args, kwargs), keep, start)]

    def after(*_):
        under_way.clear()

    def rows(x: Tensor) -> Tensor:
        here, tokens = tuple(x.shape[:-1]), tuple(under_way[0].shape) if under_way else None
        if tokens != here:
            why = "ran by itself" if tokens is None else f"holds {here} rows for {tokens} tokens"
            raise UserError(
                f"'{place.path}' {why}, so its tokens are not known; "
                "steer calls of the whole model, at another hook point if need be"
            )
        return under_way[0]

    with (
        reader.register_forward_pre_hook(before, with_kwargs=True),
        reader.register_forward_hook(after, always_call=True),
    ):
        yield rows


def _reader(model: nn.Module, place: hooks.Place) -> nn.Module:
    """The innermost module round the place that is called with token ids.

    Wrappers may call modules outside it in a way that skips their hooks.
    """
    parts = place.path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        if {"input_ids", "attention_mask"} <= inspect.signature(module.forward).parameters.keys():
            return module
    raise UserError(f"{type(model).__name__} takes no input_ids and attention_mask; steer takes a transformers model")
