"""What the pages ask: every question is one method that returns a dictionary as JSON has it.

Reads the store alone, without torch.

An unknown SAE, latent, pair or split is a KeyError; a column that cannot be sorted by is a ValueError; a damaged store
is a UserError.
"""

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from metasae.arms.folder import RunFolder
from metasae.explore.pages.compare_page import compare_page
from metasae.explore.pages.labels import Labels
from metasae.explore.pages.latent_page import add_found, latent_page, rows_of
from metasae.explore.pages.latent_table import MOST, LatentTable, found_in, search_all
from metasae.explore.pages.pair_pages import split_page, splits_page
from metasae.explore.store.open_store import OpenStore
from metasae.explore.store.sections import weights_of

# What was searched for in a table of latents, kept for one who scrolls.
SEARCHES = 64


class Explorer:
    """A run folder's store, open for questions from any thread."""

    def __init__(self, run_folder: str | Path):
        """Raises UserError when there is no store (build it first), one of another version, or a damaged one."""
        self.store = OpenStore(Path(run_folder))
        self._labels = Labels(self.store)
        self._tables = {number: LatentTable(self.store, facts) for number, facts in self.store.by_id.items()}
        self._searched = lru_cache(maxsize=SEARCHES)(partial(found_in, self.store))

    def is_current(self) -> bool:
        """Whether the store is of the weights that lie in the run folder now."""
        now = {arm.label: weights_of(arm) for arm in RunFolder(self.store.run_folder).trained()}
        return all(facts.weights == now.get(name) for name, facts in self.store.saes.items())

    def overview(self) -> dict:
        return json.loads(self.store.ask("SELECT value FROM meta WHERE key = 'overview'")[0][0])

    def latents(
        self,
        sae: str,
        *,
        sort: str = "rate",
        descending: bool = True,
        search: str | None = None,
        offset: int = 0,
        limit: int = 100,
        **filters,
    ) -> dict:
        """A page of an SAE's latents; at most 500 at a time.

        search: words of an explanation, or the beginning of a top token. filters: min_rate, max_rate, label, dead, as
        for `LatentTable.listed`.
        """
        facts = self.store.sae(sae)
        labels, table = self._labels.of_latents(sae), self._tables[facts.id]
        searched = self._searched(facts, search) if search else None
        latents = table.listed(sort, descending, labels, searched, **filters)
        first = max(0, offset)
        shown = latents[first : first + max(0, min(limit, MOST))].tolist()
        rows = rows_of(self.store, facts, shown, labels)
        if search:
            add_found(self.store, facts, rows, search)
        return {"sae": sae, "total": len(latents), "offset": first, "columns": table.columns, "rows": rows}

    def latent(self, sae: str, latent: int) -> dict:
        """Everything of one latent."""
        return latent_page(self.store, self._labels, self.store.sae(sae), self.store.check(sae, latent))

    def briefs(self, sae: str, ids: Sequence[int]) -> dict:
        """{"17": {"top_tokens", "explanation", "label", "max"}} of up to 500 latents."""
        latents = [self.store.check(sae, i) for i in ids[:MOST]]
        rows = rows_of(self.store, self.store.sae(sae), latents, self._labels.of_latents(sae))
        shown = ("top_tokens", "explanation", "label", "max")
        return {str(row["latent"]): {key: row[key] for key in shown} for row in rows}

    def splits(
        self, pair: str | None = None, kind: str = "splits", offset: int = 0, limit: int = 50, **filters
    ) -> dict:
        """Split candidates of a pair of SAEs, best first.

        kind: splits, merges, or the base rate of either, base or merges_base; pair None takes the first of that kind.

        filters: search, a latent's number or the beginning of a token, of the parent or a child; min_score; label, as
        it counts; kept: also, after the others, those whose parent lives on or whose children were all there already.
        """
        return splits_page(self.store, self._labels, self._searched, pair, kind, offset, limit, **filters)

    def split(self, id: str) -> dict:
        """One candidate with its flow, tokens and windows, exact from the run's firings."""
        return split_page(self.store, self._labels, id)

    def compare_latents(self, a: tuple[str, int], b: tuple[str, int]) -> dict:
        """Two latents of any SAEs over the same text, exact from the run's firings."""
        return compare_page(self.store, self._labels, a, b)

    def search(self, text: str, limit: int = 50) -> dict:
        """Latents of any SAE by their explanation's words, then by their top tokens."""
        latents = islice(search_all(self.store, self._tables, text, limit), max(0, min(limit, MOST)))
        return {"rows": [{**self.store.named(key), "where": where, "text": said} for key, where, said in latents]}

    def set_label(self, target: dict, label: str | None, note: str = "") -> None:
        """target: {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}.

        label: one of LABELS, "" or None to take it away.

        Raises KeyError for a target that is not there, UserError for an unknown label and where it cannot be written.
        """
        kind, name = target.get("kind"), str(target.get("id"))
        if kind == "latent":
            name = f"{target.get('sae')}:{self.store.check(target.get('sae'), target.get('latent'))}"
        self._labels.add(kind, name, label, note)

    def labels(self) -> list[dict]:
        """Every saying in its order. stale: about weights that are no longer in the run."""
        return self._labels.all()
