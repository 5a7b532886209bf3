import hashlib
import json

import numpy as np
import pytest

from metasae.errors import UserError
from metasae.measures.firing import arrays
from metasae.measures.firing.arrays import (
    ArrayFile,
    Kind,
    empty_array,
    entry_of,
    open_arrays,
    read_index,
    whole_folder,
    write_index,
)

KIND = Kind("pair of arrays", 2, {"left": "<i8", "right": "<f4"})


def write(folder, left=(1, 2, 3), right=(0.5,), kind=KIND):
    with whole_folder(folder, kind) as part:
        files = {name: ArrayFile(part, name, dtype) for name, dtype in kind.arrays.items()}
        for name, values in (("left", left), ("right", right)):
            for value in values:
                files[name].append(np.array([value]))
            files[name].close()
        write_index(part, kind, {"note": "kept"}, {name: file.entry() for name, file in files.items()})


def opened(folder):
    return open_arrays(folder, KIND, read_index(folder, KIND))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_appended_comes_back(tmp_path):
    write(tmp_path / "a")
    maps = opened(tmp_path / "a")
    assert (
        maps["left"].tolist() == [1, 2, 3]
        and maps["left"].dtype == np.dtype("<i8")
        and isinstance(maps["left"], np.memmap)
    )
    assert maps["right"].tolist() == [0.5]
    assert read_index(tmp_path / "a", KIND)["note"] == "kept"
    entry = read_index(tmp_path / "a", KIND)["arrays"]["left"]
    content = (tmp_path / "a" / "left.bin").read_bytes()
    assert content == np.array([1, 2, 3], "<i8").tobytes()
    assert entry == {
        "dtype": "<i8",
        "shape": [3],
        "bytes": 24,
        "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest(),
    }
    assert files_of(tmp_path) == ["a"]


def test_empty_arrays(tmp_path):
    write(tmp_path / "a", left=(), right=())
    maps = opened(tmp_path / "a")
    assert len(maps["left"]) == 0 and maps["right"].dtype == np.float32


@pytest.mark.parametrize("left", [(), (1, 2)])
def test_arrays_are_read_only(left, tmp_path):
    write(tmp_path / "a", left)
    with pytest.raises(ValueError, match="read-only"):
        opened(tmp_path / "a")["left"][:] = 5


@pytest.mark.parametrize("length", [0, 5])
def test_an_array_filled_in_any_order_has_the_entry_of_one_appended(length, tmp_path):
    (tmp_path / "x").mkdir()
    array = empty_array(tmp_path / "x", "left", "<i8", length)
    array[::-1] = np.arange(length)
    appended = ArrayFile(tmp_path, "left", "<i8")
    appended.append(np.arange(length)[::-1])
    appended.close()
    assert entry_of(array) == appended.entry()
    assert (tmp_path / "x" / "left.bin").read_bytes() == (tmp_path / "left.bin").read_bytes()


@pytest.mark.parametrize(
    "failure, raised", [(KeyboardInterrupt, KeyboardInterrupt), (ValueError, ValueError), (OSError, UserError)]
)
def test_a_failure_leaves_what_was_there(failure, raised, tmp_path):
    write(tmp_path / "a")
    for folder in ("a", "new"):
        with pytest.raises(raised), whole_folder(tmp_path / folder, KIND) as part:
            (part / "left.bin").write_text("half")
            raise failure("No space left on device")
    assert files_of(tmp_path) == ["a"] and opened(tmp_path / "a")["left"].tolist() == [1, 2, 3]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "a")
    replace = arrays.os.replace

    def refuse(source, target):
        if str(source).endswith(".part"):
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(arrays.os, "replace", refuse)
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "a", left=(9,))
    assert files_of(tmp_path) == ["a"] and opened(tmp_path / "a")["left"].tolist() == [1, 2, 3]


def test_what_a_killed_write_left_is_replaced(tmp_path):
    for leftover in (".a.part", ".a.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "left.bin").write_text("half")
    write(tmp_path / "a", left=(7,))
    assert files_of(tmp_path) == ["a"] and files_of(tmp_path / "a") == ["index.json", "left.bin", "right.bin"]
    write(tmp_path / "a", left=(8,))
    assert opened(tmp_path / "a")["left"].tolist() == [8]


@pytest.mark.parametrize("content", ["text", '{"kind": "something else"}', "[]"])
def test_other_folders_are_not_touched(content, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    for name in ("index.json", "chapter.txt"):
        (folder / name).write_text(content)
        with pytest.raises(UserError, match="is no pair of arrays; choose another folder"):
            write(folder)
        assert (folder / name).read_text() == content
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is no pair of arrays"):
        write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


def test_another_version_is_refused_when_read_and_replaced_when_written(tmp_path):
    write(tmp_path / "a", kind=Kind(KIND.name, 1, KIND.arrays))
    with pytest.raises(UserError, match="is of version 1, not 2; delete it and write it again"):
        opened(tmp_path / "a")
    write(tmp_path / "a")
    opened(tmp_path / "a")


def edit_index(change):
    def damage(folder):
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return damage


@pytest.mark.parametrize("damage, why", [
    (lambda folder: (folder / "left.bin").unlink(), "left.bin is missing"),
    (lambda folder: (folder / "left.bin").write_bytes(b"1234567"), "left.bin has 7 bytes instead of 24"),
    (lambda folder: (folder / "left.bin").write_bytes(b""), "left.bin has 0 bytes"),
    (lambda folder: (folder / "index.json").unlink(), "write it first"),
    (lambda folder: (folder / "index.json").write_text('{"kind": '), "not valid JSON"),
    (edit_index(lambda index: index.pop("arrays")), "does not describe 'left'"),
    (edit_index(lambda index: index["arrays"].pop("right")), "does not describe 'right'"),
    (edit_index(lambda index: index["arrays"]["left"].update(shape=[])), "does not describe 'left'"),
    (edit_index(lambda index: index["arrays"]["left"].update(shape=[4])), "contradicts itself about 'left'"),
    (edit_index(lambda index: index["arrays"]["left"].update(dtype="<f8")), "contradicts itself about 'left'"),
    (edit_index(lambda index: index["arrays"]["left"].update(dtype="nonsense")), "contradicts itself about 'left'"),
    (edit_index(lambda index: index.update(kind="other")), "holds no pair of arrays"),
])  # fmt: skip
def test_damage_is_one_line_that_says_what_to_do(damage, why, tmp_path):
    write(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=why) as error:
        opened(tmp_path / "a")
    assert "\n" not in str(error.value) and any(word in str(error.value) for word in ("delete", "write it", "choose"))
