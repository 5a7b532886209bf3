"""The notebooks run from beginning to end on tiny sizes, and are saved with their outputs."""

import json
from pathlib import Path

import nbformat
import pytest

from spawned import Program
from tools.notebooks import executed

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("first_look", "your_own_model", "your_own_penalty")


@pytest.fixture
def tiny(build, stories, tmp_path):
    """The parameters of each notebook for a tiny model and few tokens."""
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    recipe = {
        "model": {"path": str(build("bert")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {
            "source": str(tmp_path / "stories.jsonl"),
            "context": 32,
            "calibration_share": 0.2,
            "evaluation_share": 0.2,
        },
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {"tokens": 64 * 30, "batch": 64},
        "measure": {
            "tokens": 500,
            "calibration_tokens": 300,
            "output_tokens": 0,
            "concepts": 0,
            "critics": 1,
            "meta_steps": 5,
            "lift": False,
            "shifts": 0,
            "across": False,
            "explorer": False,
        },
        "arms": ["solo", "joint"],
    }
    quick = {"measure": {"critics": 1, "meta_steps": 5, "lift": False, "shifts": 0, "across": False}}
    few = {"sae.n": 64, "sae.k": 4, "train.tokens": 3000, "train.batch": 64, **quick}
    return {
        "first_look": f'recipe, changes, out = {recipe!r}, {{}}, "runs/demo"\nsentence = "Snow fell on the harbour"',
        "your_own_model": f"place, layer, context = {str(build('bert'))!r}, 1, 32\nn_texts, changes = 20, {few!r}",
        "your_own_penalty": f"n_tokens, changes = 2000, {few!r}",
    }


@pytest.fixture
def quick_kernel(monkeypatch):
    """A notebook's kernel begins in a process that has torch loaded."""

    def launch(command, env=None, cwd=None, **_):
        module = command.index("-m")
        return Program(command[module:], env, cwd)

    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", launch)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quick_kernel")
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_tiny_sizes(name, tiny, tmp_path):
    notebook = executed(FOLDER / f"{name}.ipynb", tiny[name], tmp_path)
    assert pictures(notebook) == pictures(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_with_its_outputs(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and pictures(notebook) > 0
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    # readable on a code host, and of no machine in particular
    assert len(text) < 400_000 and str(FOLDER.parent) not in text and str(Path.home()) not in text


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_from_a_text_to_latents_in_three_lines():
    notebook = nbformat.read(FOLDER / "first_look.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "sae.latents(" in cell.source]
    assert len(cell.source.splitlines()) == 3
