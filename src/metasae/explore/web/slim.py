"""Leaves out of a static copy's answers what it stores once: the evaluation text, and each latent's top tokens.

The windows and neighbours of latents repeat both a hundred times. The files of latents and splits go without them, and
static/files.js puts them back from the text's chunks and from the tables of latents.
"""


def slim_latent(page: dict, with_text: bool) -> dict:
    """A latent's page without the tokens of its windows and the words of its neighbours.

    with_text: whether the text is among the files; else the windows keep their tokens.
    """
    near = {kind: entries for kind, entries in page["neighbours"].items() if kind != "other"}
    far = page["neighbours"].get("other", {})
    neighbours = {**_bare(near), "other": {sae: _bare(kinds) for sae, kinds in far.items()}}
    meta = [{**entry, "siblings": [_without_words(sibling) for sibling in entry["siblings"]]} for entry in page["meta"]]
    return {**slim_windows(page, with_text), "neighbours": neighbours, "meta": meta}


def slim_windows(page: dict, with_text: bool) -> dict:
    """A latent's or a split's page whose windows hold their place in the text, but not its tokens."""
    if not with_text:
        return page
    named = ("tokens", "names")
    windows = [{key: value for key, value in window.items() if key not in named} for window in page["windows"]]
    return {**page, "windows": windows}


def _bare(kinds: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return {kind: [_without_words(entry) for entry in entries] for kind, entries in kinds.items()}


def _without_words(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key not in ("top_tokens", "explanation")}
