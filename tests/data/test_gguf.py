"""GGUF files as models: transformers' own reading, kept under the file's digest; damaged ones refused in a line."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest
import torch

from gguf_files import write_gguf
from metasae import UserError
from metasae.data.model import gguf_file as files
from metasae.data.model.gguf_folder import GGUFNote, cache_folder, folder_of
from metasae.data.model.host import Host
from metasae.data.model.model_folder import check_model, local_folder
from metasae.recipe.recipe import Model, Recipe
from spawned import Program

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
POINT = "blocks.1.hook_resid_pre"
IDS, MASK = torch.tensor([[1, 40, 300, 77, 5, 260]]), torch.ones(1, 6, dtype=torch.long)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "metasae" / "models"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.Q4_1.gguf")


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory) -> Path:
    """Its folder in a cache that the tests of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("shared")))
        return folder_of(files.gguf_file(str(original)))


@pytest.fixture
def filled(converted, cache) -> Path:
    """A cache in which the file is converted already."""
    shutil.copytree(converted, cache / converted.name)
    return cache / converted.name


def refused(path, **model) -> str:
    with pytest.raises(UserError) as error:
        local_folder(Model(path=str(path), **model))
    assert "\n" not in str(error.value)
    return str(error.value)


def unfinished(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.glob("*") if entry.suffix != ".lock") if cache.is_dir() else []


def test_numbers_are_transformers_own_rounded_once(original, converted):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        original.parent, gguf_file=original.name, dtype=torch.float32
    )
    ours = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.bfloat16)
    parameters = dict(ours.named_parameters())
    for name, value in theirs.named_parameters():
        assert torch.equal(value.to(torch.bfloat16), parameters[name]), name
    theirs.is_quantized = False  # transformers refuses to cast what it calls quantised
    rounded = theirs.to(torch.bfloat16).float().eval()
    again = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    assert (rounded(IDS).logits - again(IDS).logits).abs().max() <= 1e-3


def test_tokenizer_is_the_files_own(converted):
    import transformers

    from sources import STORIES, tokenizer_for

    tokenizer, wanted = transformers.AutoTokenizer.from_pretrained(converted), tokenizer_for("llama", bos=True)
    for story in STORIES:
        ids = wanted(story, add_special_tokens=False)["input_ids"]
        assert tokenizer(story, add_special_tokens=False)["input_ids"] == ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_note_says_where_the_numbers_come_from(original, converted):
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    assert GGUFNote.of(converted) == GGUFNote("small.Q4_1.gguf", digest, "llama", "Q4_1", "mit")
    assert converted.name == digest[:32]


def test_a_second_reading_converts_nothing(original, filled, monkeypatch):
    import transformers

    def fail(*_, **__):
        raise AssertionError("converted again")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    assert local_folder(Model(path=str(original))) == filled


@pytest.mark.parametrize("name", ["other.gguf", "model.bin", "no_suffix"])
def test_a_renamed_file_is_read_and_finds_its_folder(original, filled, tmp_path, name):
    shutil.copy(original, tmp_path / name)
    assert local_folder(Model(path=str(tmp_path / name))) == filled


def test_a_file_without_the_suffix_is_converted(tmp_path, cache):
    path = write_gguf(tmp_path / "weights", seed=3)
    folder = local_folder(Model(path=str(path)))
    assert Host.load(Model(path=str(path)), POINT).d == 64
    assert GGUFNote.of(folder).file == "weights" and unfinished(cache) == [folder.name]


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_line_and_leaves_nothing(original, tmp_path, cache, share):
    data = original.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: max(5, int(share * len(data)))])
    assert "'cut.gguf' is cut off or damaged" in refused(path)
    assert unfinished(cache) == []


@pytest.mark.parametrize("content", [b"GGUF" + b"\xff" * 400, b"GGUF" + bytes(400), b"GGUF\x03\0\0\0" + b"\x7f" * 16])
def test_a_header_of_nonsense_is_one_line(tmp_path, cache, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    assert "cut off or damaged" in refused(tmp_path / "bad.gguf")
    assert unfinished(cache) == []


@pytest.mark.parametrize(
    "content, words", [(b"", "is empty"), (b"PK\x03\x04 a zip", "is not a GGUF file"), (b"G", "is not a GGUF")]
)
def test_empty_and_foreign_files_are_refused_without_reading_on(tmp_path, content, words):
    (tmp_path / "other.gguf").write_bytes(content)
    assert words in refused(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=words):
        check_model(Model(path=str(tmp_path / "other.gguf")))


def test_a_missing_file_is_one_line(tmp_path):
    assert "does not exist" in refused(tmp_path / "absent.gguf")


def test_an_architecture_that_transformers_lacks_is_one_line(tmp_path, cache):
    path = write_gguf(tmp_path / "odd.gguf", architecture="nonsuch")
    message = refused(path)
    assert "cannot read 'odd.gguf', a nonsuch model" in message and "newer transformers" in message
    assert unfinished(cache) == []


def test_missing_packages_are_named(original, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    assert "needs gguf: pip install" in refused(original)


def test_a_full_disk_leaves_nothing(original, cache, monkeypatch):
    import transformers

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    assert "No space left on device; free some space" in refused(original)
    assert unfinished(cache) == []


def test_what_a_killed_process_left_is_written_over(original, converted, cache):
    part = cache / f".{converted.name}.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")
    folder = local_folder(Model(path=str(original)))
    assert unfinished(cache) == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_two_processes_convert_once(original, cache):
    script = textwrap.dedent("""
        import sys
        from metasae.data.model.model_folder import local_folder
        from metasae.recipe.recipe import Model
        print(local_folder(Model(path=sys.argv[1])))
    """)
    processes = [Program(["-c", script, original]) for _ in range(2)]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len({out for out, _ in said}) == 1
    assert sum("which is done once" in errors for _, errors in said) == 1


def package(root: Path, name: str, content: dict[str, bytes]) -> None:
    (root / name).mkdir()
    (root / name / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    for inner, data in content.items():
        path = root / name / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def in_parts(original, tmp_path, monkeypatch) -> Path:
    """Packages with the file in three parts, as on the package index; imports find them."""
    data, root = original.read_bytes(), tmp_path / "packages"
    root.mkdir()
    third = len(data) // 3
    sums = f"{hashlib.sha256(data).hexdigest()}  small.gguf\n".encode()
    package(root, "carried_gguf", {"data/SHA256SUMS": sums})
    for number, part in enumerate((data[:third], data[third : 2 * third], data[2 * third :])):
        package(root, f"carried_gguf_part{number + 1}", {f"data/small.gguf.part{number:02d}": part})
    monkeypatch.syspath_prepend(str(root))
    return root


PARTS = Model(path="package:carried_gguf/small.gguf")


def test_parts_are_joined_and_found_in_the_cache(in_parts, filled):
    assert local_folder(PARTS) == filled
    assert files.gguf_file(PARTS.path).checksum is not None


def test_parts_are_converted_without_a_trace_of_the_joined_file(in_parts, cache, converted):
    folder = local_folder(PARTS)
    assert unfinished(cache) == [folder.name]
    assert {file.name for file in folder.iterdir()} == {file.name for file in converted.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_a_damaged_part_is_refused_by_the_checksum(in_parts, cache):
    path = in_parts / "carried_gguf_part2" / "data" / "small.gguf.part01"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert "do not match the checksum" in refused(PARTS.path)
    assert unfinished(cache) == []


@pytest.mark.parametrize("number, left", [(1, "1, 2"), (2, "0, 2")])
def test_a_missing_part_is_named(in_parts, number, left):
    shutil.rmtree(in_parts / f"carried_gguf_part{number}")
    assert f"only the parts {left} are installed" in refused(PARTS.path)


def test_a_missing_last_part_is_told_by_the_checksum(in_parts):
    shutil.rmtree(in_parts / "carried_gguf_part3")
    assert "do not match the checksum" in refused(PARTS.path)


def test_packages_of_our_recipes_say_how_they_are_installed():
    message = refused("package:no_such_package_here/small.gguf")
    assert "pip install no-such-package-here" in message
    for name in ("smollm2", "smollm2-quick", "gemma3-270m"):
        package_name = Recipe.load(name).model.path.removeprefix(files.PACKAGE).partition("/")[0]
        assert "pip install" in files._cure(package_name)


def test_the_note_decides_what_is_harvested(original, filled):
    host = Host.load(Model(path=str(original)), POINT)
    assert host.in_words == "small.Q4_1.gguf (quantised, Q4_1)"
    before = host.fingerprint
    note = json.loads((filled / "gguf.json").read_text())
    (filled / "gguf.json").write_text(json.dumps(note | {"quantisation": "Q8_0"}))
    assert Host.load(Model(path=str(original)), POINT).fingerprint != before


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.sep + "someone")
    assert cache_folder() == Path(os.sep, "someone", ".cache", "metasae", "models")
