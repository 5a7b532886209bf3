"""SAEs written by the libraries themselves, and ours opened by them.

Each part is skipped where its library is not installed.
"""

import json

import pytest
import torch

from metasae.errors import UserError
from metasae.interop import export, load
from tools import peers
from tools.matrix import difference, outputs, random_sae

EXACT = 1e-5
CASES = [
    (format, kind, normal)
    for format, kinds in peers.ARCHITECTURES.items()
    for kind in kinds
    for normal in peers.NORMALISATIONS[format]
]


def randomise(module, seed=0):
    """Every parameter random, so that zero biases hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise.abs() if name == "threshold" else noise * 0.3)


@pytest.mark.parametrize(
    ("format", "architecture", "normalisation"),
    [case for case in CASES if case[0] != "paper" and "rescale" not in case[2]],
)
def test_the_equations_of_the_matrix_are_those_of_the_library(tmp_path, format, architecture, normalisation):
    if not peers.library(format):
        pytest.skip(f"{format} is not installed")
    path, x = peers.make(format, architecture, normalisation, tmp_path), peers.inputs()
    assert difference(peers.theirs(format, path, x), peers.run(format, path, x)) < EXACT


@pytest.fixture(scope="module")
def saelens():
    return pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[saelens]'")


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("b_dec", [True, False])
@pytest.mark.parametrize("name", ["Standard", "JumpReLU", "Gated", "TopK"])
def test_what_saelens_saves(saelens, tmp_path, name, b_dec, normalize):
    kind, config = getattr(saelens, f"{name}SAE"), getattr(saelens, f"{name}SAEConfig")
    more = {"k": 5, "rescale_acts_by_decoder_norm": True} if name == "TopK" else {}
    theirs = kind(config(d_in=12, d_sae=30, apply_b_dec_to_input=b_dec, normalize_activations=normalize, **more))
    randomise(theirs)
    theirs.save_model(tmp_path)
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(1)) * 2 + 1
    with torch.no_grad():
        assert difference(outputs(load(tmp_path), x), (theirs.encode(x), theirs(x))) < EXACT


@pytest.mark.parametrize("name", ["Standard", "JumpReLU", "Gated", "TopK", "BatchTopK", "MatryoshkaBatchTopK"])
def test_checkpoints_of_saelens_training(saelens, tmp_path, name):
    """The training class's own folder is read as the inference SAE that SAELens makes of it."""
    kind, config = getattr(saelens, f"{name}TrainingSAE"), getattr(saelens, f"{name}TrainingSAEConfig")
    more = {"k": 5, "rescale_acts_by_decoder_norm": True} if "TopK" in name else {}
    more |= {"matryoshka_widths": [10, 30]} if "Matryoshka" in name else {}
    training = kind(config(d_in=12, d_sae=30, **more))
    randomise(training)
    if "Batch" in name:
        training.topk_threshold = torch.tensor(0.4, dtype=torch.double)
    training.save_model(tmp_path / "checkpoint")
    training.save_inference_model(tmp_path / "inference")
    theirs = saelens.SAE.load_from_disk(tmp_path / "inference")
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(1)) * 2
    with torch.no_grad():
        expected = theirs.encode(x), theirs(x)
    for folder in ("checkpoint", "inference"):
        assert difference(outputs(load(tmp_path / folder), x), expected) < EXACT


def test_saelens_opens_what_is_imported_from_anywhere(saelens, tmp_path):
    """Each peer's SAE, imported into our own folder and exported to SAELens's."""
    x = peers.inputs()
    for number, (format, architecture, normalisation) in enumerate(CASES):
        try:
            sae = load(peers.make(format, architecture, normalisation, tmp_path / str(number) / "in"))
        except UserError:
            continue
        sae.save(tmp_path / str(number) / "own")
        export(sae, "saelens", tmp_path / str(number) / "out")
        for folder in ("own", "out"):
            theirs = saelens.SAE.load_from_disk(tmp_path / str(number) / folder)
            with torch.no_grad():
                assert difference((theirs.encode(x), theirs(x)), outputs(sae, x)) < EXACT, (
                    format,
                    architecture,
                    normalisation,
                )


def test_saelens_keeps_the_provenance(saelens, tmp_path):
    sae = random_sae("one threshold", "none")
    sae.config.metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "metasae": {"seed": 3, "recipe": {"seeds": [0, 3]}},
        "measured": {"fvu": 0.1},
    }
    metadata = saelens.SAE.load_from_disk(export(sae, "saelens", tmp_path / "out")).cfg.metadata
    assert (
        metadata.metasae == {"seed": 3, "recipe": {"seeds": [0, 3]}}
        and metadata.measured == {"fvu": 0.1}
        and metadata.k == peers.K
    )


def test_an_old_config_reads_as_saelens_reads_it(saelens, tmp_path):
    x = peers.inputs()
    for number, changes in enumerate(
        [{}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, {"normalize_activations": None}]
    ):
        path = peers.make("saelens", "standard", "none", tmp_path / str(number))
        cfg = json.loads((path / "cfg.json").read_text())
        top = {**cfg.pop("metadata"), "sae_lens_version": "5.9.0", "activation_fn_str": "relu"}
        (path / "cfg.json").write_text(json.dumps({**cfg, **top, **changes}))
        theirs = saelens.SAE.load_from_disk(path)
        with torch.no_grad():
            assert difference(outputs(load(path), x), (theirs.encode(x), theirs(x))) < EXACT


def test_what_sparsify_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed")
    theirs = sparsify.SparseCoder(12, sparsify.SparseCoderConfig(num_latents=30, k=4))
    randomise(theirs)
    theirs.save_to_disk(tmp_path / "layers.3")
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(1))
    sae = load(tmp_path / "layers.3")
    with torch.no_grad():
        assert difference((sae(x), sae(x)), (theirs(x).sae_out, theirs(x).sae_out)) < EXACT
    assert sae.config.metadata["hook_name"] == "blocks.3.hook_resid_post"


def test_what_dictionary_learning_saves(tmp_path):
    pytest.importorskip("dictionary_learning", reason="dictionary_learning is not installed")
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(1))
    for kind in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE):
        theirs = kind(12, 30, 4) if "TopK" in kind.__name__ else kind(12, 30)
        randomise(theirs)
        theirs.scale_biases(1.7) if hasattr(theirs, "scale_biases") else None
        folder = tmp_path / kind.__name__
        folder.mkdir()
        torch.save(theirs.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind.__name__, "k": 4}}))
        sae = load(folder)
        with torch.no_grad():
            assert difference((sae(x), sae(x)), (theirs(x), theirs(x))) < EXACT, kind.__name__
