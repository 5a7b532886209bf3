"""The examples in docs/examples, run as they stand in an empty folder."""

import ast
import re
import runpy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.version import Version

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# example -> libraries with the first version that it is written for
NEEDS = {"transformer_lens": {"sae_lens": "6.0", "transformer_lens": "2.0"}, "nnsight": {"nnsight": "0.8"}}


def code_of(name):
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES / f"{name}.md").read_text(), re.DOTALL)
    assert blocks
    return "\n".join(blocks)


def run_example(name, tmp_path, monkeypatch):
    """The names that the example leaves behind. It is run from a file, as nnsight reads the source of its traces."""
    for library, version in NEEDS[name].items():
        pytest.importorskip(library, reason=f"{library} is not installed")
        installed = metadata.version(library.replace("_", "-"))
        if Version(installed) < Version(version):
            pytest.skip(f"{library} is {installed}, the example is for {version} and later")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{name}.py"
    file.write_text(code_of(name))
    torch.manual_seed(0)
    return runpy.run_path(str(file))


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_is_short(name):
    """Ten statements and the imports."""
    statements = [node for node in ast.walk(ast.parse(code_of(name))) if isinstance(node, ast.stmt)]
    statements = [node for node in statements if not isinstance(node, (ast.Import, ast.ImportFrom))]
    assert len(statements) <= 10


def test_every_example_is_run():
    assert sorted(path.stem for path in EXAMPLES.glob("*.md")) == sorted(NEEDS)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_transformer_lens(tmp_path, monkeypatch):
    """SAELens puts in what our own forward gives, and shows our own activations."""
    left = run_example("transformer_lens", tmp_path, monkeypatch)
    ours = left["ours"]
    model, tokens, point = left["model"], left["tokens"], "blocks.1.hook_resid_pre"
    _, cache = model.run_with_cache(tokens)
    expected = model.run_with_hooks(tokens, fwd_hooks=[(point, lambda x, hook: ours(x))])
    assert torch.allclose(left["replaced"], expected, atol=1e-5)
    assert torch.allclose(left["acts"], ours.encode(cache[point]), atol=1e-5) and (left["acts"] > 0).any()
    assert torch.equal(left["clean"], model(tokens)) and not torch.allclose(left["clean"], expected, atol=1e-2)
    assert torch.allclose(
        model.run_with_saes(tokens, saes=[left["sae"]], use_error_term=True), left["clean"], atol=1e-4
    )


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_nnsight(tmp_path, monkeypatch):
    left, activations = run_example("nnsight", tmp_path, monkeypatch), []
    ours = left["sae"]
    model, tokens = left["model"]._module, left["tokens"]

    def replace(module, inputs, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        activations.append(ours.encode(x))
        return ours(x) if isinstance(output, torch.Tensor) else (ours(x), *output[1:])

    clean = model(tokens).logits
    handle = model.transformer.h[0].register_forward_hook(replace)
    expected = model(tokens).logits
    handle.remove()
    assert torch.allclose(left["replaced"], expected, atol=1e-5) and not torch.allclose(clean, expected, atol=1e-2)
    assert torch.allclose(left["acts"], activations[0], atol=1e-5) and (activations[0] > 0).any()
