"""The judge's replies by latent.

RUN/replies.sqlite knows questions, not latents. Which questions were asked of a latent follows from the conditions in interp.json
(windows and seed), so they are asked again, of the store instead of the judge.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.explore.store.stored_text import readable
from metasae.interp import prompts
from metasae.interp.coverage import LatentWindows, with_silent
from metasae.interp.draws import draw_activating, peaks_of
from metasae.interp.reader import Reader
from metasae.interp.replies import Ask, Reply
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent

REPLIES = "replies.sqlite"


class Judged:
    """One SAE's latents and the replies of a run."""

    def __init__(self, path: Path, interp: Mapping, text: Text, view: ByLatent):
        """text: with the seed that interp.json names. Raises UserError for a file that is no store of replies."""
        conditions = interp["conditions"]
        self.spec, self.seed = WindowSpec(**conditions["windows"]), conditions["seed"]
        self.path, self.text, self.view = path, text, view
        self._store = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        self.models = [model for (model,) in self._ask("SELECT DISTINCT model FROM replies ORDER BY model")]

    def explanation(self, latent: int) -> tuple[str, str] | None:
        """(what was said, by whom); None where nobody explained it, or not so that it could be read."""
        ask = self.question(latent)
        for model in self.models:
            said = prompts.field_of(self.reply(ask, model), "explanation")
            if isinstance(said, str) and said.strip():
                return " ".join(said.split()), model
        return None

    def question(self, latent: int) -> Ask:
        """The question that asked for a latent's explanation."""
        return prompts.explain(prompts.shown(self.text, self._windows(latent).train, self.view, latent))

    def replies(self, latent: int, keys: Sequence[str], model: str, neighbours: np.ndarray) -> list[dict]:
        """{"score", "question", "reply"} of each question that was asked for these scores of a latent.

        neighbours: the closest latents by phi.
        """
        windows = with_silent(self.text, self.view, self._windows(latent), neighbours, self.spec, self.seed)
        replies = []
        for key in keys:
            asker = _FromStore(self, model)
            Reader(asker, self.text, self.spec, self.seed).scorer(key)(self.view, [windows], None)
            replies += [
                {"score": key, "question": readable(ask.user), "reply": readable(reply.text)}
                for ask, reply in asker.asked
                if reply is not None and not ask.repeat and ask.system != prompts.EXPLAIN
            ]
        return replies

    def reply(self, ask: Ask, model: str) -> Reply | None:
        rows = self._ask("SELECT text FROM replies WHERE key = ?", ask.key(model))
        return Reply(rows[0][0]) if rows else None

    def _ask(self, sql: str, *parameters: str) -> list[tuple]:
        try:
            return self._store.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path} is no store of replies ({error}); move it away or delete it, then build again"
            ) from None

    def _windows(self, latent: int) -> LatentWindows:
        """As `activating_windows` draws them."""
        rng, seen = np.random.default_rng([self.seed, latent]), set()
        peaks = peaks_of(self.text, *self.view.latent(latent), self.spec)
        train = draw_activating(self.text, peaks, False, self.spec.train, self.spec, rng, seen)
        return LatentWindows(
            latent, train, draw_activating(self.text, peaks, True, self.spec.score, self.spec, rng, seen), {}
        )


class _FromStore:
    """In the place of an asker: answers from the store, and keeps what it was asked."""

    def __init__(self, judged: Judged, model: str):
        self._judged, self._model = judged, model
        self.asked: list[tuple[Ask, Reply | None]] = []

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        replies = [self._judged.reply(ask, self._model) for ask in asks]
        self.asked += zip(asks, replies, strict=True)
        return replies
