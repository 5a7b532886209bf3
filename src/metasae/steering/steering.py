"""Steering: latents are set, added to, scaled or ablated while the model runs.

With z = encode(x) at the hook point, z' the edited activations, and std that of the token where the SAE normalises per
token (else 1), a steered token goes on as

    x' = x + std (z' - z) W_dec                 the SAE's reconstruction error x - decode(z) is kept, or
    x' = decode(z) + std (z' - z) W_dec         without it: decode(z')

In the first form only the edited latents are encoded, and a token whose activations stay as they were keeps x to the
bit. All of it is computed in fp32 and cast back to the model's dtype; which latents fire is exact up to the rounding of
that product.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from metasae.data.model import calls, hooks
from metasae.data.model.host import Host
from metasae.data.model.quiet import quiet
from metasae.data.text.windows import prompt_ids
from metasae.encodings import readable
from metasae.errors import UserError
from metasae.interop import load
from metasae.recipe import recipe
from metasae.sae.sae import SAE, SAEConfig
from metasae.steering.edits import Edit, Set, check_edit, check_request


@contextmanager
def steer(
    model: nn.Module | Host,
    sae: SAE,
    edits: Mapping[int, Edit | float],
    point: str | None = None,
    error: bool = True,
    keep: Sequence[int] | None = None,
) -> Iterator[None]:
    """While open, every forward pass and every `generate` of the model runs with the edited latents.

    model: a transformers model, or a Host. edits: {latent: Set(3.0) | Add(2.0) | Scale(0.5) | Ablate()}; a plain number
    sets. point: the hook point; None takes the SAE's own (`hook_name` in its metadata), then the Host's. error: whether
    the SAE's reconstruction error is added back. keep: ids of tokens that keep their own activation, as SAEs are not
    trained on special tokens; None: the Host's special tokens, or the BOS of the model's config; () for none. Padding
    keeps its own as well: it is read from the attention mask of each call, on whichever side it lies, with a cache or
    without.

    Blocks may be nested; at one point the outer one comes first. Neither the model nor the SAE is changed, and the
    hooks go whatever happens inside. Raises UserError for no or unknown latents, values that are not finite, an SAE
    without threshold or of another width, an unknown hook point, and a call in which padding or special tokens cannot
    be told.
    """
    module = model.model if isinstance(model, Host) else model
    place = _place(model, module, point or sae.config.metadata.get("hook_name"))
    edits = _checked(edits, sae)
    device = next(place.module.parameters(), next(module.parameters())).device
    edited = _subset(sae, list(edits), device)
    whole = None if error else _subset(sae, range(sae.n_latents), device)

    with _rows_of_call(module, place, _kept_ids(model, module, keep)) as rows:

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


def _checked(edits: Mapping[int, Edit | float], sae: SAE) -> dict[int, Edit]:
    """Every edit as an object. Raises UserError for edits that this SAE cannot take."""
    if sae.threshold is None:
        raise UserError("this SAE has no threshold yet; calibrate it first (metasae.measures.firing.calibrate)")
    if sae.config.rule == "topk":
        raise UserError(
            "this SAE keeps the k largest latents of each token, which the edited latents alone do not tell; "
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

    edited: the edited latents; whole: all of them, where the error goes.
    """
    with torch.autocast(edited.W_dec.device.type, enabled=False):
        x32 = x.to(edited.W_dec.device, torch.float32)
        codes = edited.encode(x32)
        change = torch.stack([edit(z) - z for edit, z in zip(edits, codes.acts.unbind(-1), strict=True)], -1)
        step = change @ edited.W_dec
        step = step if codes.std is None else step * codes.std
        moved = (x32 if whole is None else whole(x32)) + step
        if whole is None:
            rows = rows & (change != 0).any(-1).to(rows.device)
    return torch.where(rows[..., None].to(x.device), moved.to(x), x)


@contextmanager
def _rows_of_call(model: nn.Module, place: hooks.Place, keep: list[int]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives rows(x [b, t, d]) -> bool [b, t]: the tokens of the call under way that are neither padding nor kept."""
    reader = _reader(model, place)
    signature = inspect.signature(reader.forward)
    under_way: list[Tensor] = []

    def before(_module, args, kwargs):
        under_way[:] = [calls.steerable(calls.arguments_of(signature, args, kwargs), keep)]

    def after(*_):
        under_way.clear()

    def rows(x: Tensor) -> Tensor:
        here, tokens = tuple(x.shape[:-1]), tuple(under_way[0].shape) if under_way else None
        if tokens != here:
            why = "ran by itself" if tokens is None else f"holds {here} rows for {tokens} tokens"
            raise UserError(
                f"'{place.path}' {why}, so its tokens cannot be told; "
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

    Wrappers may call the ones outside it in a way that leaves their hooks out.
    """
    parts = place.path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        if {"input_ids", "attention_mask"} <= inspect.signature(module.forward).parameters.keys():
            return module
    raise UserError(f"{type(model).__name__} takes no input_ids and attention_mask; steer takes a transformers model")


def run_steer(
    folder: str | Path,
    edits: Sequence[str],
    prompts: Sequence[str],
    *,
    tokens: int = 40,
    point: str | None = None,
    model: str | None = None,
    error: bool = True,
    seed: int | None = None,
    device: str = "cpu",
) -> dict:
    """Continues prompts with the model as it is and with edited latents; the result is JSON as it is.

    folder: an SAE's. edits: as for `parse_edits`. tokens: new tokens per prompt. point, model: None takes what the SAE
    was trained on; model is a folder or a name on the hub. seed: None takes the likeliest token each time, a number
    samples, both times with this seed. Keys: model, point, edits, error, seed, texts: per prompt {prompt, without,
    with}. Raises UserError for a wrong edit, an encoder, prompts that do not fit, and whatever loading and `steer`
    refuse.
    """
    requested = check_request(folder, edits, prompts, tokens)
    # a terminal of another encoding gives halves of characters, which cannot be printed either
    prompts = [readable(prompt) for prompt in prompts]
    sae = load(folder)
    requested = _checked(requested, sae)
    point = point or sae.config.metadata.get("hook_name")
    if not point:
        raise UserError(f"{folder} does not say where it was trained (metadata.hook_name); give the hook point")
    host = Host.load(_model_of(sae, model), point, device)
    without = _continued(host, prompts, tokens, seed)
    with steer(host, sae, requested, point, error):
        steered = _continued(host, prompts, tokens, seed)
    texts = [
        {"prompt": prompt, "without": plain, "with": edited}
        for prompt, plain, edited in zip(prompts, without, steered, strict=True)
    ]
    return {"model": host.name, "point": point, "edits": list(edits), "error": error, "seed": seed, "texts": texts}


def _model_of(sae: SAE, model: str | None) -> recipe.Model:
    """The model given, or the one that the SAE's metadata name: our own recipe, or another library's model_name.

    Never one that brings code of its own.
    """
    metadata = sae.config.metadata
    if model is None and (ours := metadata.get("metasae", {}).get("recipe")):
        # whoever wrote the SAE does not decide whether a model's code is run here
        return recipe.Recipe.load({"model": ours.get("model", {})}, {"model.trust_remote_code": False}).model
    name = model or metadata.get("model_name")
    if not name:
        raise UserError("the SAE does not say which model it was trained on (metadata.model_name); give the model")
    return recipe.Model(path=name) if name.startswith("package:") else recipe.Model(name=name)


@torch.no_grad()
def _continued(host: Host, prompts: Sequence[str], tokens: int, seed: int | None) -> list[str]:
    """The model's continuation of every prompt, padded on the left, without touching the random state outside."""
    if not host.causal:
        raise UserError(
            f"'{host.name}' is an encoder and writes no text; use `with metasae.steer(...)` round its forward pass"
        )
    encoded = [[*host.frame.prefix, *prompt_ids(host.tokenizer, prompt, host.frame)] for prompt in prompts]
    longest, shortest = max(map(len, encoded)), min(map(len, encoded))
    if not shortest:
        raise UserError("a prompt is empty and this model has no BOS token to start from; give some text")
    if host.max_context and longest + tokens > host.max_context:
        raise UserError(
            f"a prompt of {longest} tokens and {tokens} new ones do not fit into the model's {host.max_context}; "
            "shorten one of them"
        )
    ids = torch.tensor([[host.pad_id] * (longest - len(row)) + row for row in encoded], device=host.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=host.device)
    devices = range(torch.cuda.device_count()) if host.device.type == "cuda" else ()
    with torch.random.fork_rng(devices), quiet():
        torch.manual_seed(0 if seed is None else seed)
        out = host.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=seed is not None,
            num_beams=1,
            pad_token_id=host.pad_id,
        )
    return host.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
