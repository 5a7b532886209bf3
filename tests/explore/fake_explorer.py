"""Something with the methods of `metasae.explore.pages.queries.Explorer`, made up from arithmetic.

Its tokens try to be markup.
"""

import math

NASTY = [
    "<script>alert(1)</script>",
    " \U0001f9ea",
    "<0xE2>",
    " שלום",
    "\n",
    " <img src=x onerror=alert(2)>",
    ' "quoted" & <b>',
    " bank",
]
WORDS = [" river", " money", " bank", " tree", " loan", "s", " water", " the", *NASTY]
LABELS = ("sense split", "duplicate", "absorption", "junk", "keep", "unsure")
TOKENS = 5000
COLUMNS = [("rate", "firing rate"), ("threshold", "threshold"), ("max", "largest activation"),
           ("nearest_phi", "nearest phi"), ("nearest_cosine", "nearest decoder cosine"),
           ("match_cosine", "cosine with its match"), ("meta_e", "meta SAE's error"), ("split_score", "split score"),
           ("interp.detection.random", "detection, random")]  # fmt: skip


def words_of(latent):
    """The tokens a latent fires on, most first."""
    start, step = latent % len(WORDS), 7
    return [WORDS[(start + step * t) % len(WORDS)] for t in range(9)]


QUANTITIES = [
    {"key": f"{group}.{name}", "label": label, "group": group, "group_label": title, "better": better,
     "main": name != "l0",
     "meaning": f"what {label} means", "relative": True, "kind": kind}
    for group, name, label, title, better, kind in (
        ("fidelity", "fvu", "FVU", "Fidelity", "lower", "fidelity"),
        ("fidelity", "l0", "L0", "Fidelity", None, "fidelity"),
        ("cooccurrence", "mean_abs_phi", "mean |phi|", "Co-occurrence", None, "description"),
        ("cooccurrence", "nearest_phi", "nearest-partner phi", "Co-occurrence", None, "description"),
    )
]  # fmt: skip


def entry(difference, percent, clear, note=""):
    interval = [difference - 0.001, difference + 0.001] if clear else [difference - 1, difference + 1]
    percents = [percent - 0.5, percent + 0.5] if clear else [percent - 60, percent + 60]
    return {"a": 1.0 + difference, "b": 1.0, "difference": difference, "percent": percent, "ci95": interval,
            "percent_ci95": percents,
            "p_holm": 0.01 if clear else 0.5, "n_seeds": 2, "note": note, "values": [],
            "clear": clear, "change": f"{percent:+}% {percents}",
            "reading": "more atomic" if clear else "interval includes 0"}  # fmt: skip


PAIRED = {
    "edges": [-0.3, -0.1, 0.1, 0.3],
    "share": [0.1, 0.6, 0.3],
    "mirrored": [0.3, 0.6, 0.1],
    "n": 40,
    "higher": 21,
    "lower": 18,
    "tied": 1,
}


def scores_of(score, part, paired):
    row = {
        "what": "joint − solo, own latents",
        "kind": "seeds",
        "arm": "joint",
        "difference": 0.01,
        "ci95": [-0.01, 0.03],
        "n": 2,
        "unit": "seeds",
    }
    return {
        "score": score, "part": part, "chance": 0.5, "judge": "a <b>judge</b>", "baseline": "solo",
        "edges": [0.4, 0.6, 0.8],
        "n": {"solo-s0": 50, "joint-s0": 50}, "changes": {"joint": [-0.02, 0.02]}, "null": [], "paired": paired,
        "rows": [row],
    }  # fmt: skip


def F1(place, latent):
    """How specific a latent is to its token at a place of its list: fires 77 times, the token stands there 50 times."""
    return float(f"{2 * (20 - place) / (77 + 50):.6g}")


class FakeExplorer:
    """n latents in each SAE. The labels are kept in `given`."""

    def __init__(self, n=700, arms=("solo", "joint"), seeds=(0, 1)):
        self.n, self.arms, self.seeds = n, arms, seeds
        self.names = [f"{arm}-s{seed}" for arm in arms for seed in seeds]
        self.given = []

    def _check(self, sae, latent=0):
        if sae not in self.names:
            raise KeyError(f"no SAE '{sae}'; known: {', '.join(self.names)}")
        if not 0 <= latent < self.n:
            raise KeyError(f"no latent {latent} in {sae}: it has {self.n}")

    def overview(self):
        saes = [
            {"name": f"{arm}-s{seed}", "arm": arm, "seed": seed, "n": self.n, "live": self.n - 1, "l0": 8.0,
             "fvu": 0.2 + 0.01 * seed,
             "has_firings": True, "has_meta": arm == "joint", "hook": "blocks.1.hook_resid_pre", "model": "tiny"}
            for arm in self.arms for seed in self.seeds
        ]  # fmt: skip
        means = {
            "fidelity.fvu": 0.2,
            "cooccurrence.mean_abs_phi": 0.0071,
            "cooccurrence.nearest_phi": 0.24,
            "fidelity.l0": 8.0,
        }
        return {
            "run": "fake <b>run</b>",
            "headline": "Joint against solo, 2 seeds: no difference. <script>alert(5)</script>",
            "seeds": {arm: list(self.seeds) for arm in self.arms},
            "columns": [{"key": key, "label": label, "meaning": f"what {label} means"} for key, label in COLUMNS],
            "verdict": [
                {"kind": "trained", "text": "Not trained enough: r with another seed 0.31 (0.4 or more)."},
                {"kind": "truth", "text": "Joint against solo (2 seeds): no difference. <script>alert(3)</script>"},
            ],
            "conditions": {"n_tokens": TOKENS}, "baseline": "solo", "missing": [], "saes": saes,
            "quantities": QUANTITIES,
            "arms": {arm: {"seeds": list(self.seeds), "means": means, "intervals": {}} for arm in self.arms},
            "pairs": {"joint vs solo": {"fidelity.fvu": entry(0.02, 1.8, True),
                                        "cooccurrence.mean_abs_phi": entry(-0.01, -0.9, True),
                                        "cooccurrence.nearest_phi": entry(0.01, 3.7, False),
                                        "fidelity.l0": entry(0.0, 0.0, False)}},
            "pareto": [{**{key: sae[key] for key in ("name", "arm", "seed", "fvu")}, "mean_abs_phi": 0.01,
                        "nearest_phi": 0.2, "meta_ve_excess": None}
                       for sae in saes],
            "phi_histogram": {name: {"edges": [-1 + i / 10.5 for i in range(22)],
                                     "counts": [i + len(name) for i in range(21)]}
                              for name in self.names},
            "rates": {name: {"edges": [-4.0, -3.0, -2.0, -1.0], "counts": [3, 9, 2]} for name in self.names},
            "training": {name: [{"tokens": 10 * s, "fvu": 1 / s, "penalty": 0.5, "aux": 0.0} for s in range(1, 20)]
                         for name in self.names},
            "scores": [scores_of("embedding", "same_token", {"joint": {**PAIRED}}),
                       scores_of("detection", "random", {})],
            "causal": True, "tokens": TOKENS,
        }  # fmt: skip

    def _row(self, sae, i):
        rate = 0.0 if i == self.n - 1 else 0.2 / (1 + i)
        row = {"latent": i, "top_tokens": words_of(i)[:2],
               "explanation": f"about latent number {i}" if i % 3 == 0 else None,
               "label": self._label({"kind": "latent", "sae": sae, "latent": i})}  # fmt: skip
        values = [math.sin(i + k) for k in range(len(COLUMNS))]
        numbers = {key: round(abs(value), 6) for (key, _), value in zip(COLUMNS, values, strict=True)}
        numbers.pop("interp.detection.random")
        scores = {} if i % 2 == 0 else {"interp.detection.random": round(0.5 + i / 1000, 4)}
        return {"sae": sae, **row, **numbers, "rate": rate, **scores}

    def latents(
        self,
        sae,
        *,
        sort="rate",
        descending=True,
        search=None,
        min_rate=None,
        max_rate=None,
        label=None,
        dead=False,
        offset=0,
        limit=100,
    ):
        self._check(sae)
        if sort not in ("latent", "specific") and sort not in dict(COLUMNS):
            raise ValueError(f"no column '{sort}'")
        by_search = sort == "specific" and bool(search)
        sort = "rate" if sort == "specific" else sort
        rows = [self._row(sae, i) for i in range(self.n)]
        rows = [row for row in rows if (dead or row["rate"] > 0) and (label is None or row["label"] == label)]
        rows = [row for row in rows if row["rate"] >= (min_rate or 0) and row["rate"] <= (max_rate or 1)]
        if search:
            wanted = search.lower()
            rows = [row for row in rows
                    if any(token.strip().lower().startswith(wanted) for token in words_of(row["latent"])[:8])
                    or set(wanted.split()) <= set((row["explanation"] or "").split())]  # fmt: skip
            for row in rows:
                by = [token for token in words_of(row["latent"])[:8] if token.strip().lower().startswith(wanted)]
                row["found"] = by[0] if by and not set(by) & set(row["top_tokens"]) else None
        sign = -1 if descending else 1
        rows.sort(
            key=lambda row: (row.get(sort) is None, 0 if row.get(sort) is None else sign * row[sort], row["latent"])
        )
        if by_search:
            (group,) = [group for group in self.search(search, self.n)["groups"] if group["sae"] == sae] or [
                {"rows": []}
            ]
            order = [row["latent"] for row in group["rows"]]
            rows.sort(key=lambda row: order.index(row["latent"]) if row["latent"] in order else self.n)
        columns = [{"key": key, "label": name, "kind": "number"} for key, name in COLUMNS]
        return {
            "sae": sae,
            "total": len(rows),
            "offset": offset,
            "columns": columns,
            "rows": rows[offset : offset + limit],
        }

    def briefs(self, sae, ids):
        self._check(sae)
        return {str(i): {key: self._row(sae, i)[key] for key in ("top_tokens", "explanation")} for i in ids}

    def _window(self, i, k, long=False):
        tokens = [WORDS[(i + k + t) % len(WORDS)] for t in range(14)]
        peak = 5
        tokens[peak] = WORDS[(i + k % 3) % len(WORDS)]
        if long:
            tokens[2] = "x" * 10_000
        values = [0.0] * 14
        values[peak], values[peak + 1] = 3.0 - 0.05 * k, 0.4
        return {"decile": 9 - k // 4, "document": k, "start": 8 * k, "place": 20 * k, "peak": peak, "tokens": tokens,
                "values": values}  # fmt: skip

    def check(self, sae, latent):
        self._check(sae, latent)
        return latent

    def matches(self, sae, other, ids):
        """Latent 3 has a close match, 5 a far one, others none."""
        self._check(sae), self._check(other)
        known = {3: {"latent": 3, "cosine": 0.9}, 5: {"latent": 5, "cosine": 0.2}}
        return {str(i): known[i] for i in ids if i in known}

    def texts(self):
        """None of which the windows are."""
        return {}

    def document(self, sae, latent, place):
        self._check(sae, latent)
        tokens = [f" word{i}" for i in range(30)]
        values = [3.0 if i == 25 else 0 for i in range(30)]
        return {"document": 4, "start": 100, "n_tokens": 60, "peak": 25, "tokens": tokens, "names": {},
                "values": values, "breaks": []}  # fmt: skip

    def latent(self, sae, latent):
        self._check(sae, latent)
        near = [{"sae": sae, "latent": j, "value": 0.5 - j / 10, **self.briefs(sae, [j])[str(j)]} for j in range(1, 4)]
        other = next(name for name in self.names if name != sae)
        far = [{**entry, "sae": other, **self.briefs(other, [entry["latent"]])[str(entry["latent"])]} for entry in near]
        target = {"kind": "latent", "sae": sae, "latent": latent}
        row = self._row(sae, latent)
        return {
            "sae": sae, "latent": latent, "scalars": {**row, "firings": 77, "n_tokens": TOKENS}, "max": 3.0,
            "windows": [self._window(latent, k, long=k == 1) for k in range(40)],
            "tokens": [{"token": word, "id": t, "count": 50, "with": 20 - t, "lift": 9.0 - t, "share": 0.3 / (1 + t)}
                       for t, word in enumerate(words_of(latent))],
            "histogram": {"edges": [0.5, 1.0, 2.0, 3.0], "counts": [40, 30, 7], "threshold": 0.5},
            "neighbours": {"phi": near, "cosine": near, "encoder_cosine": near,
                           "other": {other: {"phi": far, "cosine": far}}},
            "matches": [{"sae": other, "latent": 4, "cosine": 0.8}],
            "meta": [{"meta_latent": 2, "weight": 0.6, "siblings": [{"latent": 9, "weight": 0.5,
                                                                     "top_tokens": words_of(9)[:2]}]}],
            "senses": [{"word": "bank", "sense": "river", "recall": 0.9, "share": 0.7}],
            "explanation": {"text": row["explanation"], "judge": "word list"} if row["explanation"] else None,
            "scores": [{"score": "detection", "part": "same_token", "value": 0.7, "chance": 0.5}],
            "replies": [{"score": "detection", "question": "Which of these <b>fire</b>?",
                         "reply": "1, 3\n<script>alert(4)</script>"}],
            "logits": {"up": [[" bank", 2.0], ["<b>", 1.0]], "down": [[" tree", -1.0]]},
            "splits": ["s0-17"], "labels": [entry for entry in self.given if entry["target"] == target],
        }  # fmt: skip

    def _split_row(self, id):
        kind = "merges" if id.startswith("m") else "splits"
        number = int(id.split("-")[1])
        sae, other = ("joint-s0", "solo-s0") if kind == "merges" else ("solo-s0", "joint-s0")
        parent = {"sae": sae, "latent": number, "top_tokens": [" bank", NASTY[0]]}
        children = [
            {
                "sae": other,
                "latent": number + c,
                "phi": 0.4 - 0.1 * c,
                "share": 0.5 - 0.2 * c,
                "top_tokens": [WORDS[c], NASTY[c]],
                "already": {"sae": sae, "latent": 829, "phi": 0.9, "same": True} if c else None,
            }
            for c in range(2)
        ]
        kept = number % 10 == 9
        parent["lives_on"] = {"sae": other, "latent": 2927, "phi": 0.92 if kept else 0.41, "same": kept}
        label = self._label({"kind": "split", "id": id})
        return {"id": id, "kind": kind, "pair": f"{sae} -> {other}", "parent": parent, "children": children,
                "coverage": 0.78, "overlap": 0.02, "score": 1 / (1 + number), "firings": 600,
                "kept": kept, "label": label}  # fmt: skip

    def splits(self, pair=None, kind="splits", offset=0, limit=50, search=None, min_score=None, label=None,
               kept=False):  # fmt: skip
        pairs = ["joint-s0 -> solo-s0"] if kind == "merges" else ["solo-s0 -> joint-s0", "solo-s1 -> joint-s1"]
        base = ["solo-s0 -> solo-s1"]
        if pair is not None and pair not in pairs + base:
            raise KeyError(f"no pair '{pair}'")
        rows = [self._split_row(f"{kind[0]}0-{i}") for i in range(120)]
        rows = [row for row in rows if row["score"] >= (min_score or 0) and label in (None, row["label"])]
        if search:
            sides = [(row, [row["parent"], *row["children"]]) for row in rows]
            rows = [
                row
                for row, both in sides
                if any(
                    str(side["latent"]) == search
                    or any(token.strip().lower().startswith(search.lower()) for token in side["top_tokens"])
                    for side in both
                )
            ]
        n_kept = sum(row["kept"] for row in rows)
        rows = [row for row in rows if kept or not row["kept"]]
        rows.sort(key=lambda row: (row["kept"], -row["score"]))
        return {"pairs": pairs, "base_pairs": base, "pair": pair or pairs[0], "kind": kind, "same_seed": False,
                "n_kept": n_kept,
                "summary": {"n_above_0.1": 150, "mean_score": 0.02},
                "base_rate": {"pair": base[0], "n_above_0.1": 186, "mean_score": 0.022},
                "total": len(rows), "rows": rows[offset : offset + limit]}  # fmt: skip

    def split(self, id):
        if not isinstance(id, str) or id[:3] not in ("s0-", "m0-"):
            raise KeyError(f"no split '{id}'")
        row = self._split_row(id)

        def fired(child, k):
            return [0, 0, 1.5 if k < 8 and k % 2 == child else 0, *[0] * 7]

        parent = [0, 0, 2.0, 0, 0, 0, 1.0, 0, 0, 0]
        windows = [
            {"document": k, "start": 3, "tokens": WORDS[:10], "parent": parent, "peak": 2,
             "fires": [k % 2] if k < 8 else [],
             "children": [fired(0, k), fired(1, k)]}
            for k in range(12)
        ]  # fmt: skip
        lift = [[9, 0, 3, 0, 1, 2, 0], [0, 8, 3, 0, 4, 0, None]]
        return {
            **row, "flow": {"parent_firings": 600, "alone": [290, 170], "two_or_more": 12, "none": 128},
            "cosine": [[1, 0.6, 0.5], [0.6, 1, 0.1], [0.5, 0.1, 1]],
            "phi": [[1, 0.4, 0.3], [0.4, 1, -0.01], [0.3, -0.01, 1]],
            "tokens": {"tokens": WORDS[:5] + NASTY[:2], "lift": lift, "counts": [[9] * 7, [8] * 7]},
            "windows": windows, "siblings_meta": [{"meta_latent": 3,
                                                   "children": [{"latent": 5, "weight": 0.5},
                                                                {"latent": 6, "weight": 0.4}]}],
            "labels": [entry for entry in self.given if entry["target"] == {"kind": "split", "id": id}],
        }  # fmt: skip

    def compare_latents(self, a, b):
        for side in (a, b):
            self._check(*side)
        brief = [
            {"sae": sae, "latent": latent, "scalars": self._row(sae, latent), "max": 3.0} for sae, latent in (a, b)
        ]
        windows = [
            {"a" if key == "values" else key: value for key, value in self._window(a[1], k).items()} for k in range(3)
        ]
        windows = [{**window, "b": window["a"][::-1], "values": [window["a"], window["a"][::-1]]} for window in windows]
        return {"a": brief[0], "b": brief[1], "phi": 0.31, "cosine": 0.42, "encoder_cosine": 0.53, "n_both": 11,
                "n_a": 40, "n_b": 30,
                "only_a": windows, "only_b": windows, "both": windows}  # fmt: skip

    def search(self, text, limit=20):
        groups = []
        for name in self.names:
            rows = self.latents(name, search=text, limit=self.n, dead=True)["rows"]
            for row in rows:
                tokens = words_of(row["latent"])
                where = [place for place, token in enumerate(tokens[:8]) if token.strip().lower().startswith(text)]
                if not where:
                    words = (row["explanation"] or "").split()
                    row |= {"where": "explanation", "text": row["explanation"],
                            "specific": min(1.0, len(text.split()) / len(words))}  # fmt: skip
                    continue
                f1 = {place: F1(place, row["latent"]) * len(text) / len(tokens[place].strip()) for place in where}
                best = max(where, key=lambda place: (f1[place], -place))
                row |= {"where": "token", "text": tokens[best], "specific": f1[best]}
            rows.sort(key=lambda row: (-row["specific"], row["latent"]))
            groups += [{"sae": name, "total": len(rows), "rows": rows[:limit]}] if rows else []
        return {"groups": groups}

    def _label(self, target):
        return next((entry["label"] for entry in self.given if entry["target"] == target), None)

    def set_label(self, target, label, note=""):
        if label is not None and label not in LABELS:
            raise ValueError(f"no label '{label}'; known: {', '.join(LABELS)}")
        if target.get("kind") == "latent":
            self._check(target["sae"], target["latent"])
        self.given = [entry for entry in self.given if entry["target"] != target]
        if label is not None:
            self.given.append({"target": target, "label": label, "note": note, "when": "2030-01-01T00:00:00"})

    def labels(self):
        return self.given


def fake_try(text):
    """Every second token makes latent 3 of each SAE fire."""
    tokens = [f" {word}" for word in text.split()]
    fired = [[[3, 1.5], [5, 0.5]] if t % 2 == 0 else [[5, 0.7]] for t in range(len(tokens))]
    return {"tokens": tokens, "left_out": 0, "saes": {name: {"fired": fired} for name in FakeExplorer().names}}


def fake_steer(sae, latent, text, value):
    return {"prompt": text, "without": " goes on", "with": f" {sae} {latent} at {value} <b>!</b>"}
