"""Embedding score: how well held-out windows in which a latent fires are told from silent ones by a sentence encoder alone, no LLM.

    c_i = sum of e(w) over the latent's training windows, e(w) the unit embedding of a window's text
    AUC_i = P(cos(e(w), c_i) > cos(e(v), c_i)) + 1/2 P(equal), w an activating, v a silent window of the scoring side

Chance is 1/2. After arXiv 2410.13928, with windows in place of an explanation. It sees what a window is about as a whole, so a latent
that reads one token whatever stands round it scores low, atomic or not.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from metasae.data.text.windows import Frame, Window, pad
from metasae.errors import UserError
from metasae.interp.coverage import LatentWindows
from metasae.interp.draws import KINDS, Windows
from metasae.interp.result import Score, as_array, auc
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress

Encoder = Callable[[Sequence[str]], np.ndarray]

BATCH = 128


def sentence_encoder(model, tokenizer, pad_id: int = 0) -> Encoder:
    """Texts -> unit rows float32 [n, D]: the mean of an encoder model's last hidden state, special tokens included.

    model: a transformers encoder, as `Host.model` of one that is not causal. Texts longer than the model reads are cut.
    """
    frame, limit = Frame.of(tokenizer, causal=False), getattr(model.config, "max_position_embeddings", 512)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [Window(np.asarray(each[: frame.room(limit)], np.int32), 0, 0) for each in ids]
        ids_BT, mask_BT, _ = pad(rows, frame, pad_id)
        device = next(model.parameters()).device
        hidden = model(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), return_dict=True
        ).last_hidden_state.float()
        weight = mask_BT.to(hidden)[..., None]
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1).clamp_min(1), dim=1).cpu().numpy()

    return encode


class Embeddings:
    """Unit embeddings of windows of one text; what a window says is embedded once, whichever latents and SAEs ask for it."""

    def __init__(self, text: Text, encoder: Encoder, length: int, batch: int = BATCH):
        self.text, self.encoder, self.length, self.batch = text, encoder, length, batch
        self._row: dict[int, int] = {}
        self._known: dict[str, int] = {}
        self._rows = np.zeros((0, 0), np.float32)

    def prepare(self, starts: Iterable[int], progress: Progress = SILENT) -> None:
        """Embeds the windows that begin there and are not embedded yet; windows with the same text once, those of like length together."""
        texts = {
            start: "".join(self.text.strings(start, self.length))
            for start in sorted({int(start) for start in starts} - self._row.keys())
        }
        new = sorted(set(texts.values()) - self._known.keys(), key=lambda text: (len(text), text))
        found = [self._rows] if len(self._rows) else []
        with progress.task("embed", len(new), "windows") as task:
            for first in range(0, len(new), self.batch):
                some = new[first : first + self.batch]
                rows = np.asarray(self.encoder(some), np.float32)
                if rows.shape[0] != len(some) or not np.isfinite(rows).all():
                    raise UserError(
                        "the sentence encoder gave something other than one finite vector per text; choose another encoder"
                    )
                found.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
                task.advance(len(some))
        self._known |= {text: len(self._known) + place for place, text in enumerate(new)}
        self._row |= {start: self._known[text] for start, text in texts.items()}
        self._rows = np.concatenate(found) if found else self._rows

    def of(self, windows: Windows) -> np.ndarray:
        """float32 [w, D], of windows that were prepared."""
        return self._rows[[self._row[int(start)] for start in windows.starts]]


def embedding_scores(
    embeddings: Embeddings, latents: Sequence[LatentWindows], silent: int, explained_by: Sequence[int] | None = None
) -> list[dict]:
    """Per latent: kind -> AUC, None for a kind with fewer than `silent` windows. All windows must have been prepared.

    explained_by: int [latents], whose training windows stand in for each latent's own (the shuffled floor); None for its own.
    """
    centres = [embeddings.of(each.train).sum(0) for each in latents]
    explained_by = range(len(latents)) if explained_by is None else explained_by
    scores = []
    for each, by in zip(latents, explained_by, strict=True):
        fires = embeddings.of(each.score) @ centres[by]
        enough = {kind: windows for kind, windows in each.silent.items() if len(windows) >= silent}
        scores.append(
            {kind: auc(fires, embeddings.of(enough[kind]) @ centres[by]) if kind in enough else None for kind in KINDS}
        )
    return scores


def starts_of(latents: Iterable[LatentWindows]) -> set[int]:
    """Where the windows of these latents begin."""
    return {
        int(start)
        for each in latents
        for part in (each.train, each.score, *each.silent.values())
        for start in part.starts
    }


def embedding_scorer(text: Text, encoder: Encoder, spec: WindowSpec):
    """A scorer for `metasae.interp.run`; it keeps the embeddings of windows from one SAE to the next."""
    embeddings = Embeddings(text, encoder, spec.length)

    def score(
        view: ByLatent, latents: Sequence[LatentWindows], floor: np.ndarray | None, progress: Progress = SILENT
    ) -> Score:
        embeddings.prepare(starts_of(latents), progress)

        def parts(explained_by: np.ndarray | None) -> dict[str, np.ndarray]:
            found = embedding_scores(embeddings, latents, spec.silent, explained_by)
            return {kind: as_array([each[kind] for each in found]) for kind in KINDS}

        return Score("embedding", parts(None), {} if floor is None else parts(floor))

    return score
