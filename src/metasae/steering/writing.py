"""Writes text with a model as it is and with latents edited: `metasae steer`.

With `chat` a prompt is the user's message in the model's chat template, and the answer alone is steered: the tokens
that the model writes. Every token of the message and of the template keeps its own activation, including the last one.
The first written token is predicted there, so it is the same with and without steering; the edit acts after it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from metasae.data.model.chat import chat_text
from metasae.data.model.host import Host
from metasae.data.model.model_folder import model_at
from metasae.data.model.quiet import quiet
from metasae.data.text.plain import Plain
from metasae.data.text.windows import prompt_ids
from metasae.encodings import readable
from metasae.errors import UserError
from metasae.interop import load
from metasae.recipe import recipe
from metasae.sae.sae import SAE
from metasae.steering.edits import Edit, check_request
from metasae.steering.steering import checked, steer


def run_steer(
    folder: str | Path,
    edits: Sequence[str],
    prompts: Sequence[str],
    *,
    tokens: int = 40,
    point: str | None = None,
    model: str | None = None,
    error: bool = True,
    chat: bool = False,
    seed: int | None = None,
    device: str = "cpu",
) -> dict:
    """Continues prompts with the model as it is and with edited latents; the result is JSON as it is.

    folder: an SAE's. edits: as for `parse_edits`. tokens: new tokens per prompt. point, model: None takes what the SAE
    was trained on; model is a folder or a name on the hub. chat: prompts are messages of a user, and their answers
    alone are steered, as above. seed: None takes the likeliest token each time, a number samples, both times with this
    seed. Keys: model, point, edits, error, chat, seed, texts: per prompt {prompt, without, with}. Raises UserError for
    a wrong edit, an encoder, prompts that do not fit, `chat` with a model that has no chat template, and everything
    that loading and `steer` refuse.
    """
    requested = check_request(folder, edits, prompts, tokens)
    # a terminal with another encoding gives halves of characters, which cannot be printed
    prompts = [readable(prompt) for prompt in prompts]
    sae = load(folder)
    requested = checked(requested, sae)
    point = point or sae.config.metadata.get("hook_name")
    if not point:
        raise UserError(f"{folder} does not say where it was trained (metadata.hook_name); give the hook point")
    host = Host.load(_model_of(sae, model), point, device)
    texts = written(host, sae, requested, prompts, tokens, error=error, chat=chat, seed=seed)
    request = {"edits": list(edits), "error": error, "chat": chat, "seed": seed}
    return {"model": host.name, "point": point, **request, "texts": texts}


def written(
    host: Host,
    sae: SAE,
    edits: Mapping[int, Edit | float],
    prompts: Sequence[str],
    tokens: int,
    *,
    error: bool = True,
    chat: bool = False,
    seed: int | None = None,
) -> list[dict[str, str]]:
    """For every prompt {prompt, without, with}: `tokens` tokens after it, without and with the edited latents.

    Arguments as for `run_steer`, with a model and an SAE that are loaded already. Raises UserError for an encoder,
    prompts that do not fit, and everything that `steer` refuses.
    """
    ids, mask = _encoded(host, prompts, tokens, chat)
    without = _continued(host, ids, mask, tokens, seed)
    with steer(host, sae, edits, host.point, error, start=ids.shape[1] if chat else 0):
        steered = _continued(host, ids, mask, tokens, seed)
    return [
        {"prompt": prompt, "without": plain, "with": edited}
        for prompt, plain, edited in zip(prompts, without, steered, strict=True)
    ]


def _model_of(sae: SAE, model: str | None) -> recipe.Model:
    """The model given, or the one in the SAE's metadata: in metasae's own recipe, or in another library's model_name.
    It is never one that brings code of its own.
    """
    metadata = sae.config.metadata
    if model is None and (ours := metadata.get("metasae", {}).get("recipe")):
        # the author of an SAE must not decide whether a model's code is run here
        return recipe.Recipe.load({"model": ours.get("model", {})}, {"model.trust_remote_code": False}).model
    name = model or metadata.get("model_name")
    if not name:
        raise UserError("the SAE does not say which model it was trained on (metadata.model_name); give the model")
    return model_at(name)


def _encoded(host: Host, prompts: Sequence[str], tokens: int, chat: bool) -> tuple[Tensor, Tensor]:
    """(ids, mask) int64 [b, t] of the prompts, padded on the left; `tokens` more must fit after them."""
    if not host.causal:
        raise UserError(
            f"'{host.name}' is an encoder and writes no text; use `with metasae.steer(...)` round its forward pass"
        )
    if chat:
        plain = Plain(host.tokenizer)
        encoded = plain.ids([chat_text(plain, [{"role": "user", "content": text}], host.name) for text in prompts])
    else:
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
    return ids, mask


@torch.no_grad()
def _continued(host: Host, ids: Tensor, mask: Tensor, tokens: int, seed: int | None) -> list[str]:
    """The text that the model writes after every prompt; the random state outside is not changed."""
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
    return host.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
