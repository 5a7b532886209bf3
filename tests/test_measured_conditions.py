"""SAEs are measured in the conditions that they say they were trained in, or the difference is said."""

import json

import pytest
import torch

import metasae
from metasae.compare.tables import trained_otherwise
from metasae.data.model.host import Host
from metasae.errors import UserError
from metasae.interop import export, load
from metasae.jobs.conditions import Conditions, adopted, differences
from metasae.jobs.start import find_targets
from metasae.recipe.recipe import Model, Recipe
from metasae.sae.sae import SAE, SAEConfig
from sources import tokenizer_for

pytestmark = pytest.mark.usefixtures("no_drawing")

POINT = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def recipe(build, stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": POINT},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.3},
        "harvest": {"batch_tokens": 256},
        "measure": {
            "tokens": 2000, "calibration_tokens": 500, "output_tokens": 0, "meta_steps": 5, "shifts": 0, "critics": 1,
            "lift": False, "pursuit_k": 0, "concepts": 0, "keep_firings": False,
        },
    }  # fmt: skip


def theirs(folder, threshold=0.03, **metadata):
    """A BatchTopK checkpoint as SAELens leaves it, with these notes. Returns its folder."""
    sae = SAE(SAEConfig(32, 64, k=4))
    sae.init_weights(torch.Generator().manual_seed(0))
    sae.threshold = torch.full((64,), threshold)
    notes = {"hook_name": POINT, "model_name": "gpt2", **metadata}
    sae.save(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg |= {"architecture": "jumprelu", "metadata": {"sae_lens_version": "6.54.12", **notes}}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def measured(paths, out, recipe, **overrides):
    """(FVU of the first SAE, its conditions, the recipe that it was measured by)."""
    metasae.measure(paths, out, recipe, overrides, show=True)
    content = json.loads(next(iter(sorted(out.glob("arms/*/measures.json")))).read_text())
    return content["fidelity"]["fvu"], content["conditions"], Recipe.load(out / "recipe.toml")


def test_an_sae_of_another_library_is_measured_without_bos_and_in_its_context(recipe, tmp_path, capsys):
    plain = theirs(tmp_path / "plain")
    noted = theirs(tmp_path / "noted", prepend_bos=False, context_size=16)
    with_bos, conditions, _ = measured([plain], tmp_path / "a", recipe)
    assert "trained_otherwise" not in conditions and "otherwise" not in capsys.readouterr().err
    as_said, conditions, used = measured([noted], tmp_path / "b", recipe)
    told = capsys.readouterr().err
    assert (used.model.bos, used.text.context) == (False, 16) and "trained_otherwise" not in conditions
    assert "windows begin without BOS, as in the training of the SAEs (prepend_bos = false)" in told
    assert "windows have 16 tokens, as in the training of the SAEs (context_size), not the recipe's 32" in told
    by_hand, _, _ = measured([plain], tmp_path / "c", recipe, **{"model.bos": False, "text.context": 16})
    assert as_said == by_hand != with_bos
    # what is asked for by hand stays, and what differs is said and kept
    capsys.readouterr()
    other, conditions, used = measured([noted], tmp_path / "d", recipe, **{"model.bos": True, "text.context": 32})
    assert other == with_bos and used.text.context == 32
    assert conditions["trained_otherwise"] == {"prepend_bos": [False, True], "context_size": [16, 32]}
    told = capsys.readouterr().err
    assert (
        "noted-s0 was trained under other conditions than it is measured under: prepend_bos false in training" in told
    )
    assert "true here; context_size 16 in training, 32 here" in told


def test_saes_that_differ_are_measured_alike_and_each_difference_is_said(recipe, tmp_path, capsys):
    one = theirs(tmp_path / "one", prepend_bos=False, context_size=16)
    other = theirs(tmp_path / "other", prepend_bos=True, context_size=32, dataset_path="someone/pile")
    _, conditions, used = measured([one, other], tmp_path / "out", recipe)
    assert (used.model.bos, used.text.context) == ("auto", 32)
    told = capsys.readouterr().err
    assert "one-s0 was trained under other conditions" in told and "context_size 16 in training, 32 here" in told
    assert (
        "other-s0 was trained under other conditions than it is measured under: dataset_path someone/pile in training"
        in told
    )
    assert conditions["trained_otherwise"]["prepend_bos"] == [False, True]
    # whoever reads the result later learns of it too
    for name in ("compare.md", "report.html"):
        assert (
            "one-s0 was trained under other conditions than it is measured under: prepend_bos false in training, true "
            "here" in (tmp_path / "out" / name).read_text()
        )


def test_a_threshold_that_was_never_set_is_calibrated_and_said(recipe, tmp_path, capsys):
    never = theirs(tmp_path / "never")
    cfg = json.loads((never / "cfg.json").read_text()) | {"architecture": "batchtopk", "k": 4}
    (never / "cfg.json").write_text(json.dumps(cfg))
    from safetensors.torch import load_file, save_file

    state = load_file(never / "sae_weights.safetensors")
    del state["threshold"]
    save_file(state | {"topk_threshold": torch.tensor(0.0)}, never / "sae_weights.safetensors")
    _, conditions, _ = measured([never], tmp_path / "a", recipe)
    line = "never-s0 comes without thresholds, as its library never set them; metasae calibrates them to its k = 4 by"
    assert line in capsys.readouterr().err and conditions["rule"] == "rate"
    assert conditions["l0_realised"] == pytest.approx(4, rel=0.2)
    # an average that was begun and not finished cannot be told from the file, but from what fires
    save_file(state | {"topk_threshold": torch.tensor(1e-6)}, never / "sae_weights.safetensors")
    _, conditions, _ = measured([never], tmp_path / "b", recipe)
    assert conditions["rule"] == "own" and conditions["l0_realised"] > 6
    assert f"never-s0 has {conditions['l0_realised']:.3g} active latents per token, but was trained to keep k = 4" in (
        capsys.readouterr().err
    )


def test_ours_are_measured_by_the_recipe_that_is_given():
    ours = Conditions.of({"prepend_bos": False, "context_size": 8}, Recipe().model_dump(mode="json"))
    assert ours == Conditions(None, 128, "blocks.4.hook_resid_pre", None, "docs", ours=True)
    longer = Recipe.load({"text": {"context": 256}})
    assert adopted([ours], longer, []) == (longer, [])
    assert differences(ours, longer, True) == {"context_size": [128, 256]}
    without = Conditions.of({}, Recipe.load({"model": {"bos": False}}).model_dump(mode="json"))
    assert without.bos is False


@pytest.mark.parametrize(
    ("stated", "asked", "bos", "context"),
    [
        ([Conditions(bos=False)], [], False, 128),
        ([Conditions(bos=True)], [], "auto", 128),
        ([Conditions(bos=False), Conditions()], [], False, 128),
        ([Conditions(bos=False), Conditions(bos=True)], [], "auto", 128),
        ([Conditions(bos=False)], ["model.bos"], "auto", 128),
        ([Conditions(context=64), Conditions(context=64)], [], "auto", 64),
        ([Conditions(context=64), Conditions(context=128, ours=True)], [], "auto", 128),
        ([Conditions(context=64)], ["text.context"], "auto", 128),
        ([Conditions(context=-1)], [], "auto", 128),
        ([], [], "auto", 128),
    ],
)
def test_what_all_say_is_taken_over(stated, asked, bos, context):
    recipe, lines = adopted(stated, Recipe(), asked)
    assert (recipe.model.bos, recipe.text.context) == (bos, context)
    assert len(lines) == (bos is False) + (context != 128)
    assert Recipe.load(recipe.model_dump(mode="json")) == recipe


def test_names_that_mean_the_same_are_no_difference():
    recipe = Recipe.load({"model": {"name": "openai-community/gpt2"}, "hook": {"point": "blocks.5.hook_resid_pre"}})
    same = Conditions(point="blocks.4.hook_resid_post", model="gpt2-small", text="docs")
    assert differences(same, recipe, True) == {}
    other = Conditions(point="blocks.5.hook_resid_post", model="gpt2-medium")
    said = trained_otherwise("x-s0", differences(other, recipe, True))
    assert "hook_name blocks.5.hook_resid_post in training, blocks.5.hook_resid_pre here" in said
    assert "model_name gpt2-medium in training, openai-community/gpt2 here" in said


def test_notes_of_another_type_count_as_not_said():
    hostile = {"prepend_bos": "no", "context_size": "many", "hook_name": 3, "model_name": ["x"], "dataset_path": {}}
    assert Conditions.of(hostile, None) == Conditions()
    assert Conditions.of(hostile, {"model": 3, "text": {"context": "x"}}) == Conditions(ours=True)


def test_exports_carry_the_conditions(build, tmp_path):
    """`prepend_bos` and the context go through every format; what a run writes follows model.bos."""
    path = theirs(tmp_path / "theirs", prepend_bos=False, context_size=16)
    for format in ("metasae", "saelens", "dictionary_learning", "paper"):
        out = export(path, format, tmp_path / format)
        assert {"prepend_bos": False, "context_size": 16}.items() <= load(out).config.metadata.items()
        assert find_targets(out)[0].stated.bos is False
    for bos, expected in (("auto", True), (True, True), (False, False)):
        host = Host.load(Model(path=str(build("gpt2")), dtype="fp32", bos=bos), POINT)
        assert (host.bos_id is not None) is expected and (host.at("blocks.0.hook_resid_pre").bos_id == host.bos_id)


def test_bos_is_part_of_what_is_harvested_where_it_changes_it(build):
    hosts = {
        bos: Host.load(Model(path=str(build("gpt2")), dtype="fp32", bos=bos), POINT) for bos in ("auto", True, False)
    }
    assert hosts["auto"].fingerprint == hosts[True].fingerprint != hosts[False].fingerprint
    bare = [
        Host.load(Model(path=str(build("gpt2", bos=False)), dtype="fp32", bos=bos), POINT) for bos in ("auto", False)
    ]
    assert bare[0].fingerprint == bare[1].fingerprint
    with pytest.raises(UserError, match=r"model\.bos=true, and the tokenizer has no BOS token; set model\.bos=auto"):
        Host.load(Model(path=str(build("gpt2", bos=False)), bos=True), POINT)
    with pytest.raises(UserError, match=r"model\.bos is for causal models"):
        Host.load(Model(path=str(build("bert")), bos=False), POINT)
    with pytest.raises(UserError, match=r"model\.bos: Input should be 'auto', True or False"):
        Recipe.load({"model": {"bos": "never"}})


def test_without_bos_none_is_left_of_what_a_document_brings_along():
    from metasae.data.text.windows import Frame

    tokenizer = tokenizer_for("gpt2", bos=True)
    frame = Frame.of(tokenizer, True, bos=False)
    assert frame.prefix == () and frame.taken_off([tokenizer.bos_token_id, 7, 8]) == [7, 8]
