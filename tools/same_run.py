"""Whether this checkout does what another one did: `python tools/same_run.py OTHER_CHECKOUT [FOLDER]`.

One tiny run (solo, control, joint and atomic, two seeds, with auto-interp, explorer and report) and one planted run are
made by each checkout's own `src`, with the same interpreter. Every file of the two run folders is compared; times,
versions and paths aside. Each difference is a line, and the exit status is 1 where there is any. FOLDER keeps the runs,
and a run of OTHER_CHECKOUT that is there is taken again.
"""

import html
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

HERE = Path(__file__).parents[1]
DEMO = """run demo --arms solo,control,joint,atomic --seeds 2 --out runs/demo
--set harvest.tokens=8000 --set train.tokens=16000 --set train.batch=256 --set sae.n=256 --set sae.k=8 --set meta.n=32
--set train.dead_after=3000 --set train.meta_dead_after=3000
--set measure.tokens=6000 --set measure.calibration_tokens=3000 --set measure.output_tokens=1000"""
PLANTED = "run planted --arms solo,joint --seeds 2 --out runs/planted --set train.tokens=40000"
INTERP = "interp runs/demo --scores embedding --latents 5"
COMMANDS = [DEMO.split(), PLANTED.split(), INTERP.split()]
# What no two runs share: clocks, the machine's load and where a file lies.
PASSING = re.compile(
    r"second|_ms$|^time|version|^path$|folder$|^cache$|started|finished|tokens_per|built_at|peak|created|^run$"
)
TEXT = (".md", ".tex", ".toml", ".csv")


def main(other: str, folder: str | None = None) -> int:
    """Prints every difference; returns how the process is to end."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        theirs = made_by(Path(other).resolve(), root / "other", keep=folder is not None)
        ours = made_by(HERE, root / "here", keep=False)
        lines = differences(theirs, ours)
    print("\n".join(lines) if lines else "the same files, values and weights")
    return 1 if lines else 0


def made_by(checkout: Path, where: Path, keep: bool) -> Path:
    """The folder that a checkout's commands wrote into."""
    if keep and (where / "done").exists():
        return where
    if where.exists():
        subprocess.run(["rm", "-rf", str(where)], check=True)
    where.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "2"}
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "metasae", *command], cwd=where, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{checkout}: metasae {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        (where / f"{command[0]}-{Path(command[-1]).name}.out").write_text(done.stdout)
    (where / "done").touch()
    return where


def differences(theirs: Path, ours: Path) -> list[str]:
    """One line for each file or value that one folder has and the other has not, or has otherwise."""
    runs = [
        {path.relative_to(root): path for path in sorted((root / "runs").rglob("*")) if path.is_file()}
        for root in (theirs, ours)
    ]
    names = [{name for name in run if not _passing_file(name)} for run in runs]
    lines = [f"only there: {name}" for name in sorted(names[0] - names[1])]
    lines += [f"only here: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        lines += [f"{name}: {line}" for line in _of_file(runs[0][name], runs[1][name])]
    return lines


def _passing_file(name: Path) -> bool:
    return name.suffix in (".lock", ".png", ".sqlite-wal", ".sqlite-shm") or name.name == "run.lock"


def _of_file(there: Path, here: Path) -> list[str]:
    if there.read_bytes() == here.read_bytes():
        return []
    if there.suffix == ".json":
        return _of_values(json.loads(there.read_text()), json.loads(here.read_text()), "")
    if there.suffix == ".jsonl":
        rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (there, here)]
        return _of_values(*rows, "")
    if there.suffix == ".safetensors":
        return _of_tensors(load_file(there), load_file(here))
    if there.suffix == ".sqlite":
        return _of_tables(_tables(there), _tables(here))
    if there.suffix == ".html":
        return [] if _as_read(there) == _as_read(here) else ["another page"]
    if there.suffix in TEXT:
        return _of_lines(there.read_text().splitlines(), here.read_text().splitlines())
    if there.suffix == ".svg":
        return [] if _drawn(there) == _drawn(here) else ["drawn otherwise"]
    return ["other bytes"]


def _as_read(path: Path) -> str:
    """A page's text and tags, whatever white space and escapes it is written with."""
    return re.sub(r"\s*([<>])\s*", r"\1", " ".join(html.unescape(path.read_text()).split()))


def _drawn(path: Path) -> str:
    """A figure without the identifiers that matplotlib draws by lot, and the date."""
    return re.sub(r'(id="|#|url\(#)[\w.-]+|<dc:date>[^<]*', "", path.read_text())


def _of_values(there: object, here: object, key: str) -> list[str]:
    if PASSING.search(key.rpartition(".")[2]):
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        lines = [f"{key}.{name} only there" for name in there.keys() - here.keys() if not PASSING.search(name)]
        lines += [f"{key}.{name} only here" for name in here.keys() - there.keys() if not PASSING.search(name)]
        for name in there.keys() & here.keys():
            lines += _of_values(there[name], here[name], f"{key}.{name}")
        return lines
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [
            line for i, pair in enumerate(zip(there, here, strict=True)) for line in _of_values(*pair, f"{key}[{i}]")
        ]
    same = there == here or (there != there and here != here)
    return [] if same else [f"{key} was {str(there)[:80]}, is {str(here)[:80]}"]


def _of_tensors(there: dict, here: dict) -> list[str]:
    if there.keys() != here.keys():
        return [f"tensors {sorted(there)} against {sorted(here)}"]
    return [f"tensor {name} differs" for name in there if there[name].tobytes() != here[name].tobytes()]


def _tables(path: Path) -> dict[str, list]:
    with sqlite3.connect(path) as connection:
        names = [
            row[0] for row in connection.execute("select name from sqlite_master where type = 'table' order by name")
        ]
        rows = {name: connection.execute(f'select * from "{name}"').fetchall() for name in names}
    # what a part was made from holds files with times in them, and beside it stands how long it took
    return rows | {"parts": sorted(row[0] for row in rows.get("parts", []))}


def _of_tables(there: dict[str, list], here: dict[str, list]) -> list[str]:
    lines = [f"table {name} on one side" for name in there.keys() ^ here.keys()]
    for name in there.keys() & here.keys():
        apart = [
            pair
            for pair in zip(there[name], here[name], strict=False)
            if pair[0] != pair[1] and not PASSING.search(str(pair[0][0]))
        ]
        if apart or len(there[name]) != len(here[name]):
            lines.append(
                f"table {name}: {len(there[name])} against {len(here[name])} rows, {len(apart)} differ, e.g. "
                f"{str(apart[:1])[:300]}"
            )
    return lines


def _of_lines(there: list[str], here: list[str]) -> list[str]:
    if len(there) != len(here):
        return [f"{len(there)} against {len(here)} lines"]
    apart = [pair for pair in zip(there, here, strict=True) if pair[0] != pair[1]]
    return [f"{len(apart)} lines differ, e.g. {apart[0][0][:100]!r} -> {apart[0][1][:100]!r}"] if apart else []


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python tools/same_run.py OTHER_CHECKOUT [FOLDER]")
    sys.exit(main(*sys.argv[1:]))
