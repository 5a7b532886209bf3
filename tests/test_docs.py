"""The examples of the pages do what the pages say."""

import re
from pathlib import Path

import torch

import metasae
from metasae.data.concepts.tagged_concepts import read_tags
from metasae.recipe.registry import PENALTIES
from metasae.sae.architectures import Options
from metasae.sae.kernels import reference
from metasae.train.penalties.scene import Scene

PAGE_FOLDER = Path(__file__).parents[1] / "docs"
PAGE = (PAGE_FOLDER / "extending.md").read_text()


def example(name):
    """The namespace of the code block whose first line names the file."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if name in block.splitlines()[0])
    space = {}
    exec(block, space)
    return space


def test_the_penalty_example():
    centred = example("centred.py")["centred"]
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(9, 5, generator=generator).requires_grad_()
    kept, _ = reference.select(torch.randn(4, 9, generator=generator), 8)
    value, gradient = centred(Scene(W, kept, torch.ones(9), 0, 0))
    W.mean(0).square().sum().backward()
    torch.testing.assert_close(gradient.detach(), W.grad)
    assert value.shape == ()
    shared, pull = example("centred_over_ranks.py")["centred"](Scene(W.detach(), kept, torch.ones(9), 0, 0))
    torch.testing.assert_close(shared, value.detach())
    torch.testing.assert_close(pull, W.grad)
    assert "centred" not in PENALTIES


def test_the_examples_in_ones_own_python(batches, small_recipe):
    from metasae.recipe.registry import ARCHITECTURES
    from metasae.train.trainer import Trainer

    try:
        example("a penalty of your own")
        example("an architecture of your own")
        values = small_recipe(penalties={"crowded": 0.1}).model_dump(mode="json")
        recipe = metasae.Recipe.load(values, {"sae.architecture": "level"})
        trainer = Trainer(recipe, "joint", 0, torch.full((16,), 0.3))
        losses, numbers = trainer.primary_step(batches().next())
        assert float(numbers["crowded"]) >= 0 and torch.isfinite(losses.total)
    finally:
        PENALTIES.pop("crowded", None)
        ARCHITECTURES.pop("level", None)


def test_the_architecture_example(batches, small_recipe, tmp_path, monkeypatch):
    from metasae.progress.progress import Task
    from metasae.train.loop import train
    from metasae.train.trainer import Trainer

    monkeypatch.setattr("metasae.sae.architectures.batchtopk.BatchTopK", example("fixed.py")["Fixed"])
    trainer = Trainer(small_recipe(), "joint", 0, torch.full((16,), 0.3))
    assert trainer.primary.architecture.options == Options(3, 2e-3, 0.1, 0.5, 0.5, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0))
    train(trainer, batches(), tmp_path, Task(None, None))
    sae = trainer.export(1.0, {})["primary"]
    assert torch.equal(sae.threshold, torch.full((48,), 0.5))


def test_the_page_of_spike_ins():
    """Its code runs, and a latent for each direction finds what noise alone does not."""
    block = re.search(r"```python\n(.*?)```", (PAGE_FOLDER / "spikes.md").read_text(), re.S)[1]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(1 / torch.arange(1.0, 2001), 20_000, replacement=True, generator=generator)
    x, place = torch.randn(20_000, 16, generator=generator), torch.arange(20_000)
    documents, positions = place // 50, place % 50
    held_out = (x, tokens, documents + 400, positions)
    space = {"x": x, "tokens": tokens, "documents": documents, "positions": positions, "held_out": held_out}
    space |= {"encode": lambda batch: batch.abs() - 2, "W_dec": torch.eye(16)}
    exec(block, space)
    assert space["batch"].shape == x.shape and 0 < space["scores"]["recovery_f1"] < space["scores"]["ceiling_f1"]


def test_the_page_of_concepts(tmp_path):
    """Its labelled lines are read as it says: the first two are one sentence."""
    file = tmp_path / "labels.jsonl"
    file.write_text(re.search(r"```jsonl\n(.*?)```", (PAGE_FOLDER / "concepts.md").read_text(), re.S)[1])
    tags = read_tags([file])
    assert [len(targets) for targets in tags.values()] == [2, 1]
    sentence, targets = next(iter(tags.items()))
    assert [sentence[start:stop] for start, stop, _ in targets] == ["Ada Lovelace", "met"]
    assert [concept.family for targets in tags.values() for *_, concept in targets] == [
        "entity", "part of speech", "yours",
    ]  # fmt: skip
