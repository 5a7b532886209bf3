"""The part of a report that shows latents: how solo's split best, and which latents look least like one concept, with windows of text.

Read from the explorer's store, so it is there for runs that keep their firings. All text of tokens is escaped.
"""

import html
from collections.abc import Iterator, Sequence

SPLITS, WORST, WINDOWS = 10, 10, 4
# Tokens on either side of a window's peak.
AROUND = 10
# Which latents are the worst, by the first of these that the SAE has: (column, largest first, in words).
WORST_BY = (
    ("interp.detection.same_token", False, "lowest detection score against silent windows with the same token"),
    ("interp.embedding.same_token", False, "lowest embedding score against silent windows with the same token"),
    ("nearest_phi", True, "largest phi with another latent"),
)
STYLE = """
.window { margin: .35rem 0; font: .84rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.window mark { color: inherit; border-radius: 3px; padding: 0 1px;
  background: color-mix(in srgb, var(--hue, var(--accent)) var(--heat), transparent); }
.latent { padding: .8rem 1rem; margin: .8rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.latent h3 { margin: 0 0 .3rem; font-size: 1rem; }
.child-0 { --hue: #0072b2; } .child-1 { --hue: #e69f00; } .child-2 { --hue: #009e73; } .child-3 { --hue: #cc79a7; } .child-4 { --hue: #d55e00; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; background: var(--hue); margin-right: .4em; }
"""


def latents_sections(explorer, baseline: str) -> list[str]:
    """HTML sections. explorer: the run's `metasae.explore.pages.queries.Explorer`. baseline: the arm whose latents split."""
    saes = explorer.overview()["saes"]
    arm = next(
        (
            each
            for each in sorted(saes, key=lambda each: (each["arm"] != "joint", each["name"]))
            if each["arm"] != baseline
        ),
        saes[0],
    )
    return [*_splits(explorer), *_worst(explorer, arm["name"])]


def _splits(explorer) -> Iterator[str]:
    found = explorer.splits(limit=SPLITS)
    if not found["rows"]:
        return
    base = found["base_rate"]
    numbers = f"{found['summary']['n_above_0.1']} splits score above 0.1"
    if base:
        numbers += f"; {base['n_above_0.1']} of the same latents do between two seeds of solo ({_text(base['pair'])}), which is the base rate"
    yield (
        f"<section><h2>How latents split: {_text(found['pair'])}</h2><p>The {len(found['rows'])} best of {found['total']:,} candidates, "
        f"chosen on one half of the documents and scored on the other. {numbers}. A split is not yet two concepts: read the windows.</p>"
    )
    for row in found["rows"]:
        yield _split(explorer.split(row["id"]))
    yield "</section>"


def _split(split: dict) -> str:
    children = "".join(
        f"<div class=child-{place % 5}><span class=swatch></span>{_text(child['sae'])} {child['latent']}: {child['share']:.0%} of the parent's "
        f"firings alone, phi {child['phi']:.2f}; {_tokens(child)}</div>"
        for place, child in enumerate(split["children"])
    )
    parent = split["parent"]
    windows = "".join(_split_window(window) for window in _one_per_child(split["windows"], len(split["children"])))
    return (
        f"<div class=latent><h3>{_text(parent['sae'])} {parent['latent']}: {_tokens(parent)}</h3><small>score {split['score']:.2f}; coverage "
        f"{split['coverage']:.0%}; two or more at once {split['overlap']:.0%}; {split['firings']:,} firings held out</small>{children}{windows}</div>"
    )


def _one_per_child(windows: Sequence[dict], n_children: int) -> list[dict]:
    """The first windows of each child in turn, so that none is left out."""
    of_child = [[window for window in windows if window["fires"] == [child]] for child in range(n_children)]
    return [of[turn] for turn in range(max(1, WINDOWS // n_children)) for of in of_child if turn < len(of)]


def _split_window(window: dict) -> str:
    """Tokens on which a child fires are coloured as the child."""
    strongest = max(max(window["parent"]), max(map(max, window["children"]), default=0.0)) or 1.0
    first, last = _span(window)
    cells = []
    for place in range(first, last):
        values = [child[place] for child in window["children"]]
        value = max(values, default=0.0)
        cells.append(
            _cell(window["tokens"][place], value / strongest, f"child-{values.index(value) % 5}" if value > 0 else "")
        )
    return f"<div class=window>{''.join(cells)}</div>"


def _worst(explorer, sae: str) -> Iterator[str]:
    columns = {column["key"] for column in explorer.latents(sae, limit=1)["columns"]}
    for key, descending, words in WORST_BY:
        rows = explorer.latents(sae, sort=key, descending=descending, limit=WORST)["rows"] if key in columns else []
        rows = [row for row in rows if row.get(key) is not None]
        if rows:
            yield f"<section><h2>Least atomic latents of {_text(sae)}</h2><p>Those with the {words}. The strongest windows of each.</p>"
            for row in rows:
                yield _latent(explorer.latent(sae, row["latent"]), key, row[key])
            yield "</section>"
            return


def _latent(latent: dict, key: str, value: float) -> str:
    said = f"<p>{_text(latent['explanation']['text'])}</p>" if latent["explanation"] else ""
    windows = "".join(_window(window, latent["max"]) for window in latent["windows"][:WINDOWS])
    tokens = ", ".join(f"{_text(repr(each['token']))}" for each in latent["tokens"][:5])
    return (
        f"<div class=latent><h3>{latent['latent']}: {tokens}</h3><small>{_text(key)} {value:.2f}; fires on {latent['scalars']['firings']:,} of "
        f"{latent['scalars']['n_tokens']:,} tokens</small>{said}{windows}</div>"
    )


def _window(window: dict, strongest: float) -> str:
    first, last = _span(window)
    cells = (
        _cell(window["tokens"][place], window["values"][place] / (strongest or 1.0)) for place in range(first, last)
    )
    return f"<div class=window>{''.join(cells)}</div>"


def _span(window: dict) -> tuple[int, int]:
    return max(0, window["peak"] - AROUND), min(len(window["tokens"]), window["peak"] + AROUND + 1)


def _cell(token: str, heat: float, name: str = "") -> str:
    """heat: 0 to 1; silent tokens are plain text."""
    if heat <= 0:
        return _text(token)
    return f'<mark class="{name}" style="--heat:{15 + 65 * min(heat, 1.0):.0f}%">{_text(token)}</mark>'


def _tokens(latent: dict) -> str:
    return ", ".join(_text(repr(token)) for token in latent["top_tokens"][:5])


def _text(value) -> str:
    """Escaped; a line break inside a token is shown, not made."""
    return html.escape(str(value), quote=True).replace("\n", "&crarr;").replace("\r", "")
