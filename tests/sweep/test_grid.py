import json

import pytest

from metasae.errors import UserError
from metasae.sweep.grid import Range, expand, parse_grid


def test_values_are_read_as_toml_and_lists_as_json():
    axes = parse_grid(
        [
            "train.lambda2=0.1, 1",
            'meta.input=raw,"token"',
            'train.penalties=[{}, {"ortsae": 0.25}]',
            "sae.b_enc=true,false",
        ]
    )
    assert axes == {
        "train.lambda2": (0.1, 1),
        "meta.input": ("raw", "token"),
        "train.penalties": ({}, {"ortsae": 0.25}),
        "sae.b_enc": (True, False),
    }


def test_commas_within_brackets_do_not_split():
    assert parse_grid(["train.penalties={ortsae = 0.2, c2r = 1.0},{}"])["train.penalties"] == (
        {"ortsae": 0.2, "c2r": 1.0},
        {},
    )
    assert parse_grid(["sae.prefixes=[[0.5, 1.0], [1.0]]"])["sae.prefixes"] == ([0.5, 1.0], [1.0])


def test_ranges():
    axes = parse_grid(["train.lambda2=0.03..1:log", "sae.k=8..64", "train.lr=1e-4..1e-2"])
    assert axes == {"train.lambda2": Range(0.03, 1, True), "sae.k": Range(8, 64), "train.lr": Range(1e-4, 1e-2)}
    with pytest.raises(UserError, match="a range, which only a search can use"):
        expand(axes)


def test_every_combination_the_last_key_fastest():
    settings = expand({"a": (1, 2), "b": ("x", "y")})
    assert [tuple(setting.values()) for setting in settings] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert expand({}) == [{}]


@pytest.mark.parametrize("entries, words", [
    (["train.lambda2"], "takes KEY=VALUE,VALUE"),
    (["train.lambda2="], "takes KEY=VALUE,VALUE"),
    (["train.lambda2=0.1,,0.3"], "a value is missing"),
    (["train.lambda2=0.1", "train.lambda2=0.3"], "twice"),
    (["train.lambda2=[0.1"], "not a JSON list"),
    (["train.lambda2=1..0.1"], "with LOW less than HIGH"),
    (["train.lambda2=0..1:log"], "must start above 0"),
    (["hook.point=blocks.1.hook_resid_pre,blocks.2.hook_resid_pre"], "run --points"),
    (["measure.tokens=1,2"], "only keys of sae, meta, train"),
    (["seeds=1,2"], "only keys of sae, meta, train"),
    (["sae.k=[]"], "give at least one value"),
])  # fmt: skip
def test_a_wrong_grid_is_one_clear_error(entries, words):
    with pytest.raises(UserError, match=words):
        parse_grid(entries)


def test_unknown_keys_are_named_with_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'train\.lambda2'"):
        parse_grid(["train.lamda2=1"])
    assert parse_grid(["train.penalties.ortsae=0.1,0.2"]) == {"train.penalties.ortsae": (0.1, 0.2)}


def test_a_grid_survives_json():
    assert json.loads(json.dumps(expand(parse_grid(["train.penalties=[{}, {\"ortsae\": 0.25}]"])))) == [
        {"train.penalties": {}}, {"train.penalties": {"ortsae": 0.25}},
    ]  # fmt: skip
