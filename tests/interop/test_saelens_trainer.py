"""Our training on batches that another library provides: weights and metrics as on our own stream, to the bit."""

import itertools

import pytest
import torch

from metasae.data.cache.stream import Stream
from metasae.data.split import Rows
from metasae.errors import Interrupted, UserError
from metasae.interop.saelens_trainer import SAMPLE_ROWS, Provided, train_on
from metasae.jobs.run import _Job
from metasae.progress.progress import Progress
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE
from metasae.train import loop

PLANTED = {
    "text": {"source": "planted"},
    "planted": {"d": 24, "independent": 16, "groups": 2, "parents": 2, "words": 2, "atoms": 6, "composites": 4},
    "sae": {"n": 48, "k": 3},
    "meta": {"n": 8, "k": 2},
    "train": {
        "tokens": 128 * 30,
        "batch": 128,
        "n_primary_steps": 4,
        "n_meta_steps": 3,
        "dead_after": 500,
        "k_aux": 4,
        "checkpoint_every": 7,
    },
    "measure": {"calibration_tokens": 1000},
}


def planted(normalize="global", **train) -> Recipe:
    return Recipe.load(
        {**PLANTED, "sae": {**PLANTED["sae"], "normalize": normalize}, "train": {**PLANTED["train"], **train}}
    )


def endless(stream):
    while True:
        yield stream.next()


def batches_of(count, batch=128, d=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, d, generator=generator) * 2 + 0.3 for _ in range(count)]


def tensors(sae):
    return {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


def assert_equal(a, b):
    for name, tensor in tensors(a).items():
        assert torch.equal(tensor, tensors(b)[name]), name


@pytest.mark.parametrize(("arm", "normalize"), [("joint", "global"), ("solo", "token"), ("sequential", "none")])
def test_a_provider_with_the_batches_of_our_stream_gives_our_run_to_the_bit(tmp_path, arm, normalize):
    recipe = planted(normalize)
    job = _Job(recipe, tmp_path / "run", "cpu", Progress(False), StopRequest())
    job.harvest()
    job._train(job._cache, job.run.arm(arm, 0), job.progress)
    ours = tmp_path / "run" / "arms" / f"{arm}-s0"
    train, unseen = job._cache.split("train"), job._cache.split("calibration")
    saes = train_on(
        endless(Stream(train, 128, 0)),
        recipe,
        arm,
        0,
        tmp_path / "theirs",
        sample=train,
        calibration=unseen,
        show=False,
    )
    assert (tmp_path / "theirs" / "metrics.jsonl").read_bytes() == (ours / "metrics.jsonl").read_bytes()
    assert sorted(saes) == (["primary"] if arm == "solo" else ["meta", "primary"])
    for name, sae in saes.items():
        assert_equal(sae, SAE.load(ours / name))
        assert_equal(sae, SAE.load(tmp_path / "theirs" / name))
    assert saes["primary"].config.metadata["calibration"] == SAE.load(ours / "primary").config.metadata["calibration"]


def test_the_first_batches_give_the_scale_and_are_trained_on_and_the_next_ones_calibrate(tmp_path):
    recipe, x = planted(), batches_of(38)
    saes = train_on(iter(x), recipe, "joint", 0, tmp_path / "a", show=False)
    # 30 batches to train on, all of them the sample, then 8 of which 1000 rows calibrate
    sample, unseen = Rows(torch.cat(x[:30])), Rows(torch.cat(x[30:])[:1000])
    again = train_on(iter(x[:30]), recipe, "joint", 0, tmp_path / "b", sample=sample, calibration=unseen, show=False)
    assert_equal(saes["primary"], again["primary"])
    fired = (saes["primary"].encode(unseen.x) > 0).sum(1).double().mean()
    assert float(fired) == saes["primary"].config.metadata["calibration"]["l0"] == pytest.approx(3, rel=0.005)
    assert SAMPLE_ROWS > 30 * 128


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    recipe, x = planted(), batches_of(38)
    whole = train_on(iter(x), recipe, "joint", 0, tmp_path / "whole", show=False)
    plain = loop.train

    def stopped(trainer, batches, folder, task, stop):
        def after(action):
            stop.asked = trainer.done.primary == 11

        plain(trainer, batches, folder, task, stop, after)

    with monkeypatch.context() as patch:
        patch.setattr("metasae.interop.saelens_trainer.train", stopped)
        with pytest.raises(Interrupted):
            train_on(iter(x), recipe, "joint", 0, tmp_path / "parts", show=False)
    parts = train_on(iter(x), recipe, "joint", 0, tmp_path / "parts", show=False)
    assert_equal(parts["primary"], whole["primary"])
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "parts" / "checkpoints").exists()
    # done: nothing is drawn
    assert_equal(train_on(iter([]), recipe, "joint", 0, tmp_path / "parts", show=False)["primary"], whole["primary"])


def test_half_precision_batches_are_taken_as_their_numbers(tmp_path):
    x = [batch.bfloat16() for batch in batches_of(38)]
    a = train_on(iter(x), planted(), "solo", 0, tmp_path / "a", show=False)
    b = train_on(iter([batch.float() for batch in x]), planted(), "solo", 0, tmp_path / "b", show=False)
    assert_equal(a["primary"], b["primary"])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (batches_of(38, batch=64), r"shape \[64, 24\], the recipe has train.batch = 128"),
        ([torch.randn(128, 3, 8)], r"shape \[128, 3, 8\]"),
        (batches_of(20), "ended after 20 batches; give a longer one"),
        (batches_of(31), "ended after 31 batches"),
        ([*batches_of(4), *batches_of(1, d=5)], "batch 4 of the provider has width 5, those before it 24"),
        ([*batches_of(4), torch.full((128, 24), float("nan"))], "a NaN or inf activation in batch 4"),
    ],
)
def test_what_a_provider_may_not_give(tmp_path, x, words):
    with pytest.raises(UserError, match=words):
        train_on(iter(x), planted(), "solo", 0, tmp_path / "out", show=False)
    assert not (tmp_path / "out" / "primary").exists()


def test_an_unknown_arm_is_one_line(tmp_path):
    with pytest.raises(UserError, match="unknown arm 'jont'; did you mean 'joint'"):
        train_on(iter([]), planted(), "jont", 0, tmp_path, show=False)


def test_a_provider_moves_forward_only():
    x = batches_of(4)
    provided = Provided(iter(x), 128)
    assert torch.equal(provided.peek(2).x, torch.cat(x[:2])) and provided.position == 0
    provided.seek(1)
    assert torch.equal(provided.next(), x[1]) and provided.position == 2
    assert torch.equal(provided.take(200).x, torch.cat(x[2:])[:200])


def store_of(prompts):
    """SAELens's store of activations, over a random GPT and tokens in memory."""
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[saelens]'")
    from datasets import Dataset
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=24,
        n_ctx=16,
        d_head=12,
        n_heads=2,
        d_vocab=50,
        act_fn="gelu",
        seed=0,
        device="cpu",
        model_name="tiny",
    )
    store = sae_lens.ActivationsStore(
        HookedTransformer(config),
        Dataset.from_dict({"tokens": prompts}),
        streaming=False,
        hook_name="blocks.1.hook_resid_pre",
        hook_head_index=None,
        context_size=16,
        d_in=24,
        n_batches_in_buffer=8,
        total_training_tokens=40 * 128,
        store_batch_size_prompts=8,
        train_batch_size_tokens=128,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    torch.manual_seed(1)
    return store


@pytest.mark.filterwarnings("ignore")
def test_the_store_of_saelens_is_a_provider(tmp_path):
    prompts = torch.randint(50, (400, 16), generator=torch.Generator().manual_seed(2)).tolist()
    x = list(itertools.islice(store_of(prompts), 38))
    store = store_of(prompts)
    saes = train_on(store, planted(), "joint", 0, tmp_path / "store", metadata={"dataset_path": "tokens"}, show=False)
    assert_equal(saes["primary"], train_on(iter(x), planted(), "joint", 0, tmp_path / "list", show=False)["primary"])
    assert {"hook_name": "blocks.1.hook_resid_pre", "context_size": 16, "dataset_path": "tokens"}.items() <= saes[
        "primary"
    ].config.metadata.items()
    import sae_lens

    theirs = sae_lens.SAE.load_from_disk(tmp_path / "store" / "primary")
    with torch.no_grad():
        assert torch.allclose(theirs(x[0]), saes["primary"](x[0]), atol=1e-5)


def test_a_folder_with_another_sae_is_refused(tmp_path):
    recipe, x = planted(), batches_of(38)
    train_on(iter(x), recipe, "solo", 0, tmp_path / "one", show=False)
    for other, arm, seed, words in (
        (recipe, "joint", 0, "arm = 'solo', not 'joint'"),
        (recipe, "solo", 7, "seed = 0, not 7"),
        (planted(lr=1e-2), "solo", 0, "train.lr = "),
    ):
        with pytest.raises(UserError, match=words):
            train_on(iter([]), other, arm, seed, tmp_path / "one", show=False)
