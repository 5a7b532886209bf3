"""An SAE's folder: what is written is what is read, by us and by SAELens, and a damaged folder is one clear line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae.errors import UserError
from metasae.sae.sae import SAE, SAEConfig, token_normalise

D, N, K = 12, 40, 5
PROVENANCE = {
    "hook_name": "blocks.4.hook_resid_pre",
    "model_name": "tiny",
    "dataset_path": "docs",
    "context_size": 64,
    "prepend_bos": True,
    "metasae": {"version": "0.1.0", "arm": "joint", "seed": 3, "recipe": {"train": {"lambda2": 0.3}, "seeds": [0, 3]}},
}
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def sae_of(normalize="none", seed=0, n=N, metadata=PROVENANCE):
    """An SAE in which no two numbers that could be mixed up are equal: untied, biased, a threshold of its own per
    latent.
    """
    draw = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(D, n, "batchtopk", K, normalize, dict(metadata)))
    sae.init_weights(draw)
    sae.W_enc.data.add_(torch.randn(D, n, generator=draw), alpha=0.3)
    sae.b_enc.data.copy_(torch.randn(n, generator=draw) * 0.2)
    sae.b_dec.data.copy_(torch.randn(D, generator=draw) * 0.5)
    sae.threshold = torch.rand(n, generator=draw)
    return sae


def inputs(scale=3.0):
    """Random rows away from zero; row 1 constant, row 2 constant with a mean that float32 rounds, row 3 zero."""
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(9)) * scale + 0.7
    x[1], x[2], x[3] = 2.0, 100.1, 0.0
    return x


@pytest.fixture(params=["none", "token"])
def saved(request, tmp_path):
    sae = sae_of(request.param)
    sae.save(tmp_path / "primary")
    return sae, tmp_path / "primary"


def test_a_round_trip_changes_nothing(saved, tmp_path):
    sae, folder = saved
    read = SAE.load(folder)
    assert read.config == sae.config
    for name in TENSORS:
        assert torch.equal(getattr(read, name), getattr(sae, name)), name
    assert read.W_enc.stride() == sae.W_enc.stride()
    assert torch.equal(read(inputs()), sae(inputs()))
    assert len(set(read.threshold.tolist())) == N
    read.save(tmp_path / "again")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_loaded_does_not_hang_on_the_file(saved):
    sae, folder = saved
    read = SAE.load(folder)
    sae_of(seed=1).save(folder)
    assert all(torch.equal(getattr(read, name), getattr(sae, name)) for name in TENSORS)


def test_the_config_is_saelens_6_field_by_field(saved):
    sae, folder = saved
    cfg = json.loads((folder / "cfg.json").read_text())
    version = cfg["metadata"].pop("sae_lens_version")
    # SAELens reads a file without a version of 6 as one from before and drops its metadata
    assert int(version.split(".")[0]) == 6
    assert cfg == {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": {"none": "none", "token": "layer_norm"}[sae.config.normalize],
        "reshape_activations": "none",
        "metadata": {**PROVENANCE, "trained_architecture": "batchtopk", "k": K},
    }


def test_the_tensors_are_saelens_6_and_no_others(saved):
    _, folder = saved
    tensors = load_file(folder / "sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": (D, N),
        "b_enc": (N,),
        "W_dec": (N, D),
        "b_dec": (D,),
        "threshold": (N,),
    }
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_a_version_among_the_metadata_does_not_reach_the_file(tmp_path):
    sae_of(metadata={"sae_lens_version": "5.0.0"}).save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["sae_lens_version"].startswith("6.")


def test_weights_of_another_precision_are_written_as_float32(tmp_path):
    sae = sae_of().to(torch.bfloat16)
    assert sae.threshold.dtype == torch.bfloat16
    sae.save(tmp_path)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "sae_weights.safetensors").values())
    assert torch.equal(SAE.load(tmp_path).W_dec, sae.W_dec.float())


def test_an_sae_without_threshold_is_not_saved(tmp_path):
    sae = sae_of()
    sae.threshold = None
    with pytest.raises(ValueError, match="calibrate it first"):
        sae.save(tmp_path / "primary")
    with pytest.raises(ValueError, match="calibrate it first"):
        sae.encode(inputs())
    assert not (tmp_path / "primary").exists()


def test_codes_are_the_formula_written_out():
    sae, x = sae_of("token"), inputs().double()
    mean = x.mean(1, keepdim=True)
    std = ((x - mean).pow(2).sum(1, keepdim=True) / (D - 1)).sqrt()
    pre = ((x - mean) / (std + 1e-5) - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    acts = torch.where(pre > sae.threshold.double(), pre.relu(), 0)
    expected = (acts @ sae.W_dec.double() + sae.b_dec.double()) * std + mean
    # a row whose mean is rounded is amplified by 1 / eps, so it is no matter of accuracy
    exact = [row for row in range(len(x)) if row != 2]
    assert torch.allclose(sae(inputs()).double()[exact], expected[exact], atol=1e-4)
    assert (sae.encode(inputs()).double() - acts)[exact].abs().max() < 1e-4


def test_token_normalisation_is_saelens_own_to_the_last_rounding():
    for value in (0.0, 0.1, 100.1, 12345.6):
        for width in (12, 384, 768):
            x = torch.full((2, width), value)
            x[1] += torch.randn(width, generator=torch.Generator().manual_seed(width))
            centred = x - x.mean(-1, keepdim=True)
            std = centred.std(-1, keepdim=True)
            got, _, got_std = token_normalise(x)
            assert torch.allclose(got, centred / (std + 1e-5), rtol=1e-5, atol=1e-6), (value, width)
            assert torch.allclose(got_std, std, rtol=1e-6, atol=0), (value, width)


@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D)])
def test_leading_shapes_pass_through(shape):
    sae = sae_of("token")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert sae.encode(x).shape == (*shape[:-1], N) and sae(x).shape == shape
    assert torch.allclose(sae(x).reshape(-1, D), sae(x.reshape(-1, D)), atol=1e-6)


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 7.0])
def test_a_scaled_sae_takes_unscaled_inputs(scale):
    trained, x = sae_of(), inputs(scale=3.0 / scale)
    before = {name: getattr(trained, name).clone() for name in TENSORS}
    scaled = trained.scaled(scale)
    expected = trained(scale * x) / scale
    assert torch.allclose(scaled(x), expected, rtol=1e-5, atol=1e-5 / scale)
    acts = trained.encode(scale * x) / scale
    assert torch.allclose(scaled.encode(x), acts, rtol=1e-5, atol=1e-5 / scale)
    # thresholds bite: some latents are positive yet below theirs
    pre = trained.pre_activations(scale * x)
    assert ((pre > 0) & (pre <= trained.threshold)).any() and (acts > 0).any()
    assert torch.equal(scaled.W_dec, trained.W_dec) and torch.equal(scaled.W_enc, trained.W_enc)
    assert torch.allclose(scaled.threshold * scale, trained.threshold) and torch.allclose(
        scaled.b_enc * scale, trained.b_enc
    )
    assert all(torch.equal(getattr(trained, name), value) for name, value in before.items())
    scaled.config.metadata["more"] = 1
    assert "more" not in trained.config.metadata


def test_scaling_before_calibration_leaves_no_threshold():
    sae = sae_of()
    sae.threshold = None
    assert sae.scaled(2.0).threshold is None


def test_a_scale_that_makes_no_sense_is_refused():
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            sae_of().scaled(scale)
    with pytest.raises(ValueError, match="normalises each token"):
        sae_of("token").scaled(2.0)
    assert torch.equal(sae_of("token").scaled(1.0)(inputs()), sae_of("token")(inputs()))


def edited(**changes):
    def damage(folder):
        path = folder / "cfg.json"
        cfg = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}, default=str))

    return damage


def retensored(change):
    def damage(folder):
        path = folder / "sae_weights.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return damage


def truncated(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def folder_in_place_of_file(folder):
    (folder / "cfg.json").unlink()
    (folder / "cfg.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "cfg.json").unlink(), "no file .*cfg.json"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "no file .*sae_weights.safetensors"),
        (folder_in_place_of_file, "cannot read .*cfg.json"),
        (lambda folder: (folder / "cfg.json").write_text('{"d_in": 12,'), "cfg.json is not valid JSON"),
        (lambda folder: (folder / "cfg.json").write_bytes(b"\xff\xfe\x00"), "cfg.json is not valid JSON"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "cfg.json must hold a JSON object, not list"),
        (lambda folder: (folder / "cfg.json").write_text("7"), "cfg.json must hold a JSON object, not int"),
        (edited(architecture=...), "cfg.json lacks 'architecture'"),
        (edited(d_in=...), "cfg.json lacks 'd_in'"),
        (edited(d_sae=...), "cfg.json lacks 'd_sae'"),
        (edited(architecture="batchtopk"), "architecture 'batchtopk' is not read here"),
        (edited(architecture=["jumprelu"]), "architecture .* is not read here"),
        (edited(d_in="12"), "d_in and d_sae must be positive whole numbers"),
        (edited(d_in=True), "d_in and d_sae must be positive whole numbers"),
        (edited(d_sae=40.0), "d_in and d_sae must be positive whole numbers"),
        (edited(d_sae=0), "d_in and d_sae must be positive whole numbers"),
        (edited(apply_b_dec_to_input=False), "apply_b_dec_to_input = false is not supported"),
        (edited(apply_b_dec_to_input="yes"), 'apply_b_dec_to_input = "yes" is not supported'),
        (
            edited(normalize_activations="expected_average_only_in"),
            "'expected_average_only_in' is not supported; known: none, layer_norm",
        ),
        (edited(normalize_activations=["none"]), "normalize_activations .* is not supported"),
        (edited(metadata="mine"), "metadata must be a JSON object, not str"),
        (edited(metadata={"k": "five"}), "metadata.k must be a positive whole number"),
        (edited(d_sae=N + 1), r"W_enc has shape \(12, 40\), the config says \(12, 41\)"),
        (retensored(lambda tensors: tensors.pop("threshold")), "lacks the tensor 'threshold'"),
        (
            retensored(lambda tensors: tensors.update(W_dec=tensors["W_dec"].t().contiguous())),
            r"W_dec has shape \(12, 40\), the config says \(40, 12\)",
        ),
        (retensored(lambda tensors: tensors.update(threshold=torch.tensor(0.5))), r"threshold has shape \(\)"),
        (retensored(lambda tensors: tensors["b_dec"].fill_(float("nan"))), "b_dec holds NaN"),
        (retensored(lambda tensors: tensors["W_enc"][3, 4].fill_(float("inf"))), "W_enc holds NaN or inf"),
        (retensored(lambda tensors: tensors["threshold"][7].fill_(float("nan"))), "threshold holds NaN"),
        (
            retensored(lambda tensors: tensors.update(b_enc=torch.zeros(N, dtype=torch.int64))),
            "b_enc has dtype torch.int64",
        ),
        (retensored(lambda tensors: tensors.update(scaling_factor=torch.ones(N))), "holds the tensor 'scaling_factor'"),
        (truncated, "sae_weights.safetensors is damaged"),
        (lambda folder: (folder / "sae_weights.safetensors").write_bytes(b""), "sae_weights.safetensors is damaged"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, damage, words):
    sae_of().save(tmp_path / "primary")
    damage(tmp_path / "primary")
    with pytest.raises(UserError, match=words) as caught:
        SAE.load(tmp_path / "primary")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "primary") in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no SAE folder '.*absent'"):
        SAE.load(tmp_path / "absent")


def test_a_latent_that_never_fires_may_have_an_infinite_threshold(tmp_path):
    sae = sae_of()
    sae.threshold[4] = float("inf")
    sae.save(tmp_path)
    read = SAE.load(tmp_path)
    assert (read.encode(inputs())[:, 4] == 0).all() and torch.isfinite(read(inputs())).all()


def test_a_folder_written_by_saelens_with_half_precision_and_without_k_loads(tmp_path):
    sae_of().save(tmp_path)
    edited(metadata={"sae_lens_version": "6.54.0", "hook_name": "blocks.0.hook_mlp_out"})(tmp_path)
    retensored(lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))(tmp_path)
    read = SAE.load(tmp_path)
    assert read.config == SAEConfig(D, N, "jumprelu", 1, "none", {"hook_name": "blocks.0.hook_mlp_out"})
    assert read.threshold.dtype == read.W_enc.dtype == torch.float32


@pytest.fixture(scope="module")
def saelens():
    return pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[saelens]'")


def in_saelens(saelens, folder, dtype=None):
    """The folder as SAELens reads it, and its (codes, decoded codes, output) on our inputs."""
    theirs = saelens.SAE.load_from_disk(folder, dtype=dtype)
    with torch.no_grad():
        codes = theirs.encode(inputs())
        # decode undoes the normalisation of the encode before it
        return theirs, codes, theirs.decode(codes), theirs(inputs())


def assert_same(ours, codes, decoded, output):
    codes = ours.codes(inputs())
    assert (codes.acts > 0).any() and (codes.acts == 0).any()
    assert torch.equal(codes > 0, codes.acts > 0)
    assert torch.allclose(codes, codes.acts, rtol=1e-5, atol=1e-5)
    assert torch.allclose(decoded, ours.decode(codes), rtol=1e-5, atol=1e-5)
    assert torch.allclose(output, ours(inputs()), rtol=1e-5, atol=1e-5)


def test_saelens_computes_the_same(saelens, saved):
    sae, folder = saved
    theirs, *results = in_saelens(saelens, folder)
    assert type(theirs).__name__ == "JumpReLUSAE"
    assert_same(sae, *results)


def test_saelens_computes_the_same_for_a_meta_sae(saelens, tmp_path):
    primary, meta = sae_of(), sae_of("token", seed=4, n=8)
    primary.save(tmp_path / "primary")
    meta.save(tmp_path / "meta")
    _, *results = in_saelens(saelens, tmp_path / "meta")
    assert_same(meta, *results)
    theirs = saelens.SAE.load_from_disk(tmp_path / "meta")
    with torch.no_grad():
        assert torch.allclose(theirs(primary.W_dec), meta(primary.W_dec), atol=1e-5)


def test_saelens_computes_the_same_for_a_folded_scale(saelens, tmp_path):
    scaled = sae_of().scaled(0.2)
    scaled.save(tmp_path)
    assert_same(scaled, *in_saelens(saelens, tmp_path)[1:])


def test_saelens_keeps_the_metadata(saelens, saved):
    _, folder = saved
    metadata = saelens.SAE.load_from_disk(folder).cfg.metadata
    assert metadata.k == K and metadata.trained_architecture == "batchtopk"
    assert {name: metadata[name] for name in PROVENANCE} == PROVENANCE


def test_a_folder_that_saelens_wrote_again_is_the_same_to_us(saelens, saved, tmp_path):
    sae, folder = saved
    saelens.SAE.load_from_disk(folder).save_model(tmp_path / "theirs")
    read = SAE.load(tmp_path / "theirs")
    assert all(torch.equal(getattr(read, name), getattr(sae, name)) for name in TENSORS)
    assert read.config.normalize == sae.config.normalize and read.config.k == K
    assert PROVENANCE.items() <= read.config.metadata.items()
