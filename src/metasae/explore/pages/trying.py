"""Try a text: which latents of every SAE in a run fire at each of its tokens, and what the model writes with one of
them set.

This is the only part of the explorer that needs the model.
"""

import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from metasae.arms.folder import RunFolder
from metasae.encodings import readable
from metasae.errors import UserError

MOST_TOKENS = 1_000
STEERED_TOKENS = 40


class Trying:
    """text -> the latents that fire; the model and the SAEs are loaded at the first text and kept.

    The text is cut into windows as the run's documents were, each with the model's special tokens round it.
    """

    def __init__(self, run_folder: str | Path, write: Callable | None = None):
        """write: `metasae.steering.writing.written`, passed in by the caller; None: no steering."""
        self._folder, self._lock, self._write = Path(run_folder), threading.Lock(), write

    def __call__(self, text: str) -> dict:
        """{"tokens": pieces, "names": texts, "left_out": tokens beyond MOST_TOKENS,
        "saes": {name: {"fired": [[[latent, value]]]}}}.

        The pieces joined are the text. A part of a character has an empty piece, and its bytes as its name. `fired` has
        a list for every token, the strongest latent first; values are activations in the model's units. Raises
        UserError when the run has no model, or it cannot be loaded here.
        """
        from metasae.data.model.one_text import read_text
        from metasae.data.text.pieces import Pieces

        with self._lock:
            host, saes, context = self._loaded
        read = read_text(host, text, context, MOST_TOKENS)
        fired = {name: {"fired": _fired(sae, read.x)} for name, sae in saes.items()}
        pieces = Pieces(host.tokenizer)
        tokens = [readable(piece) for piece in pieces.of(read.ids)]
        names = [readable(pieces.name(int(number))) for number in read.ids]
        return {"tokens": tokens, "names": names, "left_out": read.left_out, "saes": fired}

    def steer(self, sae: str, latent: int, text: str, value: float) -> dict:
        """{"prompt", "without", "with"}: the continuation of a text without steering, and with the latent at `value`.

        value: in the model's units, 0 switches the latent off. STEERED_TOKENS tokens, the most likely one each time.
        Raises KeyError for an unknown SAE, UserError for a model that writes no text, and where steering is not
        available.
        """
        if self._write is None:
            raise UserError("this explorer was opened without steering; use `metasae explore` or `metasae steer`")
        with self._lock:
            host, saes, _ = self._loaded
        if sae not in saes:
            raise KeyError(f"no SAE '{sae}' in this run; known: {', '.join(saes)}")
        return self._write(host, saes[sae], {latent: value}, [readable(text)], STEERED_TOKENS)[0]

    @cached_property
    def _loaded(self) -> tuple:
        """(host, SAEs by name, tokens of context)."""
        from metasae.data.model.host import Host
        from metasae.recipe.recipe import Recipe

        if not (self._folder / "recipe.toml").is_file():
            raise UserError(f"no model to try a text on: {self._folder.name} has no recipe.toml")
        recipe = Recipe.stored(self._folder / "recipe.toml")
        if not recipe.reads_text:
            raise UserError("no model to try a text on: this run's activations are planted or were given in Python")
        arms = sorted(RunFolder(self._folder).trained(), key=lambda arm: arm.label)
        return Host.load(recipe.model, recipe.hook.point), {arm.label: arm.sae() for arm in arms}, recipe.text.context


def _fired(sae, x_TD) -> list[list]:
    fired = []
    for acts_N in sae.encode(x_TD):
        latents = acts_N.nonzero().flatten()
        values, order = acts_N[latents].sort(descending=True, stable=True)
        strongest = zip(latents[order].tolist(), values.tolist(), strict=True)
        fired.append([[latent, round(value, 5)] for latent, value in strongest])
    return fired
