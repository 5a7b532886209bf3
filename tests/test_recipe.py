"""Recipes: overrides, errors, files."""

from pathlib import Path

import pytest

from metasae.errors import UserError
from metasae.recipe.recipe import Recipe, names, parse_override
from metasae.recipe.resolve import resolve
from tools import recipe_page


def test_overrides_are_typed():
    assert parse_override("train.lambda2=0.1") == ("train.lambda2", 0.1)
    assert parse_override("text.source = HuggingFaceFW/fineweb") == ("text.source", "HuggingFaceFW/fineweb")
    assert parse_override('arms=["solo"]') == ("arms", ["solo"])
    assert Recipe.load("demo", {"train.lambda2": 0.1, "seeds": 3}).seeds == (0, 1, 2)


def test_save_and_load(tmp_path):
    recipe = Recipe.load("demo", {"train.betas": [0.8, 0.9]})
    recipe.save(tmp_path / "r.toml")
    assert Recipe.load(tmp_path / "r.toml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.lr": "nan"}, "train.lr"),
        ({"sae.k_start": 64, "sae.architecture": "jumprelu"}, "k_start anneals k, but jumprelu"),
        ({"train.lr": float("nan")}, "train.lr"),
        ({"train.betas": [0.9, 1.0]}, "betas"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"seeds": True}, "seeds"),
        ({"arms.solo": 1}, "value, not a table"),
        ({"sae.lambda2": 1}, "unknown key 'sae.lambda2'"),
        ({"train.tokens": 0}, "train.tokens"),
    ],
)
def test_wrong_values_are_one_line(overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        Recipe.load("demo", overrides)
    assert "\n" not in str(caught.value)


def test_a_recipe_is_not_changed_by_hand():
    with pytest.raises(Exception, match="frozen"):
        Recipe.load("demo").train.lr = 1.0


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    """Of `local` and `tiny-gpt2` the user names the model; a planted world needs none."""
    recipe = Recipe.load(name)
    assert recipe.description and recipe.arms[0] == "solo"
    assert bool(recipe.model.source) == (name not in ("local", "tiny-gpt2") and recipe.text.source != "planted")


def test_a_recipe_without_a_model_says_how_to_name_one(tmp_path):
    with pytest.raises(UserError, match=r"--set model\.path=FOLDER"):
        resolve("local", tmp_path, None, "cpu")
    assert resolve("local", tmp_path, {"model.path": "any"}, "cpu")[0].model.path == "any"


def test_the_page_of_keys_is_what_its_command_makes():
    assert (Path(__file__).parents[1] / "docs" / "recipe.md").read_text() == recipe_page.page()


def test_every_key_says_what_it_means():
    tables = [("recipe", Recipe)]
    for name, table in tables:
        for key, field in table.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                tables.append((f"{name}.{key}", field.annotation))
                assert field.annotation.__doc__, key
            else:
                assert field.description, f"{name}.{key}"
    assert ("recipe.train.nest" in dict(tables)) and len(tables) > 10


def test_fewer_cached_tokens_are_read_again_but_never_more_cached_than_trained_on():
    def tokens(**harvest):
        return Recipe.load({"train": {"tokens": 3000}, "harvest": harvest}).split_tokens["train"]

    assert (tokens(), tokens(tokens=1000), tokens(tokens=9000)) == (3000, 1000, 3000)
    with pytest.raises(UserError, match=r"harvest\.tokens cannot be read again"):
        tokens(tokens=1000, window_tokens=500)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lambda2", "unknown key 'lambda2'; did you mean 'train.lambda2'?"),
        ("n", "unknown key 'n'; did you mean 'sae.n' or 'meta.n' or 'spikes.n'?"),
        ("trian", "unknown key 'trian'; did you mean 'train'?"),
        ("sae.lambda2", "unknown key 'sae.lambda2'"),
    ],
)
def test_a_key_without_its_table_is_told_the_tables_that_have_it(key, words):
    with pytest.raises(UserError) as caught:
        Recipe.load("demo", {key: 1})
    assert str(caught.value).startswith(words)


def test_no_shipped_recipe_names_a_place_that_only_its_maker_has():
    for name in names():
        recipe = Recipe.load(name)
        assert not recipe.model.path or recipe.model.path.startswith("package:"), name
        assert not recipe.text.source.startswith((".", "/", "~")), name


@pytest.mark.parametrize(
    ("coefficient", "arms", "told"),
    [(1.0, ["joint"], True), (0.3, ["solo", "joint"], True), (5.0, ["joint"], False), (1.0, ["solo"], False)],
)
def test_a_recipe_that_means_what_c2r_was_before_is_told_in_one_line(coefficient, arms, told):
    notes = Recipe.load({"arms": arms, "train": {"penalties": {"c2r": coefficient}}}).notes
    assert len(notes) == told and all("firing_cosine" in note and "\n" not in note for note in notes)
    assert not Recipe.load({"train": {"penalties": {"firing_cosine": 1.0}}}).notes
