"""A causal language model in this process, from a folder or the hub, asked through its chat template.

It answers greedily: at every step it writes the likeliest token among those that keep the reply to its JSON schema
(`form.py`), so the temperature of a question is not used. Questions are padded on the left and answered a batch at a
time. Beside every token of a reply stand the log probabilities of what it was chosen among.
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from metasae.data.model.calls import caches_in
from metasae.data.model.chat import chat_text, require_template
from metasae.data.model.loading import load_model
from metasae.data.model.model_folder import local_folder, model_at
from metasae.data.text.plain import MARK, Plain
from metasae.data.text.text import state_of_file
from metasae.errors import UserError
from metasae.interp.judges.form import Form, Step, parts_of
from metasae.interp.replies import Ask, Reply


class LocalJudge:
    """place: a folder, `package:NAME/FOLDER`, or a name on the hub.

    batch: questions answered at once. dtype: as recipe.model.dtype.

    name: contains a digest of the weights, so that replies of other weights in the same place are not taken for this
    model's, and `held`, as replies of earlier releases were not held to the schema.
    """

    def __init__(self, place: str, device: str = "cpu", batch: int = 16, dtype: str = "auto"):
        """Raises UserError for a model that cannot be loaded, predicts no tokens or has no chat template."""
        where = model_at(place, dtype)
        loaded, tokenizer, causal = load_model(where, torch.device(device))
        if not causal:
            raise UserError(
                f"'{place}' does not predict tokens, so it cannot answer; name a causal model with a chat template"
            )
        require_template(tokenizer, place)
        self.model, self.tokenizer, self.batch = loaded.eval(), tokenizer, batch
        self._plain = Plain(tokenizer)
        self.name = f"local:{place} {_digest(local_folder(where), loaded)} held"
        self._room = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
        listed = [getattr(getattr(loaded, "generation_config", None), "eos_token_id", None), tokenizer.eos_token_id]
        numbers = [stop if isinstance(stop, (list, tuple)) else [stop] for stop in listed]
        # every token that ends a reply
        self._stops = set(chain(*numbers)) - {None}
        taken = inspect.signature(loaded.forward).parameters
        self._placed = "position_ids" in taken
        # logits of a whole prompt are most of the work and the memory of a small model
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    def answer_many(self, asks: Sequence[Ask]) -> list[Reply]:
        """Raises UserError for a question longer than the model reads, and when memory is short."""
        prompts = self._plain.ids([self._written(ask) for ask in asks])
        longest = max(map(len, prompts))
        if self._room is not None and longest >= self._room:
            raise UserError(
                f"a question has {longest} tokens, but {self.name.split()[0]} reads at most {self._room}; "
                "take a smaller window --length or another model"
            )
        room = None if self._room is None else self._room - longest
        limits = [ask.max_tokens if room is None else min(ask.max_tokens, room) for ask in asks]
        forms = [Form(parts_of(ask.schema, self._ids), self.tokenizer.decode, self._stops) for ask in asks]
        try:
            written = self._write(prompts, forms, limits)
        except (RuntimeError, MemoryError) as error:
            # torch's errors of this kind are RuntimeErrors, on a CPU without a class of their own
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            raise UserError(
                f"{len(asks)} questions at once do not fit into memory; take a smaller model, or a server as the judge"
            ) from None
        replies = []
        for prompt, steps, form, limit in zip(prompts, written, forms, limits, strict=True):
            cut = not form.is_whole or len(steps) > limit
            replies.append(replace(self._reply(prompt, steps[:limit]), cut=cut))
        return replies

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def rendered(self, ask: Ask) -> str:
        """The question as the chat template writes it. A template without a system message gets both messages as the
        user's.
        """
        return self._written(ask).replace(MARK, "")

    def _written(self, ask: Ask) -> str:
        """The same with the template's own special tokens marked, as a window of text may name some too."""
        name = self.name.split()[0]
        try:
            return chat_text(self._plain, ask.messages, name)
        except UserError:
            return chat_text(self._plain, [{"role": "user", "content": f"{ask.system}\n\n{ask.user}"}], name)

    @torch.no_grad()
    def _write(
        self, prompts: Sequence[Sequence[int]], forms: Sequence[Form], limits: Sequence[int]
    ) -> list[list[Step]]:
        """Per prompt the steps of a reply in its form. How a reply opens is read with its prompt. Writing stops at
        limits[i], and the tokens that close the reply may follow.
        """
        steps = [form.opening() for form in forms]
        prompts = [[*prompt, *(step.token for step in begun)] for prompt, begun in zip(prompts, steps, strict=True)]
        width, device = max(map(len, prompts)), next(self.model.parameters()).device
        missing = [width - len(prompt) for prompt in prompts]
        # the mask hides what stands before a question, so any token will do
        padded = [[0] * count + list(prompt) for count, prompt in zip(missing, prompts, strict=True)]
        ids = torch.tensor(padded, device=device)
        mask = torch.tensor([[0] * count + [1] * (width - count) for count in missing], device=device)
        running = [row for row in range(len(prompts)) if len(steps[row]) < limits[row]]
        caches, places = {}, (mask.cumsum(1) - 1).clamp_min(0)
        while running:
            # models without position ids read them off the mask
            options = {"position_ids": places, **self._last} if self._placed else self._last
            out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, return_dict=True, **caches, **options)
            # the output of a step that the next one needs is passed on under the same name
            caches = caches_in(out)
            if not caches:
                raise UserError(
                    f"{self.name.split()[0]} keeps no cache of the tokens that it has read, so it cannot answer here; "
                    "name another model"
                )
            logprobs = torch.log_softmax(out["logits"][:, -1].float(), dim=-1).cpu()
            for row in running:
                steps[row] += forms[row].write(logprobs[row], limits[row] - len(steps[row]))
            running = [row for row in running if not forms[row].is_whole and len(steps[row]) < limits[row]]
            # text after a whole reply is not read
            ids = torch.tensor([[of_row[-1].token] for of_row in steps], device=device)
            places, mask = places[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        return steps

    def _reply(self, prompt: Sequence[int], steps: Sequence[Step]) -> Reply:
        tokens = [step.token for step in steps]
        pieces = self.tokenizer.batch_decode([[token] for token in tokens])
        others = [self.tokenizer.batch_decode([[token] for token in step.others]) for step in steps]
        logprobs = tuple(
            # of two tokens with the same text the likelier one counts
            (piece, dict(reversed(list(zip(names, step.logprobs, strict=True)))))
            for piece, names, step in zip(pieces, others, steps, strict=True)
        )
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Reply(text, len(prompt), len(steps), logprobs)


def _digest(folder: Path | None, model) -> str:
    """Eight letters over the files of a folder, or the commit on the hub."""
    state = hashlib.blake2b(digest_size=4)
    if folder is not None:
        for file in sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json")):
            state.update(file.name.encode())
            state_of_file(state, file)
    state.update(str(getattr(model.config, "_commit_hash", None)).encode())
    return state.hexdigest()
