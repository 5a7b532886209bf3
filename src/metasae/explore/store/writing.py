"""Writes the sections of a store: the rows of each from the run's weights, firings and model.

`sections.py` says which there are.
"""

import json
import sqlite3
from functools import cached_property, lru_cache

import numpy as np

from metasae.arms.folder import Arm
from metasae.data.model.host import Host
from metasae.errors import UserError
from metasae.explore.store import edges, explanations, firing_rows, logits, summary
from metasae.explore.store.open_store import StringsOf
from metasae.explore.store.schema import STORE, key_of
from metasae.explore.store.sections import Contents, Section
from metasae.interp.choice import READ
from metasae.interp.excerpts import Text
from metasae.interp.replies import ReplyStore
from metasae.measures.cofiring.partners import mutual_partners, top_partners
from metasae.measures.cofiring.splits import find_splits
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.progress.progress import Progress
from metasae.sae.sae import SAE


class Writer:
    """Writes the sections of one run's store into an open store. strings: as for `build`."""

    def __init__(self, store: sqlite3.Connection, contents: Contents, strings: StringsOf | None, progress: Progress):
        self.store, self.contents, self.progress, self._given = store, contents, progress, strings
        self._weights = lru_cache(maxsize=3)(Arm.sae)
        self._strings = lru_cache(maxsize=None)(self._read_strings)
        self._text = lru_cache(maxsize=None)(
            lambda digest: firing_rows.text_of(contents.texts[digest].firings(), self._strings(digest))
        )

    def write(self, section: Section) -> None:
        """Adds the rows of a section, by the method that is named after its kind."""
        kind = section.name.partition(":")[0]
        getattr(self, f"_write_{kind}")(*section.of)

    def _write_text(self, arm: Arm) -> None:
        digest = self.contents.prints[arm].text
        firing_rows.write_text(self.store, digest, self._text(digest))

    def _write_sae(self, arm: Arm) -> None:
        sae, prints = self._weights(arm), self.contents.prints[arm]
        threshold = np.full(sae.n_latents, np.nan) if sae.threshold is None else sae.threshold.double().cpu().numpy()
        # NaN, which SQLite keeps as NULL, where there is none
        threshold = np.where(np.isfinite(threshold), threshold, np.nan)
        view = self._view(arm) if arm.has_firings else None
        if view is not None and view.n_latents != sae.n_latents:
            raise UserError(
                f"the firings in {arm.folder} are of another SAE; delete its measures.json and firings/, and run again"
            )
        live, n_tokens = (None, None) if view is None else (int((view.counts() > 0).sum()), view.n_tokens)
        # an SAE that is there keeps its number, a new one has the next
        sql = """INSERT OR REPLACE INTO saes VALUES ((SELECT id FROM saes WHERE name = ?1), ?1, ?2, ?3, ?4, ?5,
            (SELECT id FROM texts WHERE digest = ?6), ?7, ?8, ?9, ?10)"""
        facts = (sae.n_latents, live, prints.text, n_tokens, prints.weights, arm.has_firings, arm.has_meta)
        self.store.execute(sql, (arm.label, arm.name, arm.seed, *facts))
        ((number, text),) = self.store.execute("SELECT id, text FROM saes WHERE name = ?", (arm.label,))
        with self.progress.task(f"windows and tokens of {arm.label}", sae.n_latents, "latents") as task:
            if view is None:
                firing_rows.write_bare_latents(self.store, number, threshold, task)
            else:
                firing_rows.write_latents(self.store, number, view, self._text(prints.text), text, threshold, task)
        self._write_neighbours(arm, number, sae)

    def _write_neighbours(self, arm: Arm, number: int, sae: SAE) -> None:
        rows, columns = sae.W_dec.detach().float().cpu(), sae.W_enc.detach().float().cpu().t()
        near = {edges.COSINE: edges.nearest_rows(rows), edges.ENCODER: edges.nearest_rows(columns)}
        scalars = {
            "nearest_cosine": near[edges.COSINE].first,
            "encoder_cosine": edges.encoder_decoder_cosines(sae),
        }
        if arm.has_firings:
            partners = top_partners(arm.firings().counted, edges.NEIGHBOURS, progress=self.progress)
            near[edges.PHI] = edges.Near(partners.latents, partners.phi)
            scalars["nearest_phi"] = near[edges.PHI].first
        for kind, neighbours in near.items():
            edges.write_near(self.store, number, kind, number, neighbours)
        if arm.has_meta:
            scalars["meta_e"] = edges.write_meta(self.store, number, sae, arm.meta())
        for column, values in scalars.items():
            rows = [(value, key_of(number, i)) for i, value in enumerate(values.tolist())]
            self.store.executemany(f"UPDATE latents SET {column} = ? WHERE key = ?", rows)

    def _write_interp(self, arm: Arm) -> None:
        number, interp = self._number(arm), arm.interp()
        explanations.write_scores(self.store, number, interp)
        explanations.write_senses(self.store, number, arm.measures())
        explanations.write_explanations(self.store, number, interp)
        keys = [key for key in READ if key in interp.get("scores", {})]
        path = self.contents.folder / explanations.REPLIES
        # without them the windows that a judge was shown cannot be drawn again
        if keys and arm.has_firings and path.is_file():
            firings, conditions = arm.firings(), interp["conditions"]
            asked = self._strings(self.contents.prints[arm].text).asked
            text = Text(firings.documents, firings.tokens, firings.positions, asked, conditions["seed"])
            with ReplyStore(path) as replies:
                asker, view = explanations.StoredAnswers(replies), self._view(arm)
                explanations.write_replies(self.store, number, conditions, keys, asker, text, view)

    def _write_pair(self, one: Arm, other: Arm) -> None:
        """Neighbours in the other arm, both ways, and matches; of two seeds of one arm the matches alone."""
        arms = (one, other)
        numbers = [self._number(arm) for arm in arms]
        rows = [self._weights(arm).W_dec.detach().float().cpu() for arm in arms]
        if rows[0].shape[1] != rows[1].shape[1]:
            return
        firings = [arm.firings().counted if arm.has_firings else None for arm in arms]
        live = [np.ones(len(w), bool) if of is None else of.counts() > 0 for w, of in zip(rows, firings, strict=True)]
        near = (
            {}
            if one.name == other.name
            else {edges.COSINE: [edges.nearest_rows(*rows), edges.nearest_rows(*rows[::-1])]}
        )
        edges.write_matches(self.store, numbers, rows, live, near.get(edges.COSINE))
        texts = {self.contents.prints[arm].text for arm in arms}
        if near and len(texts) == 1 and None not in texts:
            partners = mutual_partners(*firings, edges.NEIGHBOURS, progress=self.progress)
            near[edges.PHI] = [edges.Near(nearest.latents, nearest.phi) for nearest in partners]
        for kind, sides in near.items():
            edges.write_near(self.store, numbers[0], kind, numbers[1], sides[0])
            edges.write_near(self.store, numbers[1], kind, numbers[0], sides[1])

    def _write_splits(self, kind: str, parent: Arm, child: Arm, known: dict | None) -> None:
        if known is None:
            splits = find_splits(parent.firings().counted, child.firings().counted, progress=self.progress)
            known = splits.as_dict(len(splits.ranked))
        numbers = (self._number(parent), self._number(child))
        edges.write_splits(self.store, kind, (parent.label, child.label), numbers, known)

    def _write_logits(self, arm: Arm) -> None:
        """Writes nothing where the model cannot be loaded, as all other pages work without it."""
        if self._host is not None:
            logits.write_logits(self.store, self._number(arm), self._weights(arm).W_dec.detach(), self._host)

    @cached_property
    def _host(self) -> Host | None:
        try:
            return Host.load(self.contents.recipe.model, self.contents.recipe.hook.point)
        except UserError as error:
            self.progress.say(f"no logit lens ({error}); delete {STORE} to try it again")
            return None

    def _write_overview(self) -> None:
        keys = ("name", "arm", "seed", "n", "live", "weights", "has_firings", "has_meta")
        rows = {row[0]: row for row in self.store.execute(f"SELECT {', '.join(keys)} FROM saes")}
        saes = [
            dict(zip(keys, rows[arm.label], strict=True)) | {"has_firings": arm.has_firings, "has_meta": arm.has_meta}
            for arm in self.contents.arms
        ]
        contents = self.contents
        overview = summary.overview_of(contents.folder, contents.recipe, contents.arms, saes, contents.causal)
        self.store.execute("INSERT OR REPLACE INTO meta VALUES ('overview', ?)", (json.dumps(overview),))

    def _view(self, arm: Arm) -> ByLatent:
        """The firings in the order of latents, sorted once and kept beside them."""
        folder = arm.folder / "firings"
        try:
            view = open_by_latent(folder)
        except UserError:
            view = write_by_latent(folder, progress=self.progress)
        # memory-maps as plain arrays: many small slices are cut from them
        return ByLatent(*(np.asarray(array) for array in (view.indptr, view.tokens, view.values)), view.n_tokens)

    def _read_strings(self, digest: str) -> firing_rows.Strings:
        if self._given is not None:
            return firing_rows.Strings(self._given, self._given)
        return firing_rows.strings_of_run(
            self.contents.folder, self.contents.recipe, self.contents.texts[digest].firings()
        )

    def _number(self, arm: Arm) -> int:
        return self.store.execute("SELECT id FROM saes WHERE name = ?", (arm.label,)).fetchone()[0]
