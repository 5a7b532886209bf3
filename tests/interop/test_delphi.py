"""delphi's cache, read back by a loader written from the format's description, and by delphi itself where it is
installed.
"""

import json
import struct
from itertools import pairwise

import arm_folders
import numpy as np
import pytest
from arm_folders import ADVERSARIAL, entries_of, firings_of, random_firings, write_arm

from metasae.errors import UserError
from metasae.interop import delphi
from metasae.interop.delphi import export_delphi
from metasae.interop.detection import FIRINGS
from metasae.interop.formats import export_activations

HOOK = "blocks.4.hook_resid_pre"
DTYPES = {"U16": "<u2", "U32": "<u4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}


def read_safetensors(path):
    """The published layout: u64 length of a JSON header, the header, then each tensor's bytes at its offsets."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(data) and all(a[1] == b[0] for a, b in pairwise(ends))
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def read_cache(folder):
    """({(row, column, latent): activation}, tokens [R, L], config) from the files' names and arrays alone."""
    entries, tokens, covered = {}, None, []
    for path in folder.glob("*.safetensors"):
        start, end = map(int, path.stem.split("_"))
        covered += range(start, end + 1)
        tensors = read_safetensors(path)
        assert set(tensors) == {"locations", "activations", "tokens"}
        assert tensors["locations"].shape == (len(tensors["activations"]), 3)
        for (row, column, latent), value in zip(tensors["locations"].tolist(), tensors["activations"], strict=True):
            assert start + latent <= end and (row, column, start + latent) not in entries
            entries[row, column, start + latent] = value
        assert tokens is None or np.array_equal(tokens, tensors["tokens"])
        tokens = tensors["tokens"]
    return entries, tokens, json.loads((folder / "config.json").read_text()), sorted(covered)


def places_of(firings, length):
    """(row, column) of every token, one token after the other."""
    places, row, column, before = [], -1, length - 1, None
    for token in range(firings.n_tokens):
        here = (int(firings.documents[token]), int(firings.positions[token]))
        goes_on = before is not None and here == (before[0], before[1] + 1)
        row, column = (row, column + 1) if goes_on and column + 1 < length else (row + 1, 0)
        places.append((row, column))
        before = here
    return places


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_firing_stands_in_the_cache_once(tmp_path, name):
    firings = ADVERSARIAL[name]
    write_arm(tmp_path / "arm", firings)
    config = export_delphi(tmp_path / "arm", tmp_path / "out", context=16)
    entries, tokens, written, covered = read_cache(tmp_path / "out" / HOOK)
    places = places_of(firings, 16)
    # rounding to fp16 is the only thing that happens to an activation
    assert entries == {
        (*places[token], latent): np.float16(value) for (token, latent), value in entries_of(firings).items()
    }
    assert covered == list(range(firings.n_latents))
    expected = np.full((places[-1][0] + 1 if places else 0, 16), delphi.PADDING)
    for token, place in enumerate(places):
        expected[place] = firings.tokens[token]
    assert tokens.dtype == np.int64 and np.array_equal(tokens, expected)
    assert written == config
    assert config["metasae"]["padding"] == {"id": delphi.PADDING, "places": expected.size - firings.n_tokens}


def test_the_config_says_where_it_comes_from(tmp_path):
    write_arm(tmp_path / "arm", random_firings(), arm="solo", seed=3)
    config = export_activations(tmp_path / "arm" / "primary", "delphi", tmp_path / "out")
    assert (config["model_name"], config["dataset_repo"], config["cache_ctx_len"], config["n_splits"]) == (
        "maker/Small-Model",
        "stories",
        32,
        5,
    )
    assert (config["metasae"]["arm"], config["metasae"]["seed"], config["metasae"]["sae"]) == (
        "solo",
        3,
        "made by hand",
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [HOOK]


@pytest.mark.parametrize("value", [70_000.0, 2e-8])
def test_what_fp16_cannot_hold_makes_all_of_it_fp32(tmp_path, value):
    firings = random_firings()
    firings.values[5] = value
    write_arm(tmp_path / "arm", firings)
    config = export_delphi(tmp_path / "arm", tmp_path / "out", context=32)
    entries, *_ = read_cache(tmp_path / "out" / HOOK)
    places = places_of(firings, 32)
    assert config["metasae"]["activations"] == "fp32"
    assert entries == {(*places[token], latent): value for (token, latent), value in entries_of(firings).items()}


def test_chunks_and_blocks_change_nothing(tmp_path, monkeypatch):
    write_arm(tmp_path / "arm", random_firings())
    export_delphi(tmp_path / "arm", tmp_path / "whole", context=8)
    monkeypatch.setattr(delphi, "CHUNK", 7)
    monkeypatch.setattr("metasae.interop.stored_firings.BLOCK", 20)
    export_delphi(tmp_path / "arm", tmp_path / "pieces", context=8)
    for path in (tmp_path / "whole" / HOOK).iterdir():
        assert path.read_bytes() == (tmp_path / "pieces" / HOOK / path.name).read_bytes()


def test_many_rows_need_wider_places(tmp_path):
    n = 66_000
    on = np.zeros((n, 2), bool)
    on[::1000, 1] = True
    write_arm(tmp_path / "arm", firings_of(on, np.ones((n, 2)), (n,)))
    export_delphi(tmp_path / "arm", tmp_path / "out", context=1)
    assert read_safetensors(tmp_path / "out" / HOOK / "1_1.safetensors")["locations"].dtype == np.uint32
    assert set(read_cache(tmp_path / "out" / HOOK)[0]) == {(token, 0, 1) for token in range(0, n, 1000)}


def test_safetensors_opens_the_files(tmp_path):
    from safetensors.numpy import load_file

    write_arm(tmp_path / "arm", random_firings())
    export_delphi(tmp_path / "arm", tmp_path / "out")
    for path in (tmp_path / "out" / HOOK).glob("*.safetensors"):
        ours = read_safetensors(path)
        for name, array in load_file(path).items():
            assert array.dtype == ours[name].dtype and np.array_equal(array, ours[name])


def test_without_firings_there_is_one_line_and_nothing_is_written(tmp_path):
    write_arm(tmp_path / "arm", random_firings())
    (tmp_path / "arm" / "firings").rename(tmp_path / "elsewhere")
    for format in FIRINGS:
        with pytest.raises(
            UserError, match=r"keeps no firings; run `metasae measure` on it with measure\.keep_firings=true"
        ) as caught:
            export_activations(tmp_path / "arm", format, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_and_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    write_arm(tmp_path / "arm", random_firings())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in ("full", "file"):
        with pytest.raises(UserError, match="is there already and not an empty folder"):
            export_delphi(tmp_path / "arm", tmp_path / out)
    with pytest.raises(UserError, match=r"cannot write .*file/out"):
        export_delphi(tmp_path / "arm", tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    export_delphi(tmp_path / "arm", tmp_path / "empty")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(delphi, "_locations", full_disk)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="No space left on device; free some space") as caught:
        export_delphi(tmp_path / "arm", tmp_path / "new")
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "mine").read_text() == "x"


@pytest.mark.parametrize("hook", ["../out", "/tmp/x", "a/b", "", "..", "a\\b", "-x", None, 5])
def test_a_hook_that_is_no_name_writes_nowhere(tmp_path, hook):
    write_arm(tmp_path / "arm", arm_folders.ONE_TOKEN, hook_name=hook)
    with pytest.raises(UserError, match="cannot name a folder; give hookpoint="):
        export_delphi(tmp_path / "arm", tmp_path / "out")
    export_delphi(tmp_path / "arm", tmp_path / "out", hookpoint="layers.5")
    assert (tmp_path / "out" / "layers.5" / "config.json").is_file()


def test_impossible_sizes_names_and_options(tmp_path):
    write_arm(tmp_path / "arm", random_firings(), context_size="many")
    for options, words in [
        ({}, "rows need a length from 1 to 65,535 tokens, not many; give context=128"),
        ({"context": 0}, "rows need a length"),
        ({"context": 1 << 16}, "rows need a length"),
    ]:
        with pytest.raises(UserError, match=words):
            export_activations(tmp_path / "arm", "delphi", tmp_path / "out", **options)


def test_a_strangers_notes_cannot_break_the_config(tmp_path):
    write_arm(tmp_path / "arm", arm_folders.ONE_TOKEN, metasae={"arm": 7, "recipe": {"text": "x"}})
    with pytest.raises(UserError, match="text must be a JSON object, not str"):
        export_delphi(tmp_path / "arm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_in_an_saes_notes_runs_no_model_code(tmp_path):
    from metasae.interop.stored_firings import stored_firings

    recipe = {"model": {"name": "evil/model", "trust_remote_code": True}}
    write_arm(tmp_path / "arm", arm_folders.ONE_TOKEN, metasae={"recipe": recipe})
    assert stored_firings(tmp_path / "arm").recipe.model.trust_remote_code is False


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_delphi_opens_it(tmp_path, name):
    latents = pytest.importorskip("delphi.latents", reason="delphi (eai-delphi) is not installed")
    from delphi.config import ConstructorConfig, SamplerConfig

    firings = ADVERSARIAL[name]
    write_arm(tmp_path / "arm", firings)
    export_delphi(tmp_path / "arm", tmp_path / "out", context=16)
    data = latents.LatentDataset(tmp_path / "out", SamplerConfig(), ConstructorConfig(), tokenizer=object())
    entries = {}
    for buffer in data.buffers:
        for latent in buffer:
            places, values = latent.activation_data
            assert set(places[:, 2].tolist()) == {latent.latent.latent_index}
            entries |= {tuple(place): value for place, value in zip(places.tolist(), values.numpy(), strict=True)}
    places = places_of(firings, 16)
    assert entries == {
        (*places[token], latent): np.float16(value) for (token, latent), value in entries_of(firings).items()
    }
    assert all(data.tokens[place] == firings.tokens[token] for token, place in enumerate(places))
