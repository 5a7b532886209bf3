"""The notebooks, run and saved with their outputs: `python -m tools.notebooks notebooks/first_look.ipynb [...]`.

They run in a temporary folder, so that what they write does not stay. A cell tagged `parameters` holds the sizes; the
tests put smaller ones in its place.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# Longer than any cell takes on a slow machine.
SECONDS_A_CELL = 3600


def executed(path: Path, parameters: str | None = None, folder: Path | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of running it.

    parameters: Python in place of the cell tagged `parameters`. folder: where it runs; None: a temporary folder.
    Raises nbclient's CellExecutionError where a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters is not None:
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        assert len(tagged) == 1, f"{path} has {len(tagged)} cells tagged parameters"
        tagged[0].source = parameters
    with tempfile.TemporaryDirectory() as temporary:
        place = {"metadata": {"path": str(folder or temporary)}}
        NotebookClient(notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=place).execute()
    return notebook


def without_times(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without when each cell ran, which Python ran it, and warnings that name a place on this machine, so that a second
    run differs in what it computes alone.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if sys.prefix not in output.get("text", "")]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tools.notebooks NOTEBOOK...")
    for name in sys.argv[1:]:
        nbformat.write(without_times(executed(Path(name))), name)
