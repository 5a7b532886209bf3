"""Arm folders with firings drawn by hand, for the tests of exports of activations."""

from contextlib import ExitStack, closing

import numpy as np
import torch

from metasae.measures.firing.arrays import ArrayFile, whole_folder, write_index
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import STORE
from metasae.sae.sae import SAE, SAEConfig

HOSTILE = (
    "",
    "\n",
    "\r\n",
    '"',
    "\\",
    "\0",
    " <script>",
    "\u2028",
    "\ud83d",
    "�",
    "</s>",
    "{}",
    "naïve",
    " 🦙",
    "\x1b[31m",
)


class Tokenizer:
    """The little of a tokenizer that is asked for. words: id -> text, taken again from the start for larger ids."""

    def __init__(self, words=tuple(f" t{i}" for i in range(50))):
        self.words = words

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [10**6]}

    def decode(self, ids):
        return "".join("a" if i == 10**6 else self.words[i % len(self.words)] for i in ids)

    def convert_ids_to_tokens(self, number):
        return self.decode([number])


def firings_of(on, values, lengths, positions=None, tokens=None) -> Firings:
    """on: bool [T, n]; values: float [T, n]; lengths: tokens of each document."""
    on = np.asarray(on, bool)
    rows, columns = np.nonzero(on)
    documents = np.repeat(np.arange(len(lengths)) * 2 + 1, lengths).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths] or [[]]) if positions is None else positions
    return Firings(
        np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64),
        columns.astype(np.int32),
        np.asarray(values)[rows, columns].astype(np.float32),
        on.shape[1],
        documents,
        (np.arange(len(on)) * 7 % 50 if tokens is None else tokens).astype(np.int32),
        positions.astype(np.int32),
    )


def random_firings(seed=0, lengths=(40, 3, 57, 1, 64, 33, 128, 41), n=13) -> Firings:
    """Latent 0 is dead, 1 always on, 2 fires once; the last document's positions jump in its middle; ties in every
    latent but 4.
    """
    rng = np.random.default_rng(seed)
    t = sum(lengths)
    on = rng.random((t, n)) < rng.uniform(0.02, 0.6, n)
    on[:, 0], on[:, 1], on[:, 2] = False, True, False
    on[t // 2, 2] = True
    values = rng.integers(1, 6, (t, n)) / 2
    values[:, 4] = rng.exponential(1.0, t) + 1e-3
    positions = np.concatenate([np.arange(length) for length in lengths])
    positions[-20:] += 9
    return firings_of(on, values, lengths, positions, rng.integers(50, size=t))


def write_store(folder, firings: Firings, sae="made by hand") -> None:
    names = ("indptr", "indices", "values", "documents", "tokens", "positions")
    with whole_folder(folder, STORE) as part, ExitStack() as stack:
        files = {name: stack.enter_context(closing(ArrayFile(part, name, STORE.arrays[name]))) for name in names}
        for name in names:
            files[name].append(getattr(firings, name))
        stack.close()
        facts = {
            "n_tokens": firings.n_tokens,
            "n_latents": firings.n_latents,
            "l0": firings.l0,
            "sae": sae,
            "split": "by hand",
            "provenance": None,
        }
        write_index(part, STORE, facts, {name: files[name].entry() for name in names})


def write_arm(folder, firings: Firings, arm="joint", seed=0, d=8, **metadata):
    """folder/firings and folder/primary, an SAE of random rows whose notes say that it is this arm."""
    write_store(folder / "firings", firings)
    notes = {
        "hook_name": "blocks.4.hook_resid_pre",
        "model_name": "maker/Small-Model",
        "dataset_path": "stories",
        "context_size": 32,
    }
    notes |= {
        "metasae": {
            "arm": arm,
            "seed": seed,
            "recipe": {"model": {"name": "maker/Small-Model"}, "text": {"source": "stories"}},
        }
    } | metadata
    sae = SAE(SAEConfig(d, firings.n_latents, k=3, metadata=notes))
    sae.init_weights(torch.Generator().manual_seed(seed + len(arm)))
    sae.threshold = torch.zeros(firings.n_latents)
    sae.save(folder / "primary")
    return folder


def entries_of(firings: Firings) -> dict[tuple[int, int], np.float32]:
    """(token, latent) -> activation, one by one."""
    entries = {}
    for token in range(firings.n_tokens):
        for place in range(firings.indptr[token], firings.indptr[token + 1]):
            entries[token, int(firings.indices[place])] = firings.values[place]
    return entries


EMPTY = firings_of(np.zeros((0, 3), bool), np.zeros((0, 3)), ())
ONE_TOKEN = firings_of([[False, True, True]], [[0, 1.5, 2.5]], (1,))
SILENT_TEXT = firings_of(np.zeros((9, 4), bool), np.zeros((9, 4)), (4, 5))
ADVERSARIAL = {
    "empty": EMPTY,
    "one token": ONE_TOKEN,
    "no firing": SILENT_TEXT,
    "one latent": firings_of(np.arange(40)[:, None] % 3 == 0, np.ones((40, 1)), (19, 21)),
    "random": random_firings(),
}
