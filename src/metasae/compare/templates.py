"""The templates (jinja2) in which comparisons and reports are written: files beside the code that fills them."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from metasae.compare.catalogue import grouped
from metasae.compare.words import change, is_established, number, reading, towards


def fill(template: Path, **values: object) -> str:
    """A template with its values in place, which are escaped where the template is HTML."""
    return _environment(template.parent).get_template(template.name).render(**values)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    words = {"change": change, "is_established": is_established, "number": number, "reading": reading}
    environment.globals |= {"grouped": grouped, "towards": towards, **words}
    return environment
