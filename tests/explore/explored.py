"""Small run folders with weights and firings, and slow obvious twins of what the explorer's store holds."""

import json
from contextlib import ExitStack, closing

import numpy as np
import torch

from metasae.measures.firing.arrays import ArrayFile, whole_folder, write_index
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import STORE
from metasae.sae.sae import SAE, SAEConfig
from sparse_firings import firings_from

LENGTHS = (40, 3, 57, 25, 64, 1, 33, 80, 41, 200)


def text(lengths=LENGTHS, vocabulary=11, seed=0, gap=True):
    """documents, tokens, positions int32 [T]; gap: positions jump within the last document."""
    documents = np.repeat(np.arange(len(lengths)) * 3, lengths).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    if gap:
        positions[-20:] += 5
    return documents, np.random.default_rng(seed).integers(vocabulary, size=len(documents)).astype(np.int32), positions


def random_firings(seed=0, n=12, lengths=LENGTHS, vocabulary=11) -> Firings:
    """Few token ids, tied strengths; latent 0 is dead, 1 always on, 2 fires once, 3 and 4 are alike."""
    rng = np.random.default_rng([seed, 1])
    places = text(lengths, vocabulary)
    t = len(places[0])
    on = rng.random((t, n)) < rng.uniform(0.02, 0.4, n)
    on[:, 0], on[:, 1], on[:, 2] = False, True, False
    on[t // 2, 2] = True
    on[:, 4] = on[:, 3]
    return firings_from(on, rng.integers(1, 9, (t, n)) / 4 + 0.5, *places)


def sae_of(n, d=8, seed=0, threshold=0.5) -> SAE:
    sae = SAE(SAEConfig(d_in=d, d_sae=n, k=2))
    sae.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(d, n, generator=torch.Generator().manual_seed(seed + 100)))
    sae.threshold = torch.full([n], float(threshold))
    return sae


def write_firings(folder, firings: Firings) -> None:
    with whole_folder(folder, STORE) as part, ExitStack() as stack:
        files = {
            name: stack.enter_context(closing(ArrayFile(part, name, dtype))) for name, dtype in STORE.arrays.items()
        }
        for name, file in files.items():
            file.append(getattr(firings, name))
        stack.close()
        facts = {"n_tokens": firings.n_tokens, "n_latents": firings.n_latents, "n_firings": len(firings.indices)}
        write_index(part, STORE, facts, {name: file.entry() for name, file in files.items()})


def write_arm(run, name, firings: Firings | None = None, n=12, seed=0, meta=False, measures=None, interp=None) -> None:
    """One arm folder; without firings only its weights."""
    folder = run / "arms" / name
    sae = sae_of(firings.n_latents if firings is not None else n, seed=seed)
    sae.save(folder / "primary")
    if meta:
        sae_of(5, seed=seed + 7, threshold=0.1).save(folder / "meta")
    if firings is not None:
        write_firings(folder / "firings", firings)
    conditions = {"sae": f"weights {name} {seed}", "n_tokens": None if firings is None else firings.n_tokens}
    (folder / "measures.json").write_text(json.dumps({"conditions": conditions, **(measures or {})}))
    if interp is not None:
        (folder / "interp.json").write_text(json.dumps(interp))


def numbered(places) -> list[str]:
    """A text in which every token of the split would read differently; one string per token id is kept."""
    return [f" t{place}" for place in np.asarray(places).tolist()]


def words_of(firings: Firings):
    return lambda places: [f" w{int(number)}" for number in firings.tokens[places]]


def of_latent(firings: Firings, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, values) of one latent, token by token."""
    tokens, values = [], []
    for token in range(firings.n_tokens):
        for entry in range(firings.indptr[token], firings.indptr[token + 1]):
            if firings.indices[entry] == latent:
                tokens.append(token)
                values.append(float(firings.values[entry]))
    return np.array(tokens, int), np.array(values)


def phi_by_hand(firings: Firings, i: int, other: Firings, j: int) -> float | None:
    """The correlation of two 0/1 variables over the tokens; None where one never varies."""
    a, b = np.zeros((2, firings.n_tokens))
    a[of_latent(firings, i)[0]] = 1
    b[of_latent(other, j)[0]] = 1
    return None if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])
