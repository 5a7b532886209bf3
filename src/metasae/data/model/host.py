"""The language model whose activations are read: a plain Hugging Face model with a forward hook."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from metasae.data.model import hooks
from metasae.data.model.gguf_folder import GGUFNote
from metasae.data.model.loading import load_model
from metasae.data.model.model_folder import local_folder
from metasae.data.model.readout import LinearReadOut, WholeLogits, agrees, readout_of
from metasae.data.text.plain import special_tokens
from metasae.data.text.text import state_of_file
from metasae.data.text.windows import Frame
from metasae.errors import UserError
from metasae.ranks.lanes import side_by_side
from metasae.recipe import recipe

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
# These models count positions from the one after the padding id, so they lose the first two.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


class Host:
    """A model, its tokenizer and one hook point.

    `d`: width of the hooked tensor. `causal`: whether the model predicts the next token. `bos_id`: the id every window
    starts with, or None; bos: as `model.bos` of a recipe. `special_ids`: of tokens that are no text. `gguf`: where the
    model's numbers come from, None for one that was no GGUF file. Windows given to `activations` and `output` are
    padded on the right.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        point: str,
        causal: bool,
        name: str = "",
        folder: Path | None = None,
        bos: bool | str = "auto",
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.point, self.causal = tokenizer, point, causal
        self._folder, self._bos, self.gguf = folder, bos, GGUFNote.of(folder)
        text_config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        n_layers = getattr(text_config, "num_hidden_layers", None)
        self.name = name or type(model).__name__
        if not n_layers:
            raise UserError(f"'{self.name}' is a {model.config.model_type} model, not one stack of transformer layers")
        self._place = hooks.resolve(model, point, model.config.model_type, n_layers)
        self.frame = Frame.of(tokenizer, causal, bos)
        self.bos_id = self.frame.prefix[0] if self.frame.prefix else None
        self.pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.special_ids = special_ids(tokenizer)
        limit = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
        self.max_context = limit - 2 if limit and text_config.model_type in _OFFSET_POSITIONS else limit

    @classmethod
    def load(cls, model: recipe.Model, point: str, device: str | torch.device = "cpu") -> "Host":
        """Loads a model from a folder, an installed package or the hub.

        Raises UserError for a missing folder, package or hub repository, a model that is not one stack of transformer
        layers, an unknown hook point, and a BOS that is asked for but missing.
        """
        loaded, tokenizer, causal = load_model(model, torch.device(device))
        return cls(loaded, tokenizer, point, causal, model.source, local_folder(model), model.bos)

    def at(self, point: str) -> "Host":
        """The same loaded model at another hook point. Raises UserError for an unknown one."""
        return Host(self.model, self.tokenizer, point, self.causal, self.name, self._folder, self._bos)

    @property
    def in_words(self) -> str:
        """The model's name, and whether its numbers were quantised."""
        return self.name if self.gguf is None else f"{self.gguf.file} (quantised, {self.gguf.quantisation})"

    @property
    def device(self) -> torch.device:
        """The device for inputs. Parameters that a device map keeps elsewhere between calls are on `meta` and do not
        count.
        """
        return next((p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @cached_property
    def d(self) -> int:
        """Width of the hooked tensor, measured on one window of two tokens."""
        return self.activations(torch.full((1, 2), self._first_id), torch.ones(1, 2, dtype=torch.long)).shape[-1]

    @property
    def _first_id(self) -> int:
        return self.pad_id if self.bos_id is None else self.bos_id

    @cached_property
    def fingerprint(self) -> str:
        """A hash over configuration, weights, tokenizer, hook point and dtype: equal hosts give equal activations."""
        state = hashlib.blake2b(digest_size=16)
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _NOT_IDENTITY}
        identity = [config, self.point, str(self.dtype), self.frame.prefix, self.frame.suffix]
        if self.gguf is not None:
            identity.append(asdict(self.gguf))
        state.update(json.dumps(identity, sort_keys=True, default=str).encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            vocabulary = self.tokenizer.get_vocab()
        else:
            # truncation and padding are settings of the last call, not of the tokenizer
            vocabulary = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
        state.update(json.dumps(vocabulary, sort_keys=True).encode())
        commit = getattr(self.model.config, "_commit_hash", None)
        if self._folder is not None:
            for file in sorted(self._folder.iterdir()):
                if file.suffix in (".safetensors", ".bin"):
                    state.update(file.name.encode())
                    state_of_file(state, file)
        elif commit:
            state.update(commit.encode())
        else:
            for name, tensor in self.model.state_dict().items():
                state.update(f"{name}{tuple(tensor.shape)}".encode())
                state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return state.hexdigest()

    def activations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask int64 [b, t] -> the hooked tensor [b, t, d]. The model stops after the hooked layer."""
        return activations_at([self], ids, mask)[0]

    @torch.no_grad()
    def output(self, ids: Tensor, mask: Tensor, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """ids, mask int64 [b, t] -> logits [b, t, V] (causal) or the last hidden state [b, t, D] (encoders).

        `replace` takes the hooked tensor [b, t, d] and returns the one with which the model continues. Raises
        ValueError for another shape.
        """
        with self._replaced(replace):
            output = self._run(ids, mask)
            return output.logits if self.causal else output.last_hidden_state

    @torch.no_grad()
    def before_readout(self, ids: Tensor, mask: Tensor, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """As `output` of a causal model, but the last hidden state [b, t, D], from which `readout` makes the logits."""
        if isinstance(self.readout, WholeLogits):
            return self.output(ids, mask, replace)
        with self._replaced(replace):
            return self._last_hidden(ids, mask)

    @cached_property
    def readout(self) -> LinearReadOut | WholeLogits:
        """The map from `before_readout` to a causal model's logits, checked against the model's own logits on a short
        window.
        """
        ids, mask = torch.tensor([[self._first_id, self.pad_id, self._first_id]]), torch.ones(1, 3, dtype=torch.long)
        logits = self.output(ids, mask)[0]
        linear = readout_of(self.model)
        # weights that a device map keeps elsewhere between calls (on `meta`) cannot be multiplied with here
        usable = linear is not None and not linear.weight.is_meta
        if usable and agrees(linear, self._last_hidden(ids, mask)[0], logits.to(linear.weight.device)):
            return linear
        return WholeLogits(logits.shape[-1])

    def _last_hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[b, t, D]: the input of the model's output embedding; the model stops there."""

        def stop(module, args) -> None:
            raise hooks.Reached(args[0].to(module.weight.device))

        handle = self.model.get_output_embeddings().register_forward_pre_hook(stop)
        try:
            self._run(ids, mask)
        except hooks.Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise UserError(
            f"{type(self.model).__name__} never runs its output embedding, so its cross-entropy cannot be measured"
        )

    def _replaced(self, replace: Callable[[Tensor], Tensor] | None):
        """A context in which the hooked tensor is replaced, where there is a replacement."""
        if replace is None:
            return nullcontext()

        def swap(x_BTD: Tensor) -> Tensor:
            given = replace(x_BTD)
            if given.shape != x_BTD.shape:
                raise ValueError(f"replace must keep the shape {tuple(x_BTD.shape)}, not give {tuple(given.shape)}")
            return given.to(x_BTD)

        return hooks.hooked(self._place, swap)

    def _run(self, ids: Tensor, mask: Tensor):
        ids, mask = ids.to(self.device), mask.to(self.device)
        options = {"use_cache": False} if self.causal else {}
        return self.model(input_ids=ids, attention_mask=mask, return_dict=True, **options)


def special_ids(tokenizer) -> list[int]:
    """Ids of tokens that are not text, such as BOS, separators and turns of a chat. The id of unknown text counts as
    text, unless it also has another role.
    """
    others = ("bos", "eos", "pad", "sep", "cls", "mask")
    parts = {getattr(tokenizer, f"{name}_token_id", None) for name in others}
    return sorted(set(special_tokens(tokenizer).values()) - ({tokenizer.unk_token_id} - parts))


@torch.no_grad()
def activations_at(hosts: Sequence[Host], ids: Tensor, mask: Tensor) -> list[Tensor]:
    """ids, mask int64 [b, t] -> the hooked tensor [b, t, d] of each host, from one pass that stops after the last of
    them.

    hosts: one model at several points (`Host.at`). Where a module runs more than once, its first run counts. On a
    processor every core runs some of the rows. Raises UserError for a point that the model never runs.
    """
    # all lanes run through the same hooks, as hooks belong to the module, so each lane keeps its own record
    lane = threading.local()

    def reader(number: int) -> Callable[[Tensor], Tensor]:
        def read(x_BTD: Tensor) -> Tensor:
            if number in lane.read:
                return x_BTD
            if len(lane.read) + 1 == len(hosts):
                raise hooks.Reached(x_BTD)
            lane.read[number] = x_BTD.clone()  # the model continues and may write into its own tensor
            return x_BTD

        return read

    def run(rows: tuple[Tensor, Tensor]) -> list[Tensor]:
        lane.read = {}
        try:
            hosts[0]._run(*rows)
        except hooks.Reached as reached:
            return [lane.read.get(number, reached.args[0]) for number in range(len(hosts))]
        missed = next(host for number, host in enumerate(hosts) if number not in lane.read)
        raise UserError(f"the model never runs '{missed._place.path}'; choose another hook.point")

    with ExitStack() as stack:
        for number, host in enumerate(hosts):
            stack.enter_context(hooks.hooked(host._place, reader(number)))
        if hosts[0].device.type != "cpu" or getattr(hosts[0].model, "hf_device_map", None):
            # weights that a device map moves in and out during a call are one call's at a time
            return run((ids, mask))
        lanes = min(torch.get_num_threads(), len(ids))
        parts = side_by_side(run, zip(ids.tensor_split(lanes), mask.tensor_split(lanes), strict=True))
    return [torch.cat(of_host) for of_host in zip(*parts, strict=True)] if lanes > 1 else parts[0]
