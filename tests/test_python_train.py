"""`metasae.train` and `metasae.evaluate`: SAEs on activations that a user gives."""

import json

import numpy as np
import pytest
import torch

import metasae
from drawing import undrawn
from sources import Planted

QUICK = {"measure": {"critics": 1, "meta_steps": 5, "lift": False, "shifts": 0, "across": False}}


def activations(n=20, batch=256):
    source = Planted(batch)
    return torch.cat([source.next() for _ in range(n)])


def train(x, **options):
    recipe = {"sae.n": 64, "train.batch": 128, "train.tokens": 128 * 40, **QUICK, **options.pop("recipe", {})}
    with undrawn():
        return metasae.train(x, recipe=recipe, **{"show": False, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 5,120 rows of width 32."""
    return train(activations(), arms=["solo", "joint"], out=tmp_path_factory.mktemp("given") / "run")


def test_a_tensor_becomes_a_run_folder(trained):
    assert isinstance(trained, metasae.Run) and list(trained.saes) == [("solo", 0), ("joint", 0)]
    sae = trained.saes["joint"]
    assert sae.W_dec.shape == (64, 32) and sae.config.k == 4
    assert "hook_name" not in sae.config.metadata and sae.config.metadata["dataset_path"] == "given"
    assert trained.comparison["conditions"]["n_tokens"] == 520
    # documents of 25 rows move the cuts a little
    assert trained.comparison["conditions"]["different_training_tokens"] == 4100
    assert trained.report().is_file() and (trained.folder / "arms/joint-s0/meta/cfg.json").is_file()
    x = activations(24)[-256:]
    assert torch.nn.functional.mse_loss(sae(x), x) < x.var()


def test_the_verbs_work_on_its_folder(trained):
    before = trained.comparison["arms"]
    with undrawn():
        assert metasae.compare(trained.folder)["arms"] == before
        again = metasae.run(trained.folder / "recipe.toml", out=trained.folder, show=False)
    assert again.comparison["arms"] == before
    assert torch.equal(metasae.load(trained.folder, arm="solo").W_dec, trained.saes["solo"].W_dec)


def test_the_explorer_names_rows(trained):
    from metasae.explore.pages.queries import Explorer
    from metasae.explore.store.build import build
    from metasae.progress.progress import SILENT

    build(trained.folder, SILENT)
    page = json.dumps(Explorer(trained.folder).latent("joint-s0", 1))
    assert " row " in page


def test_measured_again_with_other_settings(trained):
    with undrawn():
        metasae.run(trained.folder / "recipe.toml", out=trained.folder, overrides={"measure.tokens": 300}, show=False)
    assert trained.arms[0].measures()["conditions"]["n_tokens"] == 300


def test_the_same_call_goes_on_and_another_x_is_refused(trained):
    again = train(activations(), arms=["solo", "joint"], out=trained.folder)
    assert torch.equal(again.saes["joint"].W_dec, trained.saes["joint"].W_dec)
    with pytest.raises(metasae.UserError, match=r"holds other activations; choose another out="):
        train(activations() + 1, arms=["solo"], out=trained.folder)
    with pytest.raises(metasae.UserError, match=r"holds a run with train.lr = 0.001, not 0.01"):
        train(activations(), arms=["solo"], out=trained.folder, recipe={"train.lr": 0.01})


def test_a_stream_and_a_loader_give_what_the_tensor_gives(trained):
    x = activations()
    dataset = torch.utils.data.TensorDataset(x)
    forms = {
        "generator": (batch for batch in x.split(300)),
        "loader": torch.utils.data.DataLoader(dataset, batch_size=100),
        "array": x.numpy(),
        "sequences": x.view(64, 80, 32),
    }
    for name, form in forms.items():
        run = train(form, arms=["solo"])
        same = torch.equal(run.saes["solo"].W_dec, trained.saes["solo"].W_dec)
        # documents of 80 rows move the cuts
        assert same == (name != "sequences"), name


def test_an_endless_stream_is_read_as_far_as_it_is_needed():
    def endless():
        while True:
            yield source.next()

    source = Planted(256)
    run = train(endless(), arms=["solo"], recipe={"train.tokens": 4000})
    assert source.position == 20
    assert run.comparison["conditions"]["different_training_tokens"] == 4000


def test_a_temporary_folder_goes_with_the_run():
    run = train(activations(), arms=["solo"])
    folder = run.folder
    assert run.report().is_file()
    del run
    assert not folder.exists()


def test_what_is_held_out_is_said(capsys):
    train(activations(4), arms=["solo"], show=True)
    said = capsys.readouterr().err
    assert "1,024 rows of width 32: the first 820 to train on, then 100 for thresholds and 104 for measuring" in said
    assert "train.tokens = 5,120, so the 820 training rows are read 6.24 times, each time in a fresh order" in said


def test_documents_are_held_out_whole(tmp_path):
    x, lengths = activations(4), [300, 300, 200, 100, 60, 64]
    documents = np.repeat([7, 3, 9, 1, 4, 2], lengths)
    run = train(x, arms=["solo"], documents=documents, out=tmp_path / "run")
    cuts = json.loads((tmp_path / "run/activations/index.json").read_text())["cuts"]
    assert cuts == [800, 900]
    assert run.arms[0].measures()["conditions"]["n_documents"] == 2
    with pytest.raises(metasae.UserError, match="document 7 occurs again in row 1,020; sort x and documents"):
        train(x, documents=np.append(documents[:-4], [7] * 4))
    with pytest.raises(metasae.UserError, match="documents has 5 entries, but x has 1,024 rows"):
        train(x, documents=[1] * 5)
    with pytest.raises(metasae.UserError, match=r"x has 1,024 rows in 2 documents; .* at least 3"):
        train(x, documents=[0] * 1000 + [1] * 24)


def test_a_recipe_may_be_a_name_a_recipe_or_nested_tables():
    x = activations()
    small = {"sae": {"n": 40, "k": 3}, "train": {"tokens": 2000, "batch": 100}, **QUICK}
    nested = train(x, arms=["solo"], recipe={})
    assert nested.saes["solo"].n_latents == 64
    with undrawn():
        by_tables = metasae.train(x, ["solo"], small, show=False)
        typed = metasae.train(x, ["solo"], metasae.Recipe.load(by_tables.folder / "recipe.toml"), show=False)
        seeded = metasae.train(x, ["solo"], small, seeds=[3], show=False)
    assert by_tables.saes["solo"].n_latents == 40 and by_tables.saes["solo"].config.k == 3
    assert torch.equal(by_tables.saes["solo"].W_dec, typed.saes["solo"].W_dec)
    assert list(seeded.saes) == [("solo", 3)]


def test_the_recipe_may_note_the_model(tmp_path):
    model = {"model.name": "gpt2", "hook.point": "blocks.5.hook_resid_pre"}
    run = train(activations(), arms=["solo"], recipe=model)
    assert "at blocks.5.hook_resid_pre, of gpt2" in repr(run.saes["solo"])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ("text", "x must be a tensor"),
        (torch.zeros(100), r"shape \[T, d\] or \[..., d\], not \[100\]"),
        (torch.zeros(100, 8, dtype=torch.int64), "x holds int64 numbers"),
        (iter([]), "x gives no batch"),
        ([torch.ones(50, 8), torch.ones(50, 9)], "row 50 of x has the width 9, those before it 8"),
        (torch.ones(90, 8).index_fill(0, torch.tensor([7]), torch.nan), r"x\[7, 0\] is NaN or inf"),
        (torch.ones(2, 8), "x has 2 rows in 2 documents"),
    ],
)
def test_wrong_activations_are_refused_with_the_number(x, words):
    with pytest.raises(metasae.UserError, match=words):
        metasae.train(x, show=False)


def test_a_wrong_recipe_is_refused_before_a_stream_is_read():
    read = []

    def stream():
        for batch in activations().split(256):
            read.append(len(batch))
            yield batch

    for recipe, words in (
        ({"sae.m": 3}, "unknown key 'sae.m'"),
        ({"train": {"penalties": {"mine_not": 1.0}}}, "no penalty 'mine_not'"),
        ("dmo", "no recipe 'dmo'; did you mean 'demo'"),
    ):
        with pytest.raises(metasae.UserError, match=words):
            metasae.train(stream(), recipe=recipe, show=False)
    assert read == [256] * 3
    with pytest.raises(metasae.UserError, match=r"arms is a list, as in arms=\['solo'\]"):
        metasae.train(activations(), arms="solo", show=False)


def test_evaluate_gives_what_a_run_measures(trained):
    settings = {"critics": 1, "meta_steps": 5, "lift": False, "shifts": 0}
    held_out = activations()[4600:]
    measures = metasae.evaluate(trained.saes["solo"], held_out, measure=settings)
    with undrawn():
        metasae.run(trained.folder / "recipe.toml", out=trained.folder, overrides={"measure.tokens": 5120}, show=False)
    expected = trained.arms[0].measures()
    for table, key in (("fidelity", "fvu"), ("fidelity", "l0"), ("cooccurrence", "mean_abs_phi")):
        assert measures[table][key] == expected[table][key]
    assert measures["decomposability"]["meta_ve"] == expected["decomposability"]["meta_ve"]
    assert json.loads(json.dumps(measures)) == measures


def test_evaluate_refuses_what_it_cannot_measure(trained):
    sae = trained.saes["solo"]
    with pytest.raises(metasae.UserError, match="x has the width 8, and this SAE reads vectors of width 32"):
        metasae.evaluate(sae, torch.ones(50, 8))
    with pytest.raises(metasae.UserError, match=r"unknown key 'measure\.critic'"):
        metasae.evaluate(sae, activations(1), measure={"critic": 2})
    other = metasae.load(trained.folder, arm="solo")
    other.threshold = None
    with pytest.raises(metasae.UserError, match="no threshold yet"):
        metasae.evaluate(other, activations(1))
