"""The conditions that SAEs were trained in, by their metadata, compared with those they are measured in.

If all SAEs of another library agree on BOS and context, they are measured with these. Every other difference is
reported with both values. The names are SAELens's; the metadata of every format are read by these names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metasae.recipe.recipe import Recipe

# TransformerLens's name -> the hub's
HUB_NAMES = {"gpt2-small": "gpt2"}


@dataclass(frozen=True)
class Conditions:
    """How an SAE was trained, by its metadata; None for what they do not say. ours: the values are from a recipe of
    ours.
    """

    bos: bool | None = None
    context: int | None = None
    point: str | None = None
    model: str | None = None
    text: str | None = None
    ours: bool = False

    @classmethod
    def of(cls, metadata: dict, recipe: dict | None) -> "Conditions":
        """The conditions in an SAE's metadata. recipe: the recipe it was trained by, None for an SAE of another
        library. A value of the wrong type counts as missing.
        """
        if isinstance(recipe, dict):
            model, text, hook = (recipe.get(name) for name in ("model", "text", "hook"))
            source = _said(model, "path", str) or _said(model, "name", str) or None
            point, places = _said(hook, "point", str), _said(text, "source", str)
            return cls(_said(model, "bos", bool), _said(text, "context", int), point, source, places, True)
        names = (_said(metadata, key, str) for key in ("hook_name", "model_name", "dataset_path"))
        return cls(_said(metadata, "prepend_bos", bool), _said(metadata, "context_size", int), *names)


def adopted(stated: Sequence[Conditions], recipe: Recipe, asked: Sequence[str]) -> tuple[Recipe, list[str]]:
    """Adopts the BOS and context that all SAEs were trained with; returns (the recipe, a line for each value that
    changed).

    asked: the keys that the user set, which stay. If the SAEs differ, or all are ours, the recipe stays unchanged.
    """
    lines = []
    if not recipe.reads_text or all(one.ours for one in stated):
        return recipe, lines
    bos = {one.bos for one in stated if one.bos is not None}
    context = {one.context for one in stated if one.context is not None}
    if bos == {False} and recipe.model.bos == "auto" and "model.bos" not in asked:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"bos": False})})
        lines.append(
            "windows begin without BOS, as in the training of the SAEs (prepend_bos = false); use --set model.bos=true "
            "for BOS"
        )
    here = recipe.text.context
    if len(context) == 1 and context != {here} and min(context) >= 4 and "text.context" not in asked:
        there = min(context)
        recipe = recipe.model_copy(update={"text": recipe.text.model_copy(update={"context": there})})
        lines.append(
            f"windows have {there} tokens, as in the training of the SAEs (context_size), not the recipe's {here}; "
            f"use --set text.context={here} for the recipe's"
        )
    return recipe, lines


def differences(stated: Conditions, recipe: Recipe, bos: bool) -> dict[str, list]:
    """{condition: [value in the SAE's training, value in measuring]} of the conditions that differ. bos: whether
    windows begin with BOS in measuring.
    """
    pairs = {
        "prepend_bos": (stated.bos, bos, stated.bos == bos),
        "context_size": (stated.context, recipe.text.context, stated.context == recipe.text.context),
        "hook_name": (stated.point, recipe.hook.point, _place(stated.point) == _place(recipe.hook.point)),
        "model_name": (stated.model, recipe.model.source, _name(stated.model) == _name(recipe.model.source)),
        "dataset_path": (stated.text, recipe.text.source, stated.text == recipe.text.source),
    }
    return {key: [there, here] for key, (there, here, same) in pairs.items() if there is not None and not same}


def other_place(stated: str | None, point: str) -> bool:
    """Whether an SAE says that it was trained at another hook point than `point`."""
    return stated is not None and _place(stated) != _place(point)


def _said(values: Any, key: str, kind: type) -> Any:
    """The value of a key if it has the right type, else None, as files of others may contain anything."""
    value = values.get(key) if isinstance(values, dict) else None
    return value if type(value) is kind else None


def _name(model: str | None) -> str:
    """A model's name without its owner or folder, as libraries leave these out."""
    last = (model or "").rstrip("/").rpartition("/")[2].lower()
    return HUB_NAMES.get(last, last)


def _place(point: str | None) -> str:
    """A hook point's name, in which the output of a block is written as the input of the next."""
    head, sign, layer = (point or "").removesuffix(".hook_resid_post").partition("blocks.")
    if point and point.endswith(".hook_resid_post") and not head and sign and layer.isdigit():
        return f"blocks.{int(layer) + 1}.hook_resid_pre"
    return point or ""
