"""A causal language model in this process, from a folder or the hub, asked through its chat template.

Greedy: at every step the likeliest token, so the temperature of a question is not used. The model is not held to the
JSON schema; a reply that is no JSON counts as unreadable. Questions are padded on the left and answered a batch at a
time. The log probabilities of the likeliest tokens are kept beside every reply.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from metasae.data.model.calls import caches_in
from metasae.data.model.loading import load_model
from metasae.data.model.model_folder import local_folder
from metasae.data.text.plain import MARK, Plain
from metasae.data.text.templates import written
from metasae.data.text.text import state_of_file
from metasae.errors import UserError
from metasae.interp.replies import Ask, Reply
from metasae.recipe.recipe import Model

TOP = 5
# A reply ends at its first whole JSON object, which is looked for every so many tokens.
LOOK_EVERY = 8
# Of one row: the likeliest token, the ids of the likeliest [5] and their log p [5].
Step = tuple[int, Tensor, Tensor]


class LocalJudge:
    """place: a folder, `package:NAME/FOLDER`, or a name on the hub.

    batch: questions answered at once. dtype: as recipe.model.dtype.

    name: holds a digest of the weights, so that replies of other weights in the same place are not taken for this
    model's.
    """

    def __init__(self, place: str, device: str = "cpu", batch: int = 8, dtype: str = "auto"):
        """Raises UserError for a model that cannot be had, predicts no tokens or has no chat template."""
        where = model_at(place, dtype)
        loaded, tokenizer, causal = load_model(where, torch.device(device))
        if not causal:
            raise UserError(
                f"'{place}' does not predict tokens, so it cannot answer; name a causal model with a chat template"
            )
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"'{place}' has no chat template; name an instruction-tuned model, whose tokenizer has one")
        self.model, self.tokenizer, self.batch = loaded.eval(), tokenizer, batch
        self._plain = Plain(tokenizer)
        self.name = f"local:{place} {_digest(local_folder(where), loaded)}"
        self._room = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
        listed = [getattr(getattr(loaded, "generation_config", None), "eos_token_id", None), tokenizer.eos_token_id]
        numbers = [stop if isinstance(stop, (list, tuple)) else [stop] for stop in listed]
        # every token that ends a reply
        self._stops = set(chain(*numbers)) - {None}
        self._placed = "position_ids" in inspect.signature(loaded.forward).parameters

    def answer_many(self, asks: Sequence[Ask]) -> list[Reply]:
        """Raises UserError for a question longer than the model reads, and when memory is short."""
        prompts = self._plain.ids([self._written(ask) for ask in asks])
        longest = max(map(len, prompts))
        if self._room is not None and longest >= self._room:
            raise UserError(
                f"a question has {longest} tokens and {self.name.split()[0]} reads {self._room}; "
                "take a smaller window --length or another model"
            )
        most = max(ask.max_tokens for ask in asks)
        try:
            written = self._write(prompts, most if self._room is None else min(most, self._room - longest))
        except (RuntimeError, MemoryError) as error:
            # torch's errors of this kind are RuntimeErrors, on a CPU without a class of their own
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            raise UserError(
                f"{len(asks)} questions at once do not fit into memory; take a smaller model, or a server as the judge"
            ) from None
        return [
            self._reply(prompt, steps[: ask.max_tokens])
            for prompt, steps, ask in zip(prompts, written, asks, strict=True)
        ]

    def rendered(self, ask: Ask) -> str:
        """The question as the chat template writes it. Templates that know no system message get both as the user's."""
        return self._written(ask).replace(MARK, "")

    def _written(self, ask: Ask) -> str:
        """The same with the template's own special tokens marked, as a window of text may name some too."""
        options = {"add_generation_prompt": True, "enable_thinking": False}
        for messages in (ask.messages, [{"role": "user", "content": f"{ask.system}\n\n{ask.user}"}]):
            try:
                return written(self._plain, messages, **options)
            except Exception as error:
                # a template raises an error of its own kind where it refuses a role
                why = " ".join(str(error).split())
        raise UserError(f"the chat template of {self.name.split()[0]} fails ({why}); name another model")

    @torch.no_grad()
    def _write(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[Step]]:
        """Per prompt the steps up to its stop token."""
        width, device = max(map(len, prompts)), next(self.model.parameters()).device
        missing = [width - len(prompt) for prompt in prompts]
        # the mask hides what stands before a question, so any token will do
        padded = [[0] * count + list(prompt) for count, prompt in zip(missing, prompts, strict=True)]
        ids = torch.tensor(padded, device=device)
        mask = torch.tensor([[0] * count + [1] * (width - count) for count in missing], device=device)
        steps: list[list[Step]] = [[] for _ in prompts]
        running, caches, places = list(range(len(prompts))), {}, (mask.cumsum(1) - 1).clamp_min(0)
        for step in range(most):
            # models without position ids read them off the mask
            options = {"position_ids": places} if self._placed else {}
            out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, return_dict=True, **caches, **options)
            # what a step leaves for the next goes back under the name that it has in the output
            caches = caches_in(out)
            if not caches:
                raise UserError(
                    f"{self.name.split()[0]} keeps no cache of the tokens that it has read, so it cannot answer here; "
                    "name another model"
                )
            likeliest = torch.log_softmax(out["logits"][:, -1].float(), dim=-1).topk(min(TOP, out["logits"].shape[-1]))
            tokens, logprobs = likeliest.indices.cpu(), likeliest.values.cpu()
            for row in running:
                steps[row].append((int(tokens[row, 0]), tokens[row], logprobs[row]))
            looks = step % LOOK_EVERY == LOOK_EVERY - 1
            running = [row for row in running if not self._is_done(steps[row], looks)]
            if not running:
                break
            ids, places = likeliest.indices[:, :1], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        return steps

    def _is_done(self, steps: Sequence[Step], looks: bool) -> bool:
        """Whether the model has stopped or, where it `looks`, a JSON object is complete, after which a model may go on
        and on.
        """
        if steps[-1][0] in self._stops or not looks:
            return steps[-1][0] in self._stops
        text = self.tokenizer.decode([token for token, _, _ in steps])
        start = text.find("{")
        try:
            return start >= 0 and isinstance(json.JSONDecoder().raw_decode(text[start:])[0], dict)
        except (ValueError, RecursionError):
            return False

    def _reply(self, prompt: Sequence[int], steps: Sequence[Step]) -> Reply:
        said = [step for step in steps if step[0] not in self._stops]
        pieces = self.tokenizer.batch_decode([[token] for token, _, _ in said])
        alternatives = [self.tokenizer.batch_decode(others[:, None]) for _, others, _ in said]
        logprobs = tuple(
            (piece, {name: float(value) for name, value in reversed(list(zip(names, values, strict=True)))})
            for piece, names, (_, _, values) in zip(pieces, alternatives, said, strict=True)
        )
        text = self.tokenizer.decode([token for token, _, _ in said], skip_special_tokens=True)
        return Reply(text, len(prompt), len(steps), logprobs)


def model_at(place: str, dtype: str = "auto") -> Model:
    """A package or folder by its path, anything else by its name on the hub."""
    local = place.startswith("package:") or Path(place).expanduser().exists() or place.startswith((".", "/", "~"))
    return Model(path=place, dtype=dtype) if local else Model(name=place, dtype=dtype)


def _digest(folder: Path | None, model) -> str:
    """Eight letters over the files of a folder, or the commit on the hub."""
    state = hashlib.blake2b(digest_size=4)
    if folder is not None:
        for file in sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json")):
            state.update(file.name.encode())
            state_of_file(state, file)
    state.update(str(getattr(model.config, "_commit_hash", None)).encode())
    return state.hexdigest()
