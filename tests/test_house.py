"""The house: which rooms may import which, and how much lies at the root."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import metasae

ROOT = Path(metasae.__file__).parent
# The highest first. Within a line nothing imports sideways, except steering interop, and what is on the last line.
FLOORS = [
    {"cli"},
    {"jobs"},
    {"explore", "report", "interop", "tracking", "steering"},
    {"interp", "sweep"},
    {"compare", "doctor"},
    {"arms"},
    {"measures"},
    {"data", "train"},
    {"ranks"},
    {"sae"},
    {"recipe"},
    {"intervals", "encodings", "errors", "files", "progress", "device", "locks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SIDEWAYS = {("steering", "interop")}
# A class and the file format that it is saved in.
CIRCLES = {("metasae.sae.folder", "metasae.sae.sae")}


def imports(path: Path) -> Iterator[str]:
    """Modules and names imported anywhere in a file, inside functions too, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(("metasae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def edges() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        for name in imports(path):
            target = name if name in MODULES else name.rpartition(".")[0]
            if target in MODULES and target not in ("metasae", module):
                yield module, target


def room_of(module: str) -> str:
    return module.split(".")[1]


def allowed(upper: str, lower: str) -> bool:
    last = len(FLOORS) - 1
    return (
        upper == lower
        or FLOOR[upper] < FLOOR[lower]
        or (upper, lower) in SIDEWAYS
        or FLOOR[upper] == FLOOR[lower] == last
    )


def test_nothing_imports_upwards():
    within_rooms = [(one, other) for one, other in edges() if one not in ("metasae", "metasae.__main__")]
    wrong = [f"{one} -> {other}" for one, other in within_rooms if not allowed(room_of(one), room_of(other))]
    assert not wrong


def test_the_public_names_are_no_way_round_the_rule():
    """Rooms take nothing from the package itself but its version; an SAE's method for the public function of its name
    is the one exception.
    """
    taken = {
        (module, node.attr)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "metasae"
    }
    assert {pair for pair in taken if pair[1] != "__version__"} == {("metasae.sae.sae", "latents")}


def test_no_circles():
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for one, other in edges():
        if tuple(sorted((one, other))) not in CIRCLES:
            below[one].add(other)
    while leaves := [module for module, targets in below.items() if not targets]:
        for leaf in leaves:
            del below[leaf]
        for targets in below.values():
            targets.difference_update(leaves)
    assert not below, f"circles among {sorted(below)}"


def test_the_root_is_small():
    loose = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(loose) <= 6, loose
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= FLOOR.keys()


def test_the_architecture_page_names_what_is_there():
    """Every path in backticks on the page exists: files, rooms, and files named beside their room."""
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    paths = re.findall(r"`((?:[\w*]+/)*[\w*]*(?:/|\.py|\.toml))`", page)
    named = {path for path in paths if not path.startswith(("RUN/", "tests/", "tools/", "src/", "pyproject"))}
    assert len(named) > 40
    missing = [path for path in named if not (list(ROOT.glob(path.rstrip("/"))) or list(ROOT.rglob(path.rstrip("/"))))]
    assert not missing


def test_the_page_is_one_page():
    assert len((ROOT.parents[1] / "docs" / "architecture.md").read_text().splitlines()) <= 100
