"""Damaged, mis-shaped and hostile files: one clear line each, nothing in them run, nothing written, no memory beyond
the file's size.
"""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae.errors import UserError
from metasae.interop import checked, export, load
from tools import peers

KIND = {"saelens": "jumprelu", "dictionary_learning": "BatchTopKSAE", "sparsify": "topk", "paper": "batchtopk + npy"}


class Harm:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(autouse=True)
def little_memory():
    """A file that asks for terabytes fails here instead of taking the machine with it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path, words, **options):
    """Loading and exporting fail with one line that holds the words, and leave the disk as it was."""
    root = path if path.is_dir() else path.parent
    before = sorted((entry, entry.stat().st_size) for entry in root.parent.rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(UserError):
        export(path, "saelens", root.parent / "out")
    assert sorted((entry, entry.stat().st_size) for entry in root.parent.rglob("*")) == before


def checkpoint(format, tmp_path):
    return peers.make(format, KIND[format], "none", tmp_path / "in")


def change_json(path, **changes):
    cfg = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))


def change_tensors(path, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def change_pt(path, change):
    value = torch.load(path, weights_only=True)
    change(value.get("state_dict", value))
    torch.save(value, path)


WEIGHTS = {
    "saelens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
    "paper": "joint_primary_sae.pt",
}
CONFIGS = {"saelens": "cfg.json", "sparsify": "cfg.json", "dictionary_learning": "config.json"}


def edit(format, folder, change):
    (change_tensors if WEIGHTS[format].endswith("safetensors") else change_pt)(folder / WEIGHTS[format], change)


@pytest.mark.parametrize("format", KIND)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file(tmp_path, format, share):
    path = checkpoint(format, tmp_path)
    file = tmp_path / "in" / WEIGHTS[format]
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    refused(path, "is damaged|is not a checkpoint of torch")


@pytest.mark.parametrize("format", KIND)
def test_changed_bytes_in_the_middle_never_crash(tmp_path, format):
    path = checkpoint(format, tmp_path)
    file = tmp_path / "in" / WEIGHTS[format]
    content = file.read_bytes()
    for seed in range(30):
        damaged, rng = bytearray(content), np.random.default_rng(seed)
        for place in rng.integers(0, 1500, 8):
            damaged[place] = rng.integers(0, 256)
        file.write_bytes(bytes(damaged))
        try:
            load(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", KIND)
def test_weights_that_are_not_finite(tmp_path, format, value):
    path = checkpoint(format, tmp_path)
    edit(
        format,
        tmp_path / "in",
        lambda tensors: next(t for t in tensors.values() if t.dim() == 2).view(-1)[5].fill_(value),
    )
    refused(path, "holds NaN or inf")


@pytest.mark.parametrize("format", KIND)
def test_a_missing_a_surplus_a_misshaped_and_a_whole_number_tensor(tmp_path, format):
    name = {"saelens": "b_enc", "dictionary_learning": "encoder.bias", "sparsify": "encoder.bias", "paper": "b_enc"}[
        format
    ]
    for number, (change, words) in enumerate(
        [
            (lambda t: t.pop(name), f"lacks the tensor '{name}'"),
            (lambda t: t.update(surplus=torch.ones(3)), "holds the tensor 'surplus', which is not understood"),
            (lambda t: t.update({name: torch.zeros(peers.N + 1)}), rf"{name} has shape \(49,\), not \(48,\)"),
            (lambda t: t.update({name: torch.zeros(peers.N, 1)}), r"has shape \(48, 1\)"),
            (lambda t: t.update({name: torch.zeros(peers.N, dtype=torch.int32)}), "has dtype torch.int32"),
            (lambda t: t.update({name: torch.zeros(peers.N, dtype=torch.complex64)}), "has dtype torch.complex64"),
        ]
    ):
        path = checkpoint(format, tmp_path / str(number))
        edit(format, tmp_path / str(number) / "in", change)
        refused(path, words)


@pytest.mark.parametrize("format", CONFIGS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ("[1, 2]", "must hold a JSON object, not list"),
        ('{"a": 1', "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON"),
        ('{"a":' * 300 + "1" + "}" * 300, "is nested deeper than 100 levels"),
        ('{"d_in": ' + "9" * 10_000 + "}", "is not valid JSON"),
        ("\ufffe", "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_object(tmp_path, format, text, words):
    path = checkpoint(format, tmp_path)
    (tmp_path / "in" / CONFIGS[format]).write_text(text, encoding="utf-16" if text == "\ufffe" else "utf-8")
    refused(path, words)


def test_a_config_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    path = checkpoint("sparsify", tmp_path)
    monkeypatch.setattr(checked, "JSON_BYTES", 100)
    refused(path, "too many for a config")


WRONG = [None, True, 0, -3, 2.5, "16", [16], {"a": 1}, 10**30]


@pytest.mark.parametrize("value", [*WRONG, ...])
@pytest.mark.parametrize(
    ("format", "key"), [("saelens", "d_in"), ("saelens", "d_sae"), ("sparsify", "d_in"), ("sparsify", "k")]
)
def test_a_count_of_a_wrong_type(tmp_path, format, key, value):
    path = checkpoint(format, tmp_path)
    change_json(tmp_path / "in" / "cfg.json", **{key: value})
    refused(path, rf"lacks '{key}'|{key} must be a positive whole number|has shape|more than the 48 latents")


@pytest.mark.parametrize(
    ("format", "changes", "words"),
    [
        ("saelens", {"architecture": 7}, "architecture must be a text, not 7"),
        ("saelens", {"architecture": "x" * 5000}, "is not known here"),
        ("saelens", {"architecture": "abstopk"}, "cannot be represented: its activations may be negative"),
        ("saelens", {"architecture": "jumprelu_transcoder"}, "a transcoder rebuilds another activation"),
        ("saelens", {"architecture": "temporal"}, "depend on other tokens"),
        ("saelens", {"normalize_activations": ["layer_norm"]}, "normalize_activations must be a text"),
        ("saelens", {"normalize_activations": "batch_norm"}, "'batch_norm' is not known here"),
        ("saelens", {"normalize_activations": "covariance_whitening"}, "the whitening is not folded"),
        ("saelens", {"normalize_activations": "expected_average_only_in"}, "needs a scale that is not in the folder"),
        ("saelens", {"reshape_activations": "hook_z"}, "joins the heads of hook_z"),
        ("saelens", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input must be true or false, not 'yes'"),
        ("saelens", {"metadata": "mine"}, "metadata must be a JSON object, not str"),
        ("saelens", {"architecture": "topk", "k": None}, "k must be a positive whole number"),
        ("saelens", {"architecture": "topk", "k": 400}, "k is 400, more than the 48 latents"),
        ("saelens", {"architecture": "topk", "k": 2.5}, "k must be a positive whole number"),
        ("saelens", {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": 1}, "must be true or false"),
        ("sparsify", {"transcode": True}, "transcode = true cannot be represented"),
        ("sparsify", {"skip_connection": True}, "no linear skip connection"),
        ("sparsify", {"signed": True}, "its activations may be negative"),
        ("sparsify", {"activation": "groupmax"}, "'groupmax' cannot be represented"),
        ("sparsify", {"num_latents": 0, "expansion_factor": "3"}, "expansion_factor must be a positive whole number"),
        ("dictionary_learning", {"trainer": []}, "trainer must be a JSON object"),
        ("dictionary_learning", {"trainer": {}}, "lacks 'dict_class'"),
        ("dictionary_learning", {"trainer": {"dict_class": "CrossCoder"}}, "dict_class 'CrossCoder' is not known here"),
        (
            "dictionary_learning",
            {"trainer": {"dict_class": "AutoEncoderTopK", "k": 6}},
            "trainer.k is 6, but the weights hold another k",
        ),
        ("dictionary_learning", {"trainer": {"dict_class": "GatedAutoEncoder"}}, "lacks the tensor 'decoder_bias'"),
    ],
)
def test_a_config_with_wrong_or_foreign_values(tmp_path, format, changes, words):
    path = checkpoint(format, tmp_path)
    change_json(tmp_path / "in" / CONFIGS[format], **changes)
    refused(path, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_size": "16"}, "act_size must be a positive whole number"),
        ({"dict_size": 10**12}, r"W_enc has shape \(16, 48\), not \(16, 1000000000000\)"),
        ({"top_k": 400}, "top_k is 400"),
        ({"sae_type": "gated"}, "sae_type 'gated' is not known here"),
        ({"sae_type": 3}, "sae_type must be a text"),
        ({"input_unit_norm": "yes"}, "input_unit_norm must be true or false"),
    ],
)
def test_a_paper_checkpoint_with_wrong_values(tmp_path, changes, words):
    path = checkpoint("paper", tmp_path)
    value = torch.load(path, weights_only=True)
    torch.save({**value, "cfg": value["cfg"] | changes}, path)
    refused(path, words)


def test_other_things_in_a_pt_file(tmp_path):
    path = checkpoint("paper", tmp_path)
    value = torch.load(path, weights_only=True)
    for content, words in [
        ([1, 2], "must hold a dict, not list"),
        ({"cfg": {}}, "lacks 'state_dict'"),
        ({"cfg": 3, "state_dict": {}}, "cfg must be a JSON object"),
        ({**value, "state_dict": []}, "holds no state dict but list"),
        ({**value, "state_dict": {"W_enc": 3.0}}, "state dict's 'W_enc' is no named tensor"),
        ({**value, "state_dict": {5: torch.zeros(2)}}, "state dict's 5 is no named tensor"),
        ({**value, "state_dict": {"W_enc": torch.eye(3).to_sparse()}}, "W_enc is not a dense tensor"),
        ({**value, "state_dict": {"W_enc": torch.zeros(3, device="meta")}}, "W_enc is not a dense tensor"),
        ({**value, "metadata": "{"}, "metadata is not valid JSON"),
    ]:
        torch.save(content, path)
        refused(path, words)


@pytest.mark.parametrize("format", ["paper", "dictionary_learning"])
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path, format):
    path, mark = checkpoint(format, tmp_path), tmp_path / "harmed"
    file = tmp_path / "in" / WEIGHTS[format]
    torch.save({"cfg": {}, "state_dict": Harm(mark)}, file)
    refused(path, "is refused: it is damaged, or holds more than tensors and plain values")
    # and without torch's archive round it
    file.write_bytes(pickle.dumps(Harm(mark)))
    refused(path, "is not a checkpoint of torch")
    assert not mark.exists()


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_a_pickle_in_place_of_safetensors_is_refused_and_not_run(tmp_path, format):
    path, mark = checkpoint(format, tmp_path), tmp_path / "harmed"
    (tmp_path / "in" / WEIGHTS[format]).write_bytes(pickle.dumps(Harm(mark)))
    refused(path, "is damaged, or no safetensors file")
    assert not mark.exists()


@pytest.mark.parametrize("harm", ["pickled", "objects", "archive", "misshaped", "integers", "nan", "huge", "empty"])
def test_hostile_thresholds(tmp_path, harm):
    path, mark = checkpoint("paper", tmp_path), tmp_path / "harmed"
    npy = tmp_path / "in" / "thresholds_joint.npy"
    with npy.open("wb") as file:
        if harm == "pickled":
            pickle.dump(Harm(mark), file)
        elif harm == "objects":
            np.save(file, np.array([Harm(mark)] * peers.N, dtype=object), allow_pickle=True)
        elif harm == "archive":
            np.savez(file, a=np.zeros(peers.N, np.float32))
        elif harm == "huge":
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
            file.write(header.getvalue() + bytes(64))
        elif harm != "empty":
            shape, dtype = (peers.N + (harm == "misshaped"),), np.int64 if harm == "integers" else np.float32
            np.save(file, np.full(shape, np.nan if harm == "nan" else 1, dtype))
    refused(path, "thresholds_joint.npy (is refused: no plain array|holds)|the array holds NaN")
    assert not mark.exists()


def rezipped(path, compression=zipfile.ZIP_STORED, more=()):
    """The archive again, compressed or with further records."""
    with zipfile.ZipFile(path) as archive:
        records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in [*records, *more]:
            archive.writestr(name, content)


@pytest.mark.parametrize("format", ["paper", "dictionary_learning"])
def test_a_zip_bomb(tmp_path, format):
    path = checkpoint(format, tmp_path)
    file = tmp_path / "in" / WEIGHTS[format]
    rezipped(file, zipfile.ZIP_DEFLATED, [("archive/data/99", bytes(30 << 20))])
    assert file.stat().st_size < 1 << 20
    refused(path, "is compressed, which torch.save and np.savez never do")


def test_records_that_overlap_or_lie_about_their_size(tmp_path):
    path = checkpoint("paper", tmp_path)
    content = bytearray(path.read_bytes())
    # every entry of the archive's directory claims 2 GB, stored
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 20 : place + 28] = struct.pack("<II", 2 << 30, 2 << 30)
        place = content.find(b"PK\x01\x02", place + 4)
    path.write_bytes(bytes(content))
    refused(path, "declares .* bytes of content in a file of|is not a checkpoint")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "archive/../../evil", "..\\evil"])
def test_a_record_that_points_out_of_the_archive(tmp_path, name):
    path = checkpoint("paper", tmp_path)
    rezipped(path, more=[(name, b"x")])
    refused(path, "points out of the archive")


@pytest.mark.parametrize("format", ["paper", "dictionary_learning"])
def test_a_tensor_that_claims_more_numbers_than_the_file_holds(tmp_path, format):
    path = checkpoint(format, tmp_path)
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    name = "W_enc" if format == "paper" else "encoder.weight"
    change_pt(tmp_path / "in" / WEIGHTS[format], lambda state: state.update({name: huge}))
    assert (tmp_path / "in" / WEIGHTS[format]).stat().st_size < 100_000
    refused(path, rf"{name} has shape \(1000000, 1000000\) but holds fewer numbers")


def test_a_storage_that_is_larger_than_its_file(tmp_path):
    (tmp_path / "small.pt").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"has shape \(1000,\) but holds fewer numbers"):
        checked.state_of({"a": torch.zeros(1000)}, tmp_path / "small.pt")


def sharded(folder, file="sae_weights.safetensors"):
    """The weights in two shards with their index."""
    tensors = load_file(folder / file)
    stem, names = file.removesuffix(".safetensors"), sorted(tensors)
    shards = {f"{stem}-00001-of-00002.safetensors": names[:2], f"{stem}-00002-of-00002.safetensors": names[2:]}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / shard)
    (folder / file).unlink()
    index = folder / f"{file}.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}})
    )
    return index


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_weights_in_shards_are_read(tmp_path, format):
    path = checkpoint(format, tmp_path)
    whole = load(path)
    sharded(path, WEIGHTS[format])
    assert torch.equal(load(path)(peers.inputs()), whole(peers.inputs()))


OUTSIDE = (
    "../secret.safetensors",
    "/etc/secret.safetensors",
    "a/b.safetensors",
    "..\\secret.safetensors",
    "x.pt",
    "",
    None,
    5,
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_name_that_leaves_the_folder(tmp_path, name):
    path = checkpoint("saelens", tmp_path)
    save_file({"b_dec": torch.zeros(peers.D)}, tmp_path / "secret.safetensors")
    index = sharded(path)
    shards = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**shards, "b_dec": name}}))
    refused(path, "a shard is a .safetensors file in the same folder")


def test_a_missing_shard_and_a_damaged_index(tmp_path):
    path = checkpoint("saelens", tmp_path)
    index = sharded(path)
    (path / "sae_weights-00002-of-00002.safetensors").unlink()
    refused(path, "no file .*sae_weights-00002-of-00002.safetensors")
    index.write_text('{"weight_map": [1]}')
    refused(path, "weight_map must be a JSON object")
    index.write_text("{}")
    refused(path, "lacks the tensor 'W_enc'")


def test_a_folder_or_a_pipe_in_place_of_a_file(tmp_path):
    path = checkpoint("saelens", tmp_path)
    (path / "cfg.json").unlink()
    (path / "cfg.json").mkdir()
    refused(path, "cfg.json is not a file")
    (path / "cfg.json").rmdir()
    os.mkfifo(path / "cfg.json")
    refused(path, "cfg.json is not a file")


def test_our_own_folder_is_checked_alike(tmp_path):
    from tools.matrix import random_sae

    path = export(random_sae("one threshold", "none"), "metasae", tmp_path / "in")
    (path / "cfg.json").write_text("[" * 200_000)
    refused(path, "is not valid JSON")
