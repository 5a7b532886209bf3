"""The parts of the store, written: the rows of each from the run's weights, firings and model. `plan.py` says which parts there are."""

import json
import sqlite3
from functools import cached_property, lru_cache

import numpy as np

from metasae.data.model.host import Host
from metasae.errors import UserError
from metasae.explore.store import edges, explanations, latent_rows, logits, split_rows, summary, text_rows
from metasae.explore.store.judged import REPLIES, Judged
from metasae.explore.store.members import Member
from metasae.explore.store.plan import Part, Plan
from metasae.explore.store.schema import STORE, key_of
from metasae.explore.store.text_rows import Strings, StringsOf, Text
from metasae.interp.windows import Text as WindowText
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.store import open_firings
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE


class Job:
    """One run folder to be written into a store."""

    def __init__(self, plan: Plan, strings: StringsOf | None, progress: Progress):
        self.run_folder, self.windows, self.members, self.causal = (
            plan.run_folder,
            plan.windows,
            plan.members,
            plan.causal,
        )
        self.progress = progress
        self._given, self._strings_of = strings, {}
        self._weights = lru_cache(maxsize=3)(lambda folder: SAE.load(folder))

    def write(self, part: Part, store: sqlite3.Connection) -> None:
        """Adds the rows of a part to an open store."""
        writers = {
            "text": self._write_text,
            "sae": self._write_sae,
            "interp": self._write_interp,
            "pair": self._write_pair,
            "splits": self._write_splits,
            "logits": self._write_logits,
            "overview": self._write_overview,
        }
        writers[part.kind](*part.of, store)

    def _write_text(self, member: Member, store: sqlite3.Connection) -> None:
        number = store.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM texts").fetchone()[0]
        text_rows.write_text(store, number, member.text_digest, self._texts[member.text_digest])

    def _write_sae(self, member: Member, store: sqlite3.Connection) -> None:
        sae = self._weights(member.folder / "primary")
        held = store.execute("SELECT id FROM saes WHERE name = ?", (member.name,)).fetchone()
        number = held[0] if held else store.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM saes").fetchone()[0]
        threshold = np.full(sae.n_latents, np.nan) if sae.threshold is None else sae.threshold.double().cpu().numpy()
        view = self._view(member) if member.has_firings else None
        text = live = n_tokens = None
        with self.progress.task(f"windows and tokens of {member.name}", sae.n_latents, "latents") as task:
            if view is None:
                latent_rows.write_bare_latents(store, number, threshold, task)
            else:
                if view.n_latents != sae.n_latents:
                    raise UserError(
                        f"the firings in {member.folder} are of another SAE; delete its measures.json and firings/, and run again"
                    )
                ((text,),) = store.execute("SELECT id FROM texts WHERE digest = ?", (member.text_digest,))
                live, n_tokens = int((view.counts() > 0).sum()), view.n_tokens
                latent_rows.write_latents(
                    store, number, view, self._texts[member.text_digest], text, threshold, self.windows, task
                )
        facts = (sae.n_latents, live, text, n_tokens, member.weights, member.has_firings, member.has_meta)
        store.execute(
            "INSERT OR REPLACE INTO saes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, member.name, member.arm, member.seed, *facts),
        )
        self._write_neighbours(member, store, number, sae)

    def _write_interp(self, member: Member, store: sqlite3.Connection) -> None:
        number = _number(store, member.name)
        explanations.write_scores(store, number, member.interp)
        explanations.write_senses(store, number, member.measures)
        explanations.write_explanations(store, number, member.interp, lambda: self._judged(member))
        explanations.write_replies(store, number, member.interp, lambda: self._judged(member))

    def _judged(self, member: Member) -> Judged | None:
        """None where no judge was asked, or the windows it was shown cannot be drawn again."""
        path = self.run_folder / REPLIES
        if not (member.has_firings and member.interp.get("latents") and path.is_file()):
            return None
        firings, asked = open_firings(member.folder / "firings"), self._strings(member).asked
        text = WindowText(
            firings.documents, firings.tokens, firings.positions, asked, member.interp["conditions"]["seed"]
        )
        return Judged(path, member.interp, text, self._view(member))

    def _write_neighbours(self, member: Member, store: sqlite3.Connection, number: int, sae: SAE) -> None:
        rows, columns = sae.W_dec.detach().float().cpu(), sae.W_enc.detach().float().cpu().t()
        near = {edges.COSINE: edges.nearest_rows(rows), edges.ENCODER: edges.nearest_rows(columns)}
        if member.has_firings:
            near[edges.PHI] = edges.nearest_phi(open_firings(member.folder / "firings"), progress=self.progress)
        for kind, found in near.items():
            edges.write_near(store, number, kind, number, found)
        scalars = {
            "nearest_phi": near[edges.PHI].first if member.has_firings else None,
            "nearest_cosine": near[edges.COSINE].first,
            "encoder_cosine": edges.encoder_decoder_cosines(sae),
        }
        if member.has_meta:
            rebuilt = edges.rebuild_rows(sae, SAE.load(member.folder / "meta"))
            edges.write_meta(store, number, rebuilt)
            scalars["meta_e"] = rebuilt.errors
        for column, values in scalars.items():
            if values is not None:
                pairs = [
                    (value if np.isfinite(value) else None, key_of(number, i))
                    for i, value in enumerate(values.tolist())
                ]
                store.executemany(f"UPDATE latents SET {column} = ? WHERE key = ?", pairs)

    def _write_pair(self, one: Member, other: Member, store: sqlite3.Connection) -> None:
        """Neighbours in the other arm, both ways, and matches; of two seeds of one arm the matches alone."""
        numbers = [_number(store, member.name) for member in (one, other)]
        rows = [self._weights(member.folder / "primary").W_dec.detach().float().cpu() for member in (one, other)]
        if rows[0].shape[1] != rows[1].shape[1]:
            return
        firings = [open_firings(member.folder / "firings") if member.has_firings else None for member in (one, other)]
        live = tuple(
            np.ones(len(w), bool) if each is None else each.counts() > 0 for w, each in zip(rows, firings, strict=True)
        )
        near = None if one.arm == other.arm else (edges.nearest_rows(*rows), edges.nearest_rows(*rows[::-1]))
        edges.write_matches(store, tuple(numbers), tuple(rows), live, near)
        if near is None:
            return
        same_text = one.text_digest and one.text_digest == other.text_digest
        by_phi = edges.mutual_phi(*firings, self.progress) if same_text else None
        for a, b in ((0, 1), (1, 0)):
            edges.write_near(store, numbers[a], edges.COSINE, numbers[b], near[a])
            if by_phi is not None:
                edges.write_near(store, numbers[a], edges.PHI, numbers[b], by_phi[a])

    def _write_splits(
        self, kind: str, parent: Member, child: Member, known: dict | None, store: sqlite3.Connection
    ) -> None:
        if known is None:
            known = split_rows.all_splits(
                *(open_firings(member.folder / "firings") for member in (parent, child)), self.progress
            )
        names = parent.name, child.name
        split_rows.write_splits(store, kind, names, tuple(_number(store, name) for name in names), known)

    def _write_logits(self, member: Member, store: sqlite3.Connection) -> None:
        """Nothing is written where the model cannot be had: all other pages do without it."""
        if self._host is not None:
            logits.write_logits(
                store, _number(store, member.name), self._weights(member.folder / "primary").W_dec.detach(), self._host
            )

    @cached_property
    def _host(self) -> Host | None:
        try:
            recipe = Recipe.load(self.run_folder / "recipe.toml")
            return Host.load(recipe.model, recipe.hook.point)
        except UserError as error:
            self.progress.say(f"no logit lens ({error}); delete {STORE} to try it again")
            return None

    def _write_overview(self, store: sqlite3.Connection) -> None:
        held = {
            name: facts
            for name, *facts in store.execute(
                "SELECT name, arm, seed, n, live, weights, has_firings, has_meta FROM saes"
            )
        }
        keys = ("arm", "seed", "n", "live", "weights", "has_firings", "has_meta")
        saes = [{"name": each.name, **dict(zip(keys, held[each.name], strict=True))} for each in self.members]
        for sae in saes:
            sae |= {key: bool(sae[key]) for key in ("has_firings", "has_meta")}
        found = summary.overview_of(self.run_folder, self.members, saes, self.causal)
        store.execute("INSERT OR REPLACE INTO meta VALUES ('overview', ?)", (json.dumps(found),))

    @cached_property
    def _texts(self) -> dict[str, Text]:
        found = {}
        for member in self.members:
            if member.has_firings and member.text_digest not in found:
                found[member.text_digest] = text_rows.text_of(
                    open_firings(member.folder / "firings"), self._strings(member)
                )
        return found

    def _view(self, member: Member) -> ByLatent:
        """The firings in the order of latents, sorted once and kept beside them."""
        folder = member.folder / "firings"
        try:
            view = open_by_latent(folder)
        except UserError:
            view = write_by_latent(folder, progress=self.progress)
        # memory-maps as plain arrays: many small slices are cut from them
        return ByLatent(*(np.asarray(array) for array in (view.indptr, view.tokens, view.values)), view.n_tokens)

    def _strings(self, member: Member) -> Strings:
        if self._given is not None:
            return Strings(self._given, self._given)
        if member.text_digest not in self._strings_of:
            self._strings_of[member.text_digest] = text_rows.strings_of_run(
                self.run_folder, open_firings(member.folder / "firings")
            )
        return self._strings_of[member.text_digest]


def _number(store: sqlite3.Connection, name: str) -> int:
    return store.execute("SELECT id FROM saes WHERE name = ?", (name,)).fetchone()[0]
