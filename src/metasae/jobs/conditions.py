"""The conditions that SAEs say they were trained in, beside those they are measured in.

Where all SAEs of another library agree on BOS and context, they are measured with these. Whatever else differs is said,
with both values. The names are SAELens's, by which every format's metadata are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metasae.recipe.recipe import Recipe

# TransformerLens's name -> the hub's
_ALIASES = {"gpt2-small": "gpt2"}


@dataclass(frozen=True)
class Conditions:
    """How an SAE was trained, as far as it says so; None where it does not. ours: its recipe says it, not a note."""

    bos: bool | None = None
    context: int | None = None
    point: str | None = None
    model: str | None = None
    text: str | None = None
    ours: bool = False

    @classmethod
    def of(cls, metadata: dict, recipe: dict | None) -> "Conditions":
        """metadata: the SAE's. recipe: the one it was trained by here, None for an SAE of other making. Values of
        another type count as not said.
        """
        if isinstance(recipe, dict):
            model, text, hook = (recipe.get(name) for name in ("model", "text", "hook"))
            source = _said(model, "path", str) or _said(model, "name", str) or None
            point, places = _said(hook, "point", str), _said(text, "source", str)
            return cls(_said(model, "bos", bool), _said(text, "context", int), point, source, places, True)
        names = (_said(metadata, key, str) for key in ("hook_name", "model_name", "dataset_path"))
        return cls(_said(metadata, "prepend_bos", bool), _said(metadata, "context_size", int), *names)


def adopted(stated: Sequence[Conditions], recipe: Recipe, asked: Sequence[str]) -> tuple[Recipe, list[str]]:
    """(the recipe with the BOS and context that all SAEs say they were trained with, a line for each that changed).

    asked: the keys that whoever measures set by hand, which stay. Where SAEs differ, and for SAEs of ours alone, the
    recipe stays as it is.
    """
    lines = []
    if not recipe.reads_text or all(one.ours for one in stated):
        return recipe, lines
    bos, context = ({value for value in values if value is not None} for values in _columns(stated))
    if bos == {False} and recipe.model.bos == "auto" and "model.bos" not in asked:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"bos": False})})
        lines.append(
            "windows begin without BOS, as the SAEs say they were trained (prepend_bos = false); --set model.bos=true "
            "for the model's own"
        )
    here = recipe.text.context
    if len(context) == 1 and context != {here} and min(context) >= 4 and "text.context" not in asked:
        there = min(context)
        recipe = recipe.model_copy(update={"text": recipe.text.model_copy(update={"context": there})})
        lines.append(
            f"windows have {there} tokens, as the SAEs say they were trained (context_size), not the recipe's {here}; "
            f"--set text.context={here} for these"
        )
    return recipe, lines


def differences(stated: Conditions, recipe: Recipe, bos: bool) -> dict[str, list]:
    """{condition: [as the SAE says it was trained, as it is measured]} of those that differ. bos: whether windows begin
    with it here.
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
    """The value of a key where it is of its kind, else None: files of others hold anything."""
    value = values.get(key) if isinstance(values, dict) else None
    return value if type(value) is kind else None


def _columns(stated: Sequence[Conditions]) -> tuple[list, list]:
    return [one.bos for one in stated], [one.context for one in stated]


def _name(model: str | None) -> str:
    """A model's name without its owner or folder, as libraries leave these out."""
    last = (model or "").rstrip("/").rpartition("/")[2].lower()
    return _ALIASES.get(last, last)


def _place(point: str | None) -> str:
    """A hook point; what leaves a block is what enters the next."""
    head, sign, layer = (point or "").removesuffix(".hook_resid_post").partition("blocks.")
    if point and point.endswith(".hook_resid_post") and not head and sign and layer.isdigit():
        return f"blocks.{int(layer) + 1}.hook_resid_pre"
    return point or ""
