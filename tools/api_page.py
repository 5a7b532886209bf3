"""docs/api.md, made from the docstrings of the public names: `python -m tools.api_page docs/api.md`."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import metasae
from metasae.jobs.latents import Latents

HEAD = """# The Python interface

Every name below is `metasae.NAME`, apart from the classes that a call returns. Each loads what it needs when it is
first used. A mistake that you can put right raises `metasae.UserError` with one line. The notebooks in `notebooks/`
show the names at work.
This page is made from the docstrings by `python -m tools.api_page docs/api.md`.
"""
# title -> (public names, classes that calls return)
GROUPS: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "Train, measure, compare": (("run", "train", "measure", "evaluate", "compare", "Run"), ()),
    "SAEs": (("load", "SAE", "Codes", "latents", "steer"), (Latents,)),
    "Recipes and your own parts": (("Recipe", "penalty", "architecture", "Architecture", "Spikes", "UserError"), ()),
}
# Members that are no part of the interface, though their names are public: the weights' set-up and pydantic's hooks.
_LEFT_OUT = {"init_weights", "normalise", "pre_activations", "n_latents", "model_config"}


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for title, (names, classes) in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts.append(_entry(f"metasae.{name}", getattr(metasae, name)))
        parts += [_entry(kind.__name__, kind) for kind in classes]
    return "\n".join(parts)


def _entry(title: str, thing: Any) -> str:
    """The heading, signature and docstring of a function or class; of a class its members too."""
    lines = [f"### `{title}`\n"]
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing):
            lines.append(_code(f"{title}({', '.join(field.name for field in dataclasses.fields(thing))})"))
        elif "__init__" in vars(thing):
            lines.append(_code(_signature(vars(thing)["__init__"], title)))
        lines.append(_prose(_own_doc(thing), _names(thing)))
        lines += [_member(name, member) for name, member in vars(thing).items() if _is_shown(name, member)]
    else:
        function = inspect.unwrap(thing)
        lines += [_code(_signature(function, title)), _prose(function.__doc__, _names(function))]
    return "\n".join(lines)


def _member(name: str, member: Any) -> str:
    function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
    if not inspect.isfunction(member) and not isinstance(member, (classmethod, staticmethod)):
        return f"`.{name}`: {_prose(function.__doc__)}"
    function = inspect.unwrap(function)
    return f"`.{_signature(function, name)}`: {_prose(function.__doc__, _names(function))}"


def _is_shown(name: str, member: Any) -> bool:
    if name.startswith("_") or name in _LEFT_OUT or inspect.isclass(member):
        return False
    function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
    return inspect.isfunction(function) and bool(function.__doc__)


def _signature(function: Any, title: str) -> str:
    """As it is written in the source, so that it is the same under every Python."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    arguments = tree.args
    for names in (arguments.posonlyargs, arguments.args):
        if names and names[0].arg in ("self", "cls"):
            del names[0]
    returns = f" -> {ast.unparse(tree.returns)}" if tree.returns and function.__name__ != "__init__" else ""
    return f"{title}({ast.unparse(arguments)}){returns}"


def _own_doc(kind: type) -> str:
    first, own = inspect.getdoc(kind) or "", vars(kind).get("__init__")
    has_more = inspect.isfunction(own) and own.__doc__ and not dataclasses.is_dataclass(kind)
    return f"{first}\n\n{inspect.cleandoc(own.__doc__)}" if has_more else first


def _code(signature: str) -> str:
    return f"```python\n{signature}\n```\n"


def _prose(doc: str | None, arguments: tuple[str, ...] = ()) -> str:
    """A docstring's paragraphs, one line each. What is said of an argument is an item of a list, errors are a paragraph
    of their own, and indented code stays code.
    """
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(doc or ""))
    shown = [
        f"```\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else _line(block, arguments)
        for block in blocks
    ]
    return "\n\n".join(shown) + "\n"


def _line(block: str, arguments: tuple[str, ...]) -> str:
    text = " ".join(block.split()).replace("<", "&lt;")
    text = re.sub(r"(?<=\.) (Raises [A-Z])", r"\n\n\1", text)
    if not arguments:
        return text
    name = "|".join(map(re.escape, arguments))
    listed = re.sub(rf"(?:^|(?<=[.;]) )((?:{name})(?:, (?:{name}))*): ", r"\n- `\1`: ", text)
    # a paragraph that begins with an argument begins with a list
    return listed.removeprefix("\n").replace("\n- ", "\n\n- ", 1) if not listed.startswith("\n") else listed[1:]


def _names(thing: Any) -> tuple[str, ...]:
    """Of the arguments of a function, or of a class with an initialiser of its own."""
    if inspect.isclass(thing) and not (dataclasses.is_dataclass(thing) or "__init__" in vars(thing)):
        return ()
    return tuple(name for name in inspect.signature(thing).parameters if name not in ("self", "cls"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.api_page docs/api.md")
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
