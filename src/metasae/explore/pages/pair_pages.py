"""Splits, merges and two latents side by side, as the pages show them; what is counted is counted from the run's firings."""

import json
from typing import TYPE_CHECKING

import numpy as np

from metasae.explore.pages import together
from metasae.explore.pages.latent_page import rows_of, short_of
from metasae.explore.pages.listing import MOST
from metasae.explore.store import edge_blobs
from metasae.explore.store.firing_files import FiringFiles, open_firing_files
from metasae.explore.store.schema import BASE, KINDS, LATENTS_OF_SAE, key_of, place_of
from metasae.explore.store.weight_files import cosines, decoder_rows, encoder_columns

if TYPE_CHECKING:
    from metasae.explore.pages.queries import Explorer, SaeFacts

# Windows of a split: for each child alone, where several are on, where none is.
ALONE, SEVERAL, NONE = 8, 6, 8
TOKENS = 20
WINDOWS = 10
_ROW = "id, pair, parent, score, coverage, overlap, firings, children"


def splits(
    explorer: "Explorer",
    pair: str | None,
    kind: str,
    offset: int,
    limit: int,
    search: str | None = None,
    min_score: float | None = None,
    label: str | None = None,
) -> dict:
    if kind not in KINDS:
        raise KeyError(f"no kind '{kind}' of splits; known: {', '.join(KINDS)}")
    held = explorer.ask("SELECT name, kind, parent, child, summary FROM pairs ORDER BY parent, child")
    pairs = [name for name, each, *_ in held if each == kind]
    if pair is None:
        pair = pairs[0] if pairs else None
    elif pair not in {name for name, *_ in held}:
        raise KeyError(f"no pair '{pair}' of SAEs with splits in this run")
    summaries = {name: json.loads(summary) for name, *_, summary in held}
    base = {parent: name for name, each, parent, _, _ in held if each == BASE}
    rate = None
    if pair is not None and base:
        sides = next((parent, child) for name, _, parent, child, _ in held if name == pair)
        # the last of two seeds has no next one; what the other one says of solo is the base rate of both
        name = next((base[side] for side in sides if side in base), next(iter(base.values())))
        rate = {"pair": name, **summaries[name]}
    where, given = _filters(explorer, pair, search, min_score, label)
    sql = f"SELECT {_ROW} FROM splits WHERE {where} ORDER BY score DESC, parent LIMIT :limit OFFSET :offset"
    rows = explorer.ask(sql, {**given, "limit": max(0, min(limit, MOST)), "offset": max(0, offset)}) if pair else []
    total = explorer.ask(f"SELECT COUNT(*) FROM splits WHERE {where}", given)[0][0] if pair else 0
    return {
        "pairs": pairs,
        "base_pairs": [name for name, each, *_ in held if each == BASE],
        "pair": pair,
        "kind": kind,
        "total": total,
        "offset": max(0, offset),
        "summary": summaries[pair] if pair else None,
        "base_rate": rate,
        "rows": _rows(explorer, rows),
    }


def _filters(
    explorer: "Explorer", pair: str | None, search: str | None, min_score: float | None, label: str | None
) -> tuple[str, dict]:
    """(conditions in SQL, their parameters). search: a latent's number, or the beginning of a token that the parent or a child fires on."""
    parts, given = ["pair = :pair"], {"pair": pair}
    if min_score is not None:
        parts.append("score >= :min_score")
        given["min_score"] = min_score
    if label:
        parts.append("id IN (SELECT value FROM json_each(:labelled))")
        given["labelled"] = json.dumps([id for id, each in explorer.labels_of_splits().items() if each == label])
    if search and pair:
        ((*sides,),) = explorer.ask("SELECT parent, child FROM pairs WHERE name = ?", (pair,))
        keys = [key for number in set(sides) for key in explorer.keys_found(explorer.by_id[number], search)]
        if search.strip().isascii() and search.strip().isdigit() and int(search) < LATENTS_OF_SAE:
            keys += [key_of(number, int(search)) for number in sides]
        parts.append("id IN (SELECT split FROM split_members WHERE key IN (SELECT value FROM json_each(:keys)))")
        given["keys"] = json.dumps(keys)
    return " AND ".join(parts), given


def _beside_base(explorer: "Explorer", row: dict, sides: tuple[int, int]) -> dict | None:
    """How many splits between two seeds of the baseline score as well as this one; None without such a pair, and for a split of one."""
    if row["kind"] == BASE:
        return None
    held = explorer.ask("SELECT name, parent, summary FROM pairs WHERE kind = ? ORDER BY parent, child", (BASE,))
    if not held:
        return None
    name, parent, summary = next((each for each in held if each[1] in sides), held[0])
    ((count,),) = explorer.ask("SELECT COUNT(*) FROM splits WHERE pair = ? AND score >= ?", (name, row["score"]))
    # without firings the store has the best candidates of a pair alone
    whole = explorer.by_id[parent].has_firings
    return {"pair": name, "as_good": count, "n_parents": json.loads(summary).get("n_parents"), "whole": whole}


def saes_of(explorer: "Explorer", id: str) -> tuple[int, int]:
    """Numbers of the parent's and the children's SAE. Raises KeyError for an id that is not there."""
    rows = explorer.ask("SELECT p.parent, p.child FROM splits s JOIN pairs p ON p.name = s.pair WHERE s.id = ?", (id,))
    if not rows:
        raise KeyError(f"no split '{id}' in this run")
    return rows[0]


def _rows(explorer: "Explorer", rows: list[tuple]) -> list[dict]:
    of = {name: (kind, child) for name, kind, child in explorer.ask("SELECT name, kind, child FROM pairs")}
    parsed = [(row, [(key_of(of[row[1]][1], child["latent"]), child) for child in json.loads(row[-1])]) for row in rows]
    short = short_of(explorer, {row[2] for row, _ in parsed} | {key for _, children in parsed for key, _ in children})
    labels = explorer.labels_of_splits()
    return [
        {
            "id": id,
            "pair": pair,
            "kind": of[pair][0],
            "parent": {**explorer.named(parent), **short[parent]},
            "children": [
                {**explorer.named(key), "phi": child["phi"], "share": child["share"], **short[key]}
                for key, child in children
            ],
            "coverage": coverage,
            "overlap": overlap,
            "score": score,
            "firings": firings,
            "label": labels.get(id),
        }
        for (id, pair, parent, score, coverage, overlap, firings, _), children in parsed
    ]


def split(explorer: "Explorer", id: str) -> dict:
    sides = saes_of(explorer, id)
    child_sae = explorer.by_id[sides[1]]
    ((*head, children),) = explorer.ask(f"SELECT {_ROW} FROM splits WHERE id = ?", (id,))
    row = _rows(explorer, [(*head, children)])[0]
    number, parent = place_of(head[2])
    parent_sae = explorer.by_id[number]
    latents = [child["latent"] for child in row["children"]]
    rows = np.concatenate(
        [decoder_rows(_folder(explorer, parent_sae), [parent]), decoder_rows(_folder(explorer, child_sae), latents)]
    )
    told = {
        **row,
        "cosine": cosines(rows),
        "siblings_meta": _siblings(explorer, child_sae, latents),
        "labels": explorer.sayings_of("split", id),
    }
    told["base"] = _beside_base(explorer, row, sides)
    if not (_has_firings(explorer, parent_sae) and _has_firings(explorer, child_sae)):
        return {
            **told,
            "flow": None,
            "phi": None,
            "tokens": {"tokens": [], "parent": [], "lift": [], "counts": []},
            "windows": [],
        }
    parent_file, child_file = (_firings(explorer, sae) for sae in (parent_sae, child_sae))
    fired = [parent_file.latent(parent), *(child_file.latent(child) for child in latents)]
    on = together.patterns(fired[0][0], [tokens for tokens, _ in fired[1:]])
    several = on.sum(0)
    text = explorer.text(parent_sae.text)
    for child, (tokens, _), with_parent in zip(row["children"], fired[1:], on.sum(1).tolist(), strict=True):
        child |= {"firings": len(tokens), "with_parent": with_parent}
    return {
        **told,
        "flow": {
            "parent_firings": len(fired[0][0]),
            "alone": [int(each) for each in (on & (several == 1)).sum(1)],
            "two_or_more": int((several > 1).sum()),
            "none": int((several == 0).sum()),
        },
        "phi": together.phi_table(fired, parent_sae.n_tokens),
        "tokens": _token_table(text, fired[0][0], on),
        "windows": _split_windows(text, fired, on, several),
    }


def _token_table(text, parent: np.ndarray, on: np.ndarray) -> dict:
    """Of the tokens the parent fires on most: on how many each child is on with it, and P(token | parent, child) / P(token | parent)."""
    entries, place, counts = np.unique(text.entries_at(parent), return_inverse=True, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:TOKENS]
    with_child = (
        np.stack([np.bincount(place[each], minlength=len(entries)) for each in on])[:, top]
        if len(on)
        else np.zeros((0, len(top)), int)
    )
    totals = on.sum(1)
    lift = [
        [float(n / total / (counts[i] / len(parent))) if total else None for n, i in zip(row, top, strict=True)]
        for row, total in zip(with_child.tolist(), totals.tolist(), strict=True)
    ]
    return {
        "tokens": [text.string_of(int(entries[i])) for i in top],
        "parent": counts[top].tolist(),
        "lift": lift,
        "counts": with_child.tolist(),
    }


def _split_windows(text, fired: list[together.Fired], on: np.ndarray, several: np.ndarray) -> list[dict]:
    """Windows round the parent's firings, no token the peak of two: each child alone, several, none; strong ones of every kind."""
    tokens, values = fired[0]
    kinds = [(on[child] & (several == 1), ALONE) for child in range(len(on))] + [
        (several > 1, SEVERAL),
        (several == 0, NONE),
    ]
    found = []
    for chosen, count in kinds:
        for peak in together.apart(tokens[chosen], values[chosen], count):
            shown = together.window(text, peak, fired)
            parent, *children = shown.pop("values")
            place = int(np.searchsorted(tokens, tokens.dtype.type(peak)))
            found.append(
                {**shown, "parent": parent, "children": children, "fires": np.flatnonzero(on[:, place]).tolist()}
            )
    return found


def _siblings(explorer: "Explorer", sae: "SaeFacts", latents: list[int]) -> list[dict]:
    """The meta-latents that help to build more than one of the children, with the weight of each."""
    weights: dict[int, dict[int, float]] = {}
    for latent in latents:
        for (data,) in explorer.ask(
            "SELECT data FROM edges WHERE key = ? AND kind = 'meta'", (key_of(sae.id, latent),)
        ):
            for meta_latent, weight in zip(*edge_blobs.unpack(data), strict=True):
                weights.setdefault(meta_latent, {})[latent] = weight
    shared = [(meta_latent, held) for meta_latent, held in sorted(weights.items()) if len(held) > 1]
    return [
        {"meta_latent": i, "children": [{"latent": latent, "weight": weight} for latent, weight in held.items()]}
        for i, held in shared
    ]


def compare(explorer: "Explorer", a: tuple[str, int], b: tuple[str, int]) -> dict:
    saes, latents = [explorer.sae(name) for name, _ in (a, b)], [int(latent) for _, latent in (a, b)]
    summaries = [rows_of(explorer, [key_of(sae.id, latent)])[0] for sae, latent in zip(saes, latents, strict=True)]
    folders = [_folder(explorer, sae) for sae in saes]
    found = {
        "a": summaries[0],
        "b": summaries[1],
        "cosine": _cosine(*(decoder_rows(folder, [latent]) for folder, latent in zip(folders, latents, strict=True))),
        "encoder_cosine": _cosine(
            *(encoder_columns(folder, [latent]) for folder, latent in zip(folders, latents, strict=True))
        ),
    }
    if saes[0].text != saes[1].text or not all(_has_firings(explorer, sae) for sae in saes):
        return {**found, "phi": None, "n_both": None, "n_a": None, "n_b": None, "only_a": [], "only_b": [], "both": []}
    fired = [_firings(explorer, sae).latent(latent) for sae, latent in zip(saes, latents, strict=True)]
    (tokens_a, values_a), (tokens_b, values_b) = fired
    in_b, in_a = together.is_in(tokens_a, tokens_b), together.is_in(tokens_b, tokens_a)
    text = explorer.text(saes[0].text)

    def windows(tokens: np.ndarray, values: np.ndarray) -> list[dict]:
        shown = [together.window(text, peak, fired) for peak in together.apart(tokens, values, WINDOWS)]
        return [{**each, **dict(zip("ab", each.pop("values"), strict=True))} for each in shown]

    n_both = int(in_b.sum())
    return {
        **found,
        "phi": together.phi(n_both, len(tokens_a), len(tokens_b), saes[0].n_tokens),
        "n_both": n_both,
        "n_a": len(tokens_a),
        "n_b": len(tokens_b),
        "only_a": windows(tokens_a[~in_b], values_a[~in_b]),
        "only_b": windows(tokens_b[~in_a], values_b[~in_a]),
        "both": windows(tokens_a[in_b], values_a[in_b]),
    }


def _cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    """None between SAEs of different width."""
    return cosines(np.concatenate([one, other]))[0][1] if one.shape == other.shape else None


def _folder(explorer: "Explorer", sae: "SaeFacts"):
    return explorer.run_folder / "arms" / sae.name


def _has_firings(explorer: "Explorer", sae: "SaeFacts") -> bool:
    """Whether its firings are still in the run folder."""
    return sae.has_firings and (_folder(explorer, sae) / "firings" / "by_latent").is_dir()


def _firings(explorer: "Explorer", sae: "SaeFacts") -> FiringFiles:
    return open_firing_files(_folder(explorer, sae))
