"""The questions of the pages: each is one method, and returns a dictionary that JSON can hold.

It reads the store and the run's files, without torch.

An unknown SAE, latent, pair or split is a KeyError; a column that cannot be sorted by is a ValueError; a damaged store
is a UserError.
"""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from metasae.arms.folder import RunFolder
from metasae.explore.pages.compare_page import compare_page
from metasae.explore.pages.document_page import document_page
from metasae.explore.pages.labels import Labels
from metasae.explore.pages.latent_page import add_found, latent_page, rows_of
from metasae.explore.pages.latent_table import MOST, LatentTable
from metasae.explore.pages.pair_pages import split_page, splits_page
from metasae.explore.pages.search import SPECIFIC_FIRST, found_in, matches_in, most_specific_first
from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.open_store import CHUNK, OpenStore
from metasae.explore.store.schema import MEANINGS, SCALARS, key_of
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
        """Whether the store was made from the weights that are in the run folder now."""
        now = {arm.label: weights_of(arm) for arm in RunFolder(self.store.run_folder).trained()}
        return all(facts.weights == now.get(name) for name, facts in self.store.saes.items())

    def check(self, sae: str, latent: int) -> int:
        """The latent itself. Raises KeyError where the SAE has no such latent."""
        return self.store.check(sae, latent)

    def overview(self) -> dict:
        """The run's verdict, measures and figures, and the columns of a list of latents: key, label, meaning."""
        overview = json.loads(self.store.ask("SELECT value FROM meta WHERE key = 'overview'")[0][0])
        columns = [{"key": key, "label": label, "meaning": MEANINGS[key]} for key, label in SCALARS.items()]
        return {**overview, "columns": columns}

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

        search: words of an explanation, or the beginning of a top token. sort: a column, or "specific", which puts the
        latents first that are most specific to what is searched for, and means "rate" without a search. filters:
        min_rate, max_rate, label, dead, as for `LatentTable.listed`.
        """
        facts = self.store.sae(sae)
        labels, table = self._labels.of_latents(sae), self._tables[facts.id]
        searched = self._searched(facts, search) if search else None
        by_search = sort == SPECIFIC_FIRST and bool(search)
        column = "rate" if sort == SPECIFIC_FIRST else sort
        latents = table.listed(column, descending, labels, searched, **filters)
        if by_search:
            latents = most_specific_first(self.store, facts, search, latents)
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

    def matches(self, sae: str, other: str, ids: Sequence[int]) -> dict:
        """{"17": {"latent", "cosine"}}: of up to 500 latents the match in another SAE, by decoder rows.

        One to one up to 8,192 latents an SAE, above that the nearest row. A latent without a match is left out.
        """
        keys = [key_of(self.store.sae(sae).id, self.store.check(sae, i)) for i in ids[:MOST]]
        sql = """SELECT key, data FROM edges WHERE other = ? AND kind IN ('match', 'nearest')
            AND key IN (SELECT value FROM json_each(?))"""
        rows = self.store.ask(sql, (self.store.sae(other).id, json.dumps(keys)))
        edges = {self.store.named(key)["latent"]: unpack_edges(data) for key, data in rows}
        return {str(i): {"latent": latents[0], "cosine": values[0]} for i, (latents, values) in edges.items()}

    def document(self, sae: str, latent: int, place: int) -> dict:
        """The document round a token of the evaluation text, with what the latent does in it."""
        return document_page(self.store, self.store.sae(sae), self.store.check(sae, latent), place)

    def texts(self) -> dict[str, int]:
        """SAE -> the number of the evaluation text that its windows are of, for those with firings."""
        return {name: facts.text for name, facts in self.store.saes.items() if facts.text is not None}

    def text_chunks(self, number: int) -> Iterator[dict]:
        """An evaluation text in chunks of CHUNK tokens: {"pieces": text of each token, "names": {"17": its name}}.

        Pieces joined are the text; `names` has, by place in the chunk, the tokens whose name alone is another.
        """
        text = self.store.text(number)
        for start in range(0, text.n_tokens, CHUNK):
            end = min(start + CHUNK, text.n_tokens)
            yield {"pieces": text.pieces(start, end), "names": text.names(start, end)}

    def splits(
        self, pair: str | None = None, kind: str = "splits", offset: int = 0, limit: int = 50, **filters
    ) -> dict:
        """Split candidates of a pair of SAEs, best first.

        kind: splits, merges, or the base rate of either, base or merges_base; pair None takes the first of that kind.

        filters: search, a latent's number or the beginning of a token, of the parent or a child; min_score; label, the
        current one; kept: also list, after the others, candidates whose parent or whose children are in both SAEs.
        """
        return splits_page(self.store, self._labels, self._searched, pair, kind, offset, limit, **filters)

    def split(self, id: str) -> dict:
        """One candidate with its flow, tokens and windows, exact from the run's firings."""
        return split_page(self.store, self._labels, id)

    def compare_latents(self, a: tuple[str, int], b: tuple[str, int]) -> dict:
        """Two latents of any SAEs over the same text, exact from the run's firings."""
        return compare_page(self.store, self._labels, a, b)

    def search(self, text: str, limit: int = 20) -> dict:
        """Latents by their explanation's words and their top tokens, the most specific first, `limit` of each SAE.

        {"groups": [{"sae", "total", "rows"}]}, only of SAEs in which some latent is found; a row is as in a list of
        latents, with `where`, `text` and `specific` as in `metasae.explore.pages.search.Match`.
        """
        groups = []
        for name, facts in self.store.saes.items() if text.strip() else ():
            matches = matches_in(self.store, facts, text)
            shown = matches[: max(0, min(limit, MOST))]
            rows = rows_of(self.store, facts, [match.latent for match in shown], self._labels.of_latents(name))
            told = [row | match._asdict() for row, match in zip(rows, shown, strict=True)]
            groups += [{"sae": name, "total": len(matches), "rows": told}] if matches else []
        return {"groups": groups}

    def set_label(self, target: dict, label: str | None, note: str = "") -> None:
        """target: {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}.

        label: one of LABELS; "" or None removes it.

        Raises KeyError for a target that is not there, UserError for an unknown label and where it cannot be written.
        """
        kind, name = target.get("kind"), str(target.get("id"))
        if kind == "latent":
            name = f"{target.get('sae')}:{self.store.check(target.get('sae'), target.get('latent'))}"
        self._labels.add(kind, name, label, note)

    def labels(self) -> list[dict]:
        """Every label ever given, in order. stale: given to weights that are no longer in the run."""
        return self._labels.all()
