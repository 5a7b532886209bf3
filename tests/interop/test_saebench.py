"""SAEBench's contract for an SAE and, where it is installed, its evaluations held against our own numbers."""

import importlib
import inspect
import json

import pytest
import torch
from torch import nn

from metasae.errors import UserError
from metasae.interop import load, saebench, saebench_names
from metasae.measures.rows.decomposability import own_meta
from metasae.sae.sae import SAE, SAEConfig
from tools.matrix import random_sae

POINT, WIDTH, N = "blocks.1.hook_resid_pre", 32, 96
PLACE = {"model_name": "tiny", "hook_name": POINT, "context_size": 16, "dataset_path": "docs", "prepend_bos": False}
OURS = {
    "version": "0.1",
    "arm": "joint",
    "seed": 3,
    "data_fingerprint": "abc",
    "recipe": {"train": {"tokens": 5000}, "measure": {"shifts": 2}},
}


def trained(rule="threshold", normalize="none", seed=0):
    """What training leaves: unit rows, an encoder near them, biases, a threshold for each latent, one of which never
    fires.
    """
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(WIDTH, N, k=6, normalize=normalize, rule=rule, metadata={**PLACE, "metasae": OURS}))
    sae.init_weights(generator)
    sae.W_enc.data.add_(torch.randn(WIDTH, N, generator=generator) * 0.05)
    sae.b_enc.data.copy_(torch.randn(N, generator=generator) * 0.05)
    sae.b_dec.data.copy_(torch.randn(WIDTH, generator=generator) * 0.2)
    if rule == "threshold":
        sae.threshold = torch.rand(N, generator=generator) * 0.5
        sae.threshold[5] = torch.inf
    return sae


def inputs(*shape, seed=1):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.mark.parametrize("rule", ["threshold", "topk"])
@pytest.mark.parametrize("shape", [(50,), (3, 7), (1,)])
def test_forward_is_decode_of_encode_and_is_ours(rule, shape):
    sae = trained(rule)
    bench, x = saebench.adapt(sae), inputs(*shape)
    acts = bench.encode(x)
    assert acts.shape == (*shape, N) and torch.equal(acts, sae.encode(x))
    assert torch.equal(bench(x), bench.decode(bench.encode(x))) and torch.equal(bench(x), sae(x))
    assert torch.equal(bench.decode(torch.zeros(2, N)), sae.b_dec.expand(2, WIDTH))


def test_what_fires_depends_on_the_token_alone():
    bench, x = saebench.adapt(trained()), inputs(40)
    alone = torch.cat([bench.encode(row[None]) for row in x])
    assert torch.equal(alone > 0, bench.encode(x) > 0)
    assert torch.equal(bench.encode(x.flip(0)).flip(0) > 0, bench.encode(x) > 0)


def test_the_names_that_saebench_reads():
    sae = trained()
    bench = saebench.adapt(sae)
    for name, shape in (
        ("W_enc", (WIDTH, N)),
        ("W_dec", (N, WIDTH)),
        ("b_enc", (N,)),
        ("b_dec", (WIDTH,)),
        ("threshold", (N,)),
    ):
        assert getattr(bench, name).shape == shape
    assert isinstance(bench.W_dec, nn.Parameter) and torch.allclose(bench.W_dec.norm(dim=1), torch.ones(N), atol=1e-5)
    cfg = bench.cfg.to_dict()
    expected = {
        "model_name": "tiny",
        "hook_name": POINT,
        "hook_layer": 1,
        "context_size": 16,
        "d_in": WIDTH,
        "d_sae": N,
        "architecture": "jumprelu",
    }
    expected |= {
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "prepend_bos": False,
        "dataset_path": "docs",
    }
    expected |= {
        "training_tokens": 5000,
        "hook_head_index": None,
        "model_from_pretrained_kwargs": {},
        "apply_b_dec_to_input": True,
    }
    assert expected.items() <= cfg.items()
    assert cfg["metasae"] == {"version": "0.1", "arm": "joint", "seed": 3, "data_fingerprint": "abc"}
    bench.cfg.metadata = object()
    assert bench.cfg.to_dict() == cfg == json.loads(json.dumps(cfg))


def test_moved_to_half_precision_it_takes_any_input_and_the_sae_stays():
    sae = trained()
    bench = saebench.adapt(sae).to(dtype=torch.bfloat16)
    assert (
        bench.dtype == bench.threshold.dtype == bench(inputs(4)).dtype == torch.bfloat16
        and bench.cfg.dtype == "bfloat16"
    )
    assert torch.equal(bench(inputs(4)), bench.decode(bench.encode(inputs(4))))
    assert sae.W_dec.dtype == torch.float32
    bench.W_dec.data.zero_()
    assert sae.W_dec.any()


def test_an_sae_that_does_not_say_where_it_belongs_is_refused():
    nowhere = trained()
    for metadata, words in (
        ({"model_name": "tiny"}, "does not say its hook_name"),
        ({"hook_name": POINT}, "does not say its model_name"),
        ({"model_name": "tiny", "hook_name": "embed"}, "'embed' names no layer"),
    ):
        nowhere.config.metadata = metadata
        with pytest.raises(UserError, match=words):
            saebench.adapt(nowhere)
    assert saebench.adapt(nowhere, rows_alone=True).cfg.hook_layer == -1


@pytest.mark.parametrize("normalize", ["token", "token_eps"])
def test_token_normalisation_is_refused_with_the_reason(normalize):
    sae = trained(normalize=normalize)
    with pytest.raises(UserError, match="to undo the normalisation decode would need the mean and spread of the token"):
        saebench.adapt(sae)
    rows = saebench.adapt(sae, rows_alone=True)
    assert torch.equal(rows.W_dec, sae.W_dec)
    for call in (rows.encode, rows, lambda x: rows.decode(torch.zeros(1, N))):
        with pytest.raises(UserError, match="normalises each token"):
            call(inputs(3))


def test_rows_of_any_length_come_to_unit_length_with_the_same_outputs():
    sae, x = (
        random_sae("threshold per latent", "none"),
        torch.randn(200, 16, generator=torch.Generator().manual_seed(0)),
    )
    sae.W_dec.data.mul_(torch.rand(len(sae.W_dec), 1) * 3 + 0.1)
    sae.config.metadata = PLACE
    bench = saebench.adapt(sae)
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(bench.W_dec.norm(dim=1), torch.ones_like(norms), atol=1e-5)
    assert torch.allclose(bench(x), sae(x), atol=1e-5, rtol=1e-5)
    assert torch.allclose(bench.encode(x), sae.encode(x) * norms, atol=1e-5, rtol=1e-5)
    topk = trained("topk")
    topk.W_dec.data.mul_(2)
    with pytest.raises(UserError, match="would change which activations of a TopK SAE"):
        saebench.adapt(topk)


def test_an_sae_without_thresholds_is_refused():
    sae = trained()
    sae.threshold = None
    with pytest.raises(UserError, match="no threshold yet"):
        saebench.adapt(sae)


def test_a_wrong_evaluation_and_a_missing_library_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown evaluation 'meta_struct'; did you mean 'meta_structure'"):
        saebench.evaluate(trained(), tmp_path, ["meta_struct"])
    monkeypatch.setattr(saebench_names.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="SAEBench is not installed: pip install"):
        saebench.evaluate(trained(), tmp_path)
    assert not any(tmp_path.iterdir())


# --- where SAEBench is installed

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bench_module():
    pytest.importorskip("sae_bench", reason="sae-bench is not installed: pip install -e '.[saebench]'")
    return lambda name: importlib.import_module(f"sae_bench.{name}")


@pytest.fixture(scope="module")
def model(bench_module):
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    return HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=WIDTH,
            n_ctx=16,
            d_head=8,
            d_vocab=80,
            act_fn="gelu",
            seed=0,
            initializer_range=0.3,
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(80, (48, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_our_sae_in_saelens_in_transformer_lens_and_under_meta_structure_gives_our_numbers(
    bench_module, model, tokens, tmp_path, monkeypatch
):
    """Saved here, opened by SAELens, run in a model, judged by SAEBench's meta-structure evaluation; each number again
    by our own code.

    Ours of the last: the meta SAE that the evaluation trained, read by `metasae.interop`, selects the k n largest over
    all rows and the variance that it explains is worked out as for a run's own meta SAE.
    """
    from sae_lens import SAE as Theirs

    sae = trained()
    sae.save(tmp_path / "primary")
    theirs = Theirs.load_from_disk(tmp_path / "primary")
    expected = model.run_with_hooks(tokens, fwd_hooks=[(POINT, lambda x, hook: sae(x))])
    assert torch.allclose(model.run_with_saes(tokens, saes=[theirs]), expected, atol=1e-4)
    assert not torch.allclose(expected, model(tokens), atol=1e-1)

    main = bench_module("evals.meta_structure.main")
    plain, metas = main._decoder_variance_metrics, []

    def kept(meta_structure, decoder, eval_batch_size):
        metas.append(meta_structure)
        return plain(meta_structure, decoder, eval_batch_size)

    monkeypatch.setattr(main, "_decoder_variance_metrics", kept)
    settings = {"train_steps": 60, "train_batch_size": 64, "learning_rate": 5e-3}
    result = saebench.evaluate(tmp_path / "primary", tmp_path / "out", settings={"meta_structure": settings})[
        "meta_structure"
    ]
    metrics = result["eval_result_metrics"]["meta_structure"]
    metas[0].save_model(tmp_path / "meta")
    ours = own_meta(sae, load(tmp_path / "meta"))
    assert (
        metrics["decoder_fraction_variance_explained"] == pytest.approx(ours["own_meta_ve"], abs=1e-5)
        and ours["own_meta_ve"] > 0.2
    )
    assert metrics["final_reconstruction_mse"] == pytest.approx(ours["own_meta_e"] / WIDTH, rel=1e-5)

    torch.manual_seed(saebench.SEED)
    with torch.enable_grad():
        direct = main.run_eval_single_sae(
            "x", "y", theirs, main.MetaStructureEvalConfig(**settings), "cpu"
        ).eval_result_metrics.meta_structure
    assert direct.decoder_fraction_variance_explained == metrics["decoder_fraction_variance_explained"]
    assert (
        json.loads((tmp_path / "out" / "meta_structure" / "metasae_custom_sae_eval_results.json").read_text()) == result
    )
    assert result["sae_cfg_dict"]["metasae"]["arm"] == "joint" and result["sae_bench_commit_hash"].startswith(
        "sae-bench "
    )


def test_the_evaluation_leaves_random_numbers_and_gradients_as_they_were_and_repeats(bench_module, tmp_path):
    sae, settings = trained(normalize="token"), {"meta_structure": {"train_steps": 5, "train_batch_size": 32}}
    state = torch.get_rng_state()
    with torch.no_grad():
        results = [
            saebench.evaluate(sae, tmp_path / name, name="a/b", seed=1, settings=settings)["meta_structure"]
            for name in "xy"
        ]
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (
        result["eval_result_metrics"]["meta_structure"]["decoder_fraction_variance_explained"] for result in results
    )
    assert first == second and (tmp_path / "x" / "meta_structure" / "a_b_custom_sae_eval_results.json").is_file()
    assert results[0]["eval_config"]["random_seed"] == 1


@pytest.mark.parametrize("name", saebench_names.FROM_HUB)
def test_the_evaluations_from_the_hub_are_called_as_they_are_written(bench_module, tmp_path, monkeypatch, name):
    """Their models and data are not here, so the call is checked against their own signature and config class."""
    package, config_name, fixed, _ = saebench_names.FROM_HUB[name]
    try:
        main = bench_module(f"evals.{package}.main")
    except ModuleNotFoundError as missing:
        with pytest.raises(UserError, match=f"needs the package {missing.name}"):
            saebench.evaluate(trained(), tmp_path, [name])
        return
    signature, calls = inspect.signature(main.run_eval), []

    def run_eval(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        calls.append(given)
        folder = tmp_path / name / "deeper"
        folder.mkdir(parents=True)
        (folder / "a_custom_sae_eval_results.json").write_text(json.dumps({"eval_type_id": name}))

    monkeypatch.setattr(main, "run_eval", run_eval)
    result = saebench.evaluate(trained(), tmp_path, [name], name="a")[name]
    [call] = calls
    assert (
        type(call["config"]).__name__ == config_name
        and call["config"].model_name == "tiny"
        and call["force_rerun"] is True
    )
    assert all(getattr(call["config"], key) == value for key, value in fixed.items())
    [(given, sae)] = call["selected_saes"]
    assert given == "a" and isinstance(sae, saebench.BenchSAE) and result["eval_type_id"] == name
    monkeypatch.setattr(main, "run_eval", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="has left no result"):
        saebench.evaluate(trained(), tmp_path / "second", [name], name="a")
