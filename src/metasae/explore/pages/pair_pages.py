"""Splits and merges, as the pages show them, counted from the run's firings."""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metasae.arms.folder import split_label
from metasae.explore.pages import run_files
from metasae.explore.pages.labels import Labels
from metasae.explore.pages.latent_page import short_of
from metasae.explore.pages.latent_table import MOST
from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.open_store import OpenStore, SaeFacts, StoredText
from metasae.explore.store.schema import BASE_OF, KINDS, LATENTS_OF_SAE, key_of

# Windows of a split: for each child alone, where several are on, where none is.
ALONE, SEVERAL, NONE = 8, 6, 8
TOKENS = 20
_ROW = "id, pair, parent, score, coverage, overlap, firings, kept, lives_on, children"
# The splits of a pair that pass: a filter that is NULL lets all pass.
_PASSING = """splits WHERE pair = :pair AND (:kept OR NOT kept) AND (:min_score IS NULL OR score >= :min_score)
    AND (:labelled IS NULL OR id IN (SELECT value FROM json_each(:labelled)))
    AND (:keys IS NULL OR id IN
        (SELECT split FROM split_members WHERE key IN (SELECT value FROM json_each(:keys))))"""


class SaePair(NamedTuple):
    """Two SAEs between which the store has split candidates: a row of the table `pairs`.

    parent, child: numbers of SAEs. summary: JSON.
    """

    name: str
    kind: str
    parent: int
    child: int
    summary: str


def splits_page(
    store: OpenStore,
    labels: Labels,
    search_latents: Callable[[SaeFacts, str], np.ndarray],
    pair: str | None = None,
    kind: str = "splits",
    offset: int = 0,
    limit: int = 50,
    search: str | None = None,
    min_score: float | None = None,
    label: str | None = None,
    kept: bool = False,
) -> dict:
    """Candidates of a pair of SAEs, best first; see `Explorer.splits`.

    search_latents: (SAE, what is searched for) -> bool [n], the latents that are found.
    """
    if kind not in KINDS:
        raise KeyError(f"no kind '{kind}' of splits; known: {', '.join(KINDS)}")
    pairs = _pairs(store)
    of_kind = [name for name, shown in pairs.items() if shown.kind == kind]
    if pair is None and of_kind:
        pair = of_kind[0]
    elif pair is not None and pair not in pairs:
        raise KeyError(f"no pair '{pair}' of SAEs with splits in this run")
    page = {
        "pairs": of_kind,
        "base_pairs": [name for name, shown in pairs.items() if shown.kind == BASE_OF[kind]],
        "pair": pair,
        "kind": kind,
        "same_seed": False,
        "total": 0,
        "n_kept": 0,
        "offset": max(0, offset),
        "summary": None,
        "base_rate": None,
        "rows": [],
    }
    if pair is None:
        return page
    base = _base_of(store, pairs, pairs[pair])
    given = _given(store, labels, search_latents, pairs[pair], search, min_score, label)
    ((everything, n_kept),) = store.ask(f"SELECT COUNT(*), TOTAL(kept) FROM {_PASSING}", {**given, "kept": True})
    given["kept"] = kept
    sql = f"SELECT {_ROW} FROM {_PASSING} ORDER BY kept, score DESC, parent LIMIT :limit OFFSET :offset"
    rows = store.ask(sql, {**given, "limit": max(0, min(limit, MOST)), "offset": max(0, offset)})
    return {
        **page,
        "same_seed": _same_seed(store, pairs[pair]),
        "total": everything - (0 if kept else int(n_kept)),
        "n_kept": int(n_kept),
        "summary": json.loads(pairs[pair].summary),
        "base_rate": {"pair": base.name, **json.loads(base.summary)} if base else None,
        "rows": _rows(store, labels, pairs, rows),
    }


def _pairs(store: OpenStore) -> dict[str, SaePair]:
    rows = store.ask("SELECT name, kind, parent, child, summary FROM pairs ORDER BY parent, child")
    return {row[0]: SaePair(*row) for row in rows}


def _same_seed(store: OpenStore, pair: SaePair) -> bool:
    """Whether the two SAEs share initial weights and batches."""
    names = (split_label(store.by_id[side].name) for side in (pair.parent, pair.child))
    return len({name and name[1] for name in names}) == 1


def _base_of(store: OpenStore, pairs: dict[str, SaePair], pair: SaePair) -> SaePair | None:
    """Two seeds of the baseline, with which the splits of a pair are compared: for splits with the same parents, for
    merges with the same children. None where the run has no two seeds, and for two SAEs of one seed.
    """
    kind = BASE_OF[pair.kind]
    if _same_seed(store, pair):
        return None
    bases = [base for base in pairs.values() if base.kind == kind]
    return next((base for base in bases if pair.parent == base.parent or pair.child == base.child), None)


def _given(
    store: OpenStore,
    labels: Labels,
    search_latents: Callable[[SaeFacts, str], np.ndarray],
    pair: SaePair,
    search: str | None,
    min_score: float | None,
    label: str | None,
) -> dict:
    """The parameters of _PASSING.

    search: a latent's number, or the beginning of a token that the parent or a child fires on.
    """
    sides, number = {pair.parent, pair.child}, (search or "").strip()
    latent = int(number) if number.isascii() and number.isdigit() else LATENTS_OF_SAE
    keys = [key_of(side, latent) for side in sides if latent < LATENTS_OF_SAE]
    for side in sides if search else ():
        keys += [key_of(side, i) for i in np.flatnonzero(search_latents(store.by_id[side], search)).tolist()]
    labelled = [id for id, current in labels.current("split").items() if current == label]
    return {
        "pair": pair.name,
        "min_score": min_score,
        "labelled": json.dumps(labelled) if label else None,
        "keys": json.dumps(keys) if search else None,
    }


def _rows(store: OpenStore, labels: Labels, pairs: dict[str, SaePair], rows: Sequence[tuple]) -> list[dict]:
    """Rows of the table `splits`, with the top tokens and counterparts of each parent and child."""
    parsed = []
    for *facts, children in rows:
        child_sae = pairs[facts[1]].child
        parsed.append((facts, {key_of(child_sae, child["latent"]): child for child in json.loads(children)}))
    short = short_of(store, {key for facts, children in parsed for key in (facts[2], *children)})
    current = labels.current("split")
    return [
        {
            "id": id,
            "pair": pair,
            "kind": pairs[pair].kind,
            "parent": {
                **store.named(parent),
                **short[parent],
                "lives_on": _counterpart(store, pairs[pair].child, json.loads(lives_on)),
            },
            "children": [
                {
                    **store.named(key),
                    "phi": child["phi"],
                    "share": child["share"],
                    **short[key],
                    "already": _counterpart(store, pairs[pair].parent, child["already"]),
                }
                for key, child in children.items()
            ],
            "kept": bool(kept),
            "coverage": coverage,
            "overlap": overlap,
            "score": score,
            "firings": firings,
            "label": current.get(id),
        }
        for (id, pair, parent, score, coverage, overlap, firings, kept, lives_on), children in parsed
    ]


def _counterpart(store: OpenStore, sae: int, counterpart: dict) -> dict | None:
    """The latent of the other SAE that fires most like one: {"sae", "latent", "phi", "same"}; None for none."""
    if counterpart["latent"] is None:
        return None
    return {**store.named(key_of(sae, counterpart["latent"])), "phi": counterpart["phi"], "same": counterpart["same"]}


def split_page(store: OpenStore, labels: Labels, id: str) -> dict:
    """One candidate; see `Explorer.split`."""
    saes, pairs = store.sides_of(id), _pairs(store)
    if not saes:
        raise KeyError(f"no split '{id}' in this run")
    parent_sae, child_sae = saes
    (row,) = _rows(store, labels, pairs, store.ask(f"SELECT {_ROW} FROM splits WHERE id = ?", (id,)))
    parent, latents = row["parent"]["latent"], [child["latent"] for child in row["children"]]
    folders = [store.arm_folder(sae) for sae in saes]
    page = {
        **row,
        "cosine": run_files.cosines(
            np.concatenate(
                [
                    run_files.weight_rows(folders[0], "W_dec", [parent]),
                    run_files.weight_rows(folders[1], "W_dec", latents),
                ]
            )
        ),
        "siblings_meta": _siblings(store, child_sae, latents),
        "labels": labels.of("split", id),
        "base": _beside_base(store, row, pairs),
        "flow": None,
        "phi": None,
        "tokens": {"tokens": [], "parent": [], "lift": [], "counts": []},
        "windows": [],
    }
    if not all(map(store.has_firings, saes)):
        return page
    sides = [run_files.fired(folders[0], parent), *(run_files.fired(folders[1], latent) for latent in latents)]
    # on which of the parent's firings each child is on: bool [children, c]
    on = np.stack([np.isin(sides[0][0], tokens, assume_unique=True) for tokens, _ in sides[1:]])
    several = on.sum(0)
    text = store.text(parent_sae.text)
    for child, (tokens, _), with_parent in zip(row["children"], sides[1:], on.sum(1).tolist(), strict=True):
        child |= {"firings": len(tokens), "with_parent": with_parent}
    return {
        **page,
        "flow": {
            "parent_firings": on.shape[1],
            "alone": (on & (several == 1)).sum(1).tolist(),
            "two_or_more": int((several > 1).sum()),
            "none": int((several == 0).sum()),
        },
        "phi": run_files.phi_table(sides, parent_sae.n_tokens),
        "tokens": _token_table(text, sides[0][0], on),
        "windows": _split_windows(text, sides, on, several),
    }


def _beside_base(store: OpenStore, row: dict, pairs: dict[str, SaePair]) -> dict | None:
    """How many splits between two seeds of the baseline score at least as high.

    None for a run without two seeds of the baseline, and for a split between them.
    """
    base = _base_of(store, pairs, pairs[row["pair"]])
    if base is None or base.name == row["pair"]:
        return None
    sql = "SELECT COUNT(*) FROM splits WHERE pair = ? AND score >= ?"
    ((count,),) = store.ask(sql, (base.name, row["score"]))
    # without firings the store has the best candidates of a pair alone
    whole = store.by_id[base.parent].has_firings
    return {"pair": base.name, "as_good": count, "n_parents": json.loads(base.summary).get("n_parents"), "whole": whole}


def _token_table(text: StoredText, parent: np.ndarray, on: np.ndarray) -> dict:
    """For the tokens on which the parent fires most: how often each child fires there too, and the lift.

    lift: P(token | parent, child) / P(token | parent). parent: int [c], the tokens it fires on. on: bool [children, c].
    """
    entries, place, counts = np.unique(text.entries_at(parent), return_inverse=True, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:TOKENS]
    with_child = np.stack([np.bincount(place[child], minlength=len(entries))[top] for child in on])
    lift = [
        [float(n / total / (count / len(parent))) if total else None for n, count in zip(row, counts[top], strict=True)]
        for row, total in zip(with_child.tolist(), on.sum(1).tolist(), strict=True)
    ]
    return {
        "tokens": [text.vocabulary[entry] for entry in entries[top].tolist()],
        "parent": counts[top].tolist(),
        "lift": lift,
        "counts": with_child.tolist(),
    }


def _split_windows(text: StoredText, sides: list[run_files.Fired], on: np.ndarray, several: np.ndarray) -> list[dict]:
    """Windows around strong firings of the parent, each with its own peak: one child fires, several do, or none."""
    tokens, strengths = sides[0]
    kinds = [(child & (several == 1), ALONE) for child in on] + [(several > 1, SEVERAL), (several == 0, NONE)]
    windows = []
    for chosen, count in kinds:
        for peak in run_files.apart(tokens[chosen], strengths[chosen], count):
            shown = run_files.window(text, peak, sides)
            parent, *children = shown.pop("values")
            fires = np.flatnonzero(on[:, np.searchsorted(tokens, tokens.dtype.type(peak))]).tolist()
            windows.append({**shown, "parent": parent, "children": children, "fires": fires})
    return windows


def _siblings(store: OpenStore, sae: SaeFacts, latents: list[int]) -> list[dict]:
    """The meta-latents that help to build more than one of the children, with the weight of each."""
    children: dict[int, list[dict]] = {}
    for latent in latents:
        rows = store.ask("SELECT data FROM edges WHERE key = ? AND kind = 'meta'", (key_of(sae.id, latent),))
        for meta_latent, weight in zip(*unpack_edges(rows[0][0] if rows else b""), strict=True):
            children.setdefault(meta_latent, []).append({"latent": latent, "weight": weight})
    return [{"meta_latent": i, "children": built} for i, built in sorted(children.items()) if len(built) > 1]
