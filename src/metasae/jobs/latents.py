"""`metasae.latents`, also `sae.latents`: the latents that fire in a text, read by the model that the SAE's metadata
name.
"""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metasae.data.model.host import Host
from metasae.data.model.model_folder import model_at
from metasae.data.model.one_text import read_text
from metasae.data.text.pieces import Pieces
from metasae.encodings import readable
from metasae.errors import UserError
from metasae.jobs.conditions import HUB_NAMES
from metasae.recipe.recipe import Model, Recipe
from metasae.sae.sae import SAE

# Tokens of a window if the metadata do not say.
CONTEXT = 128
# How many rows are printed, and how many latents of each.
_ROWS, _SHOWN = 60, 5


class ReadBy(NamedTuple):
    """The model, hook point and window length (in tokens) that an SAE was trained with, as far as its metadata say."""

    model: Model | None
    point: str | None
    context: int


class Latents:
    """Which latents fire at each token of a text, and how strongly.

    tokens: T strings, whose join is the text. acts: fp32 [T, n], activations at the calibrated threshold, in the
    model's units.
    """

    def __init__(self, tokens: list[str], acts: Tensor):
        self.tokens, self.acts = tokens, acts

    def __len__(self) -> int:
        return len(self.tokens)

    def top(self, k: int = _SHOWN) -> list[list[tuple[int, float]]]:
        """For each token at most k pairs (latent, activation), the strongest first; equal activations by the latent's
        number.
        """
        strongest = []
        for acts_N in self.acts:
            latents = acts_N.nonzero().flatten()
            values, order = acts_N[latents].sort(descending=True, stable=True)
            strongest.append(list(zip(latents[order][:k].tolist(), values[:k].tolist(), strict=True)))
        return strongest

    def to_pandas(self):
        """A pandas DataFrame with a row for each token and a column for each latent that fires in the text."""
        import pandas

        fired = (self.acts > 0).any(0).nonzero().flatten()
        return pandas.DataFrame(self.acts[:, fired].cpu().numpy(), index=self.tokens, columns=fired.tolist())

    def __repr__(self) -> str:
        width = max(len(repr(token)) for token in self.tokens[:_ROWS])
        lines = [f"{token!r:<{width}}  {_in_words(pairs)}".rstrip() for token, pairs in self._rows()]
        return "\n".join([*lines, *self._rest()])

    def _repr_html_(self) -> str:
        most = float(self.acts.max()) or 1.0
        rows = []
        for token, pairs in self._rows():
            cells = "".join(
                f'<td style="background:rgba(230,140,20,{min(value / most, 1):.2f})">{latent}: {value:.3g}</td>'
                for latent, value in pairs
            )
            rows.append(f"<tr><td><code>{html.escape(token)}</code></td>{cells}</tr>")
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<table><thead><tr><th>token</th><th>latent: activation</th></tr></thead>{''.join(rows)}</table>{rest}"

    def _rows(self):
        few = Latents(self.tokens[:_ROWS], self.acts[:_ROWS])
        return zip(few.tokens, few.top(), strict=True)

    def _rest(self) -> list[str]:
        return [f"... and {len(self) - _ROWS} more tokens"] if len(self) > _ROWS else []


@torch.no_grad()
def latents(
    sae: SAE,
    text: str,
    model: str | Path | Host | nn.Module | None = None,
    *,
    tokenizer: Any = None,
    point: str | None = None,
    device: str = "cpu",
) -> Latents:
    """Reads a text with the SAE's model; returns a table of activations, token by latent.

    sae: with a threshold. text: read in windows, as the SAE's training documents were; each has the BOS and other
    special tokens of the model, which are left out of the table. model: None takes the model that the SAE's metadata
    name and keeps it loaded for the next call; otherwise a folder, package or name on the hub, a `Host`, or a
    transformers model with its `tokenizer`. point: the hook point; None takes the one in the metadata. Code that comes
    with a model from the metadata is never run.

    Raises UserError if the metadata name no model or hook point, the model cannot be loaded or has another width, the
    text has no token, or the SAE has no threshold.
    """
    if sae.threshold is None:
        raise UserError("this SAE has no threshold yet, so it is not defined which latents fire; calibrate it first")
    noted = notes_of(sae)
    with _left_as_it_was(model):
        host = _host_of(noted, model, tokenizer, point, device)
        if host.d != sae.config.d_in:
            raise UserError(
                f"'{host.point}' of {host.name} gives vectors of width {host.d}, and this SAE reads {sae.config.d_in}"
            )
        read = read_text(host, text, noted.context)
    acts = sae.encode(read.x.to(sae.W_enc.device)).cpu()
    return Latents([readable(piece) for piece in Pieces(host.tokenizer).of(read.ids)], acts)


def notes_of(sae: SAE) -> ReadBy:
    """What an SAE's metadata say of its model: for an SAE of ours its recipe, for others model_name, hook_name,
    prepend_bos and context_size.
    """
    metadata = sae.config.metadata
    notes = metadata.get("metasae")
    ours = notes.get("recipe") if isinstance(notes, dict) else None
    if isinstance(ours, dict):
        # the author of an SAE must not decide whether a model's code is run here
        values = {key: ours.get(key, {}) for key in ("model", "hook")}
        recipe = Recipe.stored(values, {"model.trust_remote_code": False})
        text = ours.get("text", {})
        named = recipe.model if recipe.model.source and text.get("source") != "planted" else None
        return ReadBy(named, recipe.hook.point, _count(text.get("context")))
    named = (metadata.get("model_name"), metadata.get("hook_name"))
    name, point = (value if isinstance(value, str) and value else None for value in named)
    if name is None:
        return ReadBy(None, point, _count(metadata.get("context_size")))
    model = model_at(HUB_NAMES.get(name, name))
    if metadata.get("prepend_bos") is False:
        model = model.model_copy(update={"bos": False})
    return ReadBy(model, point, _count(metadata.get("context_size")))


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Restores the training mode and requires_grad of a user's own model after the block."""
    if not isinstance(model, nn.Module):
        yield
        return
    training, wants = model.training, {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wants[name])


def _host_of(noted: ReadBy, model: Any, tokenizer: Any, point: str | None, device: str) -> Host:
    if isinstance(model, Host):
        return model if point is None else model.at(point)
    point = point or noted.point
    if point is None:
        raise UserError("this SAE's metadata name no hook point; pass one, as in point='blocks.4.hook_resid_pre'")
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise UserError("give the tokenizer with the model: sae.latents(text, model, tokenizer=tokenizer)")
        causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        return Host(model, tokenizer, point, causal, bos=noted.model.bos if noted.model else "auto")
    if model is None and noted.model is None:
        raise UserError(
            "this SAE's metadata name no model; pass a name or a folder, as in sae.latents(text, model='gpt2', "
            "point='...')"
        )
    bos = noted.model.bos if noted.model else "auto"
    spec = noted.model if model is None else model_at(str(model)).model_copy(update={"bos": bos})
    return _loaded(spec, point, device)


@lru_cache(maxsize=1)
def _loaded(model: Model, point: str, device: str) -> Host:
    """Loads a model and keeps the last one, as loading takes longer than reading a text."""
    return Host.load(model, point, device)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 3 else CONTEXT


def _in_words(pairs: list[tuple[int, float]]) -> str:
    return "   ".join(f"{latent}: {value:.3g}" for latent, value in pairs)
