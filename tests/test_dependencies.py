"""What src imports is declared, and what is declared says from where to where it works."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

from metasae.files import toml

ROOT = Path(__file__).parents[1]
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# import name -> package, where they differ by more than `_` for `-`, or come with another
PACKAGES = {"lap": "lapx", "markupsafe": "jinja2"}
# installed for a file that it carries
NEVER_IMPORTED = {"plotly"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(texts):
    return {normal(requirement.name): requirement for requirement in map(Requirement, texts)}


@cache
def imports():
    """{package: the first file that imports it}, relative to the root."""
    importers = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for module in modules_of(node):
                name = module.split(".")[0]
                if name not in sys.stdlib_module_names and name != "metasae":
                    importers.setdefault(normal(PACKAGES.get(name, name)), file.relative_to(ROOT))
    return importers


def modules_of(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []


CORE = requirements(PROJECT["dependencies"])
EXTRAS = requirements(text for texts in PROJECT["optional-dependencies"].values() for text in texts)


def test_every_import_is_declared():
    undeclared = {name: str(file) for name, file in imports().items() if name not in CORE | EXTRAS}
    assert not undeclared, undeclared


def test_every_dependency_is_imported():
    assert CORE.keys() - imports().keys() == NEVER_IMPORTED


def test_every_dependency_says_from_where_to_where_it_works():
    for requirement in CORE.values():
        assert {bound.operator for bound in requirement.specifier} == {">=", "<"}, requirement


def test_the_oldest_releases_are_the_lower_bounds():
    """But for torch, whose old releases are not to be had in a usable size."""
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements(line for line in lines if not line.startswith("#"))
    assert CORE.keys() - pins.keys() == {"torch"} and pins.keys() <= CORE.keys() | EXTRAS.keys()
    for name, pin in pins.items():
        (version,) = (bound.version for bound in pin.specifier)
        lowest = [bound.version for bound in (CORE | EXTRAS)[name].specifier if bound.operator == ">="]
        assert re.fullmatch(rf"{re.escape(*lowest)}(\.0)*", version), (
            f"{name}: {pin} in tests/oldest.txt, {lowest} in pyproject.toml"
        )
