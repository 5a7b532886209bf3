"""What the pages ask: every question is one method that returns a dictionary as JSON has it. Reads the store alone, without torch.

An unknown SAE, latent, pair or split is a KeyError; a column that cannot be sorted by is a ValueError; a damaged store is a UserError.
"""

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from metasae.explore.pages import labels, latent_page, listing, pair_pages, searching
from metasae.explore.pages.labels import LABELS, Saying
from metasae.explore.pages.listing import Filters
from metasae.explore.store.columns import Columns
from metasae.explore.store.connection import Reader
from metasae.explore.store.members import find_members
from metasae.explore.store.schema import SCALARS, key_of, place_of
from metasae.explore.store.stored_text import StoredText

# What was searched for in a table of latents, kept for one who scrolls.
SEARCHES = 64

__all__ = ["LABELS", "Explorer", "SaeFacts"]


class SaeFacts:
    """One row of the table `saes`."""

    def __init__(self, row: tuple):
        (
            self.id,
            self.name,
            self.arm,
            self.seed,
            self.n,
            self.live,
            self.text,
            self.n_tokens,
            self.weights,
            has_firings,
            has_meta,
        ) = row
        self.has_firings, self.has_meta = bool(has_firings), bool(has_meta)


class Explorer:
    """A run folder's store, open for questions from any thread."""

    def __init__(self, run_folder: str | Path):
        """Raises UserError when there is no store (build it first), one of another version, or a damaged one."""
        self.run_folder = Path(run_folder)
        self._reader = Reader(self.run_folder)
        self.ask = self._reader.ask
        self.saes = {facts.name: facts for facts in map(SaeFacts, self.ask("SELECT * FROM saes ORDER BY id"))}
        self.by_id = {facts.id: facts for facts in self.saes.values()}
        self.text = lru_cache(maxsize=None)(lambda number: StoredText(self.ask, number))
        self.weights_of_split = lru_cache(maxsize=None)(self._ask_weights_of_split)
        self._found = lru_cache(maxsize=SEARCHES)(
            lambda facts, search: searching.found_in(self.ask, facts.id, facts.n, facts.text, search)
        )

    def is_current(self) -> bool:
        """Whether the store is of the weights that lie in the run folder now."""
        now = {member.name: member.weights for member in find_members(self.run_folder)}
        return all(facts.weights == now.get(name) for name, facts in self.saes.items())

    def overview(self) -> dict:
        return self._overview

    @cached_property
    def _overview(self) -> dict:
        return json.loads(self.ask("SELECT value FROM meta WHERE key = 'overview'")[0][0])

    def latents(
        self,
        sae: str,
        *,
        sort: str = "rate",
        descending: bool = True,
        search: str | None = None,
        min_rate: float | None = None,
        max_rate: float | None = None,
        label: str | None = None,
        dead: bool = False,
        offset: int = 0,
        limit: int = 100,
    ) -> dict:
        """A page of an SAE's latents; at most 500 at a time. See `listing.Filters`."""
        facts, held, filters = (
            self.sae(sae),
            self.labels_of_latents(sae),
            Filters(search, min_rate, max_rate, label, dead),
        )
        found = self._found(facts, search) if search else None
        latents = listing.listed(self._columns[facts.id], sort, descending, filters, held, found)
        first = max(0, offset)
        keys = [
            key_of(facts.id, latent) for latent in latents[first : first + max(0, min(limit, listing.MOST))].tolist()
        ]
        rows = latent_page.rows_of(self, keys, held)
        if search:
            latent_page.add_found(self, facts, rows, search)
        columns = [{**each, "empty": each["key"] in self._empty[sae]} for each in listing.columns_of(self._scores[sae])]
        return {"sae": sae, "total": len(latents), "offset": first, "columns": columns, "rows": rows}

    def latent(self, sae: str, latent: int) -> dict:
        """Everything of one latent."""
        return latent_page.latent(self, self.sae(sae), self.check(sae, latent))

    def briefs(self, sae: str, ids: Sequence[int]) -> dict:
        """{"17": {"top_tokens", "explanation", "label", "max"}} of up to 500 latents."""
        keys = [key_of(self.sae(sae).id, self.check(sae, i)) for i in ids[: listing.MOST]]
        rows = latent_page.rows_of(self, keys)
        return {
            str(row["latent"]): {key: row[key] for key in ("top_tokens", "explanation", "label", "max")} for row in rows
        }

    def splits(
        self,
        pair: str | None = None,
        kind: str = "splits",
        offset: int = 0,
        limit: int = 50,
        *,
        search: str | None = None,
        min_score: float | None = None,
        label: str | None = None,
    ) -> dict:
        """Split candidates of a pair of SAEs, best first. kind: splits, merges or base; pair None takes the first of that kind.

        search: a latent's number or the beginning of a token, of the parent or a child.
        """
        return pair_pages.splits(self, pair, kind, offset, limit, search, min_score, label)

    def split(self, id: str) -> dict:
        """One candidate with its flow, tokens and windows, exact from the run's firings."""
        return pair_pages.split(self, id)

    def compare_latents(self, a: tuple[str, int], b: tuple[str, int]) -> dict:
        """Two latents of any SAEs over the same text, exact from the run's firings."""
        for sae, latent in (a, b):
            self.check(sae, latent)
        return pair_pages.compare(self, a, b)

    def search(self, text: str, limit: int = 50) -> dict:
        """Latents of any SAE by their explanation's words, then by their top tokens."""
        found = searching.best(self.ask, self._columns, text, max(0, min(limit, listing.MOST)))
        return {"rows": [{**self.named(key), "where": where, "text": said} for key, where, said in found]}

    def set_label(self, target: dict, label: str | None, note: str = "") -> dict:
        """target: {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}. label: one of LABELS, "" or None to take it away.

        Raises KeyError for a target that is not there, UserError for an unknown label and where it cannot be written.
        """
        kind = target.get("kind")
        if kind == "latent":
            facts, latent = self.sae(target.get("sae")), self.check(target.get("sae"), target.get("latent"))
            said = labels.add(self.run_folder, kind, f"{facts.name}:{latent}", facts.weights, label, note)
        elif kind == "split":
            said = labels.add(
                self.run_folder, kind, str(target.get("id")), self.weights_of_split(str(target.get("id"))), label, note
            )
        else:
            raise KeyError(f"a label is for a latent or a split, not for '{kind}'")
        return said.as_dict()

    def labels(self, export: bool = True) -> list[dict]:
        """Every saying in its order; without export, the ones that count. stale: about weights that are no longer in the run."""
        sayings = labels.read(self.run_folder)
        if not export:
            last = {(saying.kind, saying.target): saying for saying in sayings}
            sayings = [saying for saying in last.values() if saying.label]
        return [{**_target(saying), **saying.as_dict(), "stale": not self._holds(saying)} for saying in sayings]

    def sae(self, name: str) -> SaeFacts:
        if not isinstance(name, str) or name not in self.saes:
            raise KeyError(f"no SAE '{name}' in this run; known: {', '.join(self.saes)}")
        return self.saes[name]

    def check(self, sae: str, latent: int) -> int:
        """The latent, where there is such a one."""
        if isinstance(latent, bool) or not isinstance(latent, (int, np.integer)) or not 0 <= latent < self.sae(sae).n:
            raise KeyError(f"no latent {latent} in {sae}; they go from 0 to {self.sae(sae).n - 1}")
        return int(latent)

    def named(self, key: int) -> dict:
        """{"sae", "latent"} of a key."""
        sae, latent = place_of(key)
        return {"sae": self.by_id[sae].name, "latent": latent}

    def labels_of_latents(self, sae: str) -> dict[int, str]:
        """latent -> the label that counts, of one SAE."""
        prefix = f"{sae}:"
        held = [
            each
            for each in labels.read(self.run_folder, "latent")
            if each.target.startswith(prefix) and self._holds(each)
        ]
        return {int(target[len(prefix) :]): label for target, label in labels.current(held).items()}

    def labels_of_splits(self) -> dict[str, str]:
        return labels.current([each for each in labels.read(self.run_folder, "split") if self._holds(each)])

    def sayings_of(self, kind: str, target: str) -> list[dict]:
        """Every saying about a target: label, note, when."""
        held = [each for each in labels.read(self.run_folder, kind, target) if self._holds(each)]
        return [{"label": each.label or None, "note": each.note, "when": each.when} for each in held]

    def _ask_weights_of_split(self, id: str) -> str:
        return "+".join(self.by_id[number].weights for number in pair_pages.saes_of(self, id))

    def _holds(self, saying: Saying) -> bool:
        """Whether what a saying is about is still in the run."""
        try:
            if saying.kind == "split":
                return self.weights_of_split(saying.target) == saying.weights
            return self.sae(saying.target.rpartition(":")[0]).weights == saying.weights
        except KeyError:
            return False

    def keys_found(self, facts: SaeFacts, search: str) -> list[int]:
        """The keys of the latents of an SAE that a search finds."""
        return [key_of(facts.id, latent) for latent in np.flatnonzero(self._found(facts, search)).tolist()]

    @cached_property
    def _empty(self) -> dict[str, set[str]]:
        """SAE -> the columns in which no latent has a number."""
        counts = ", ".join(f"COUNT({name})" for name in SCALARS)
        sql = f"SELECT {counts} FROM latents WHERE key BETWEEN ? AND ?"
        found = {
            name: self.ask(sql, (key_of(facts.id, 0), key_of(facts.id + 1, 0) - 1))[0]
            for name, facts in self.saes.items()
        }
        return {
            name: {column for column, count in zip(SCALARS, each, strict=True) if not count}
            for name, each in found.items()
        }

    @cached_property
    def _columns(self) -> dict[int, Columns]:
        return {facts.id: Columns(self.ask, facts.id, facts.n, self._scores[name]) for name, facts in self.saes.items()}

    @cached_property
    def _scores(self) -> dict[str, list[tuple[str, str]]]:
        """SAE -> the (score, part) that its latents have."""
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in self.saes}
        for number, score, part in self.ask("SELECT DISTINCT sae, score, part FROM scores ORDER BY sae, score, part"):
            found[self.by_id[number].name].append((score, part))
        return found


def _target(saying: Saying) -> dict:
    """What a saying is about, in the parts that `set_label` takes."""
    sae, _, latent = saying.target.rpartition(":")
    return (
        {"sae": sae, "latent": int(latent), "id": None}
        if saying.kind == "latent"
        else {"sae": None, "latent": None, "id": saying.target}
    )
