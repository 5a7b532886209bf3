"""The wheel holds every file of the package, and works where there is no clone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = {
    "planted.d": 16,
    "planted.independent": 12,
    "sae.n": 24,
    "sae.k": 2,
    "meta.n": 4,
    "meta.k": 2,
    "train.tokens": 1500,
    "train.batch": 64,
    "measure.tokens": 600,
    "measure.calibration_tokens": 300,
    "measure.critics": 1,
    "measure.meta_steps": 5,
    "seeds": 1,
}


# Several verbs in one process, which loads torch once; a verb that fails ends it.
VERBS = """
import json, sys
import metasae
from metasae.cli import main
print(metasae.__file__)
for words in json.loads(sys.argv[1]):
    print("--")
    sys.argv = ["metasae", *words]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


def setuptools_is_new() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources with the setuptools that is installed, so without a network."""
    pytest.importorskip("build")
    if not setuptools_is_new():
        pytest.skip("setuptools 77 or later builds the wheel")
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = (copy / "dist").glob("*.whl")
    return file


@pytest.mark.timeout(600)
def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path for path in (ROOT / "src" / "metasae").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    missing = [str(path) for path in files if str(path.relative_to(ROOT / "src").as_posix()) not in packed]
    assert len(files) > 300 and not missing


@pytest.mark.timeout(600)
def test_it_runs_outside_the_clone(wheel, tmp_path):
    """A recipe that ships is run to its report, and the explorer is written as files."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    changes = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    commands = [
        ["recipes"],
        ["recipes", "demo"],
        ["run", "planted", *changes, "--out", "run"],
        ["explore", "run", "--static", "pages"],
    ]
    command = [sys.executable, "-m", "metasae", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "metasae"), done.stderr
    command = [sys.executable, "-c", VERBS, json.dumps(commands)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, *printed = done.stdout.split("--\n")
    assert where.startswith(str(tmp_path / "site"))
    assert "demo" in printed[0] and "[train]" in printed[1]
    assert "<html" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "pages/index.html").is_file() and list((tmp_path / "pages").rglob("*.js"))
