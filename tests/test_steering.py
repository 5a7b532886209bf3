import copy
import inspect

import pytest
import torch

from metasae import UserError
from metasae.data.model import hooks
from metasae.data.model.host import Host
from metasae.recipe import recipe
from metasae.sae.sae import SAE, Codes, SAEConfig
from metasae.steering import Ablate, Add, Scale, Set
from metasae.steering.edits import parse_edits
from metasae.steering.steering import steer
from metasae.steering.writing import run_steer

RESID = "blocks.1.hook_resid_pre"
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
FAMILIES = ("gpt2", "llama", "neox", "gemma2", "bert")
PLACES = [
    (family, f"blocks.1.hook_{kind}")
    for family in FAMILIES
    for kind in KINDS
    if (family, kind) != ("neox", "resid_mid")
]
CAUSAL = ["gpt2", "llama", "neox", "gemma2"]
WINDOWED = ("gemma3", "mistral")
CACHES = (
    {},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"cache_implementation": "dynamic"},
    {"num_beams": 2},
)
BOS = 1


@pytest.fixture(scope="module")
def loaded(load):
    return {family: load(family, RESID) for family in (*FAMILIES, *WINDOWED)}


@pytest.fixture
def at(loaded):
    """at(family, point) -> Host; the model is loaded once, as steering leaves it as it is."""
    return lambda family, point: Host(loaded[family].model, loaded[family].tokenizer, point, loaded[family].causal)


def batch(length=11, rows=3):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = BOS
    return ids, torch.ones_like(ids)


def sae_for(host, normalize="none", n=12):
    """Random in every parameter, and each latent fires on about a third of a batch's tokens."""
    generator = torch.Generator().manual_seed(3)
    x = host.activations(*batch()).float().reshape(-1, host.d)
    sae = SAE(SAEConfig(host.d, n, normalize=normalize, metadata={"hook_name": host.point}))
    sae.init_weights(generator)
    sae.W_enc.add_(0.1 * torch.randn(host.d, n, generator=generator))
    sae.b_dec.copy_(0.3 * x.std() * torch.randn(host.d, generator=generator))
    pre = sae.pre_activations(sae.normalise(x)[0])
    # biases lift the cut above zero, as activations are positive
    sae.b_enc.copy_(pre.std() * 1.01 - pre.quantile(0.6, dim=0))
    sae.threshold = torch.full((n,), float(pre.std()))
    return sae


def stream_at(host, ids, mask, point=None):
    """What the model goes on with at the hook point."""
    config = host.model.config
    place = hooks.resolve(host.model, point or host.point, config.model_type, config.num_hidden_layers)
    streams = []
    with hooks.hooked(place, lambda x: streams.append(x.clone()) or x), torch.no_grad():
        host.model(input_ids=ids, attention_mask=mask)
    return streams[0]


def by_hand(sae, x, edits, error=True):
    """The definition: decode(z') + (x - decode(z)), every latent encoded."""
    codes = sae.codes(x.float())
    acts = codes.acts.clone()
    for latent, edit in edits.items():
        acts[..., latent] = edit(acts[..., latent])
    out = sae.decode(Codes(acts, codes.mean, codes.std))
    return out + (x.float() - sae.decode(codes)) if error else out


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def written(host, ids, mask, **options):
    out = host.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **options,
    )
    return out[:, ids.shape[1] :]


def test_the_grammar_of_edits():
    texts = ["17=5", "3+=-2.5", " 0 *= .5", "8=off", "9=-1e2"]
    assert parse_edits(texts) == {17: Set(5.0), 3: Add(-2.5), 0: Scale(0.5), 8: Ablate(), 9: Set(-100.0)}
    for wrong in ("17", "17=", "=5", "17-=5", "17=on", "17+=off", "-1=5", "1.5=2", "17=5 18=6", ""):
        with pytest.raises(UserError, match=r"LATENT=off, not '"):
            parse_edits([wrong])
    with pytest.raises(UserError, match="edited twice"):
        parse_edits(["17=5", "17=off"])


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize(("family", "point"), PLACES)
def test_ablation_changes_exactly_the_tokens_where_the_latent_fired(at, family, point, normalize):
    host = at(family, point)
    sae, (ids, mask) = sae_for(host, normalize), batch()
    x = stream_at(host, ids, mask)
    fired = sae.encode(x)[..., 4] > 0
    assert 3 < fired.sum() < fired.numel() - 3
    with steer(host.model, sae, {4: Ablate()}, keep=()):
        steered = stream_at(host, ids, mask)
        after = host.output(ids, mask)
    assert torch.equal((steered != x).any(-1), fired)
    assert torch.equal(steered[~fired].view(torch.int32), x[~fired].view(torch.int32))
    assert torch.allclose(steered, by_hand(sae, x, {4: Ablate()}), atol=1e-5)
    assert not torch.equal(after, host.output(ids, mask))


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("error", [True, False])
def test_every_edit_against_the_definition(at, normalize, error):
    host = at("gpt2", RESID)
    sae, (ids, mask) = sae_for(host, normalize), batch()
    x = stream_at(host, ids, mask)
    edits = {7: Set(0.3), 2: Add(-0.2), 11: Scale(-1.5), 4: Ablate(), 0: Set(-0.1)}
    with steer(host, sae, {**edits, 7: 0.3}, error=error, keep=()):
        assert torch.allclose(stream_at(host, ids, mask), by_hand(sae, x, edits, error), atol=1e-5)
    assert torch.equal(stream_at(host, ids, mask), x)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_without_error_an_idle_edit_is_the_plain_reconstruction(at, family):
    host = at(family, RESID)
    sae, (ids, mask) = sae_for(host, "token"), batch()
    with steer(host, sae, {3: Scale(1.0)}, error=False, keep=()):
        output = host.output(ids, mask)
    assert torch.allclose(output, host.output(ids, mask, replace=sae), atol=1e-6)
    with steer(host, sae, {3: Scale(1.0)}):
        assert torch.equal(host.output(ids, mask), host.output(ids, mask))


@pytest.mark.parametrize("point", ["resid_pre", "mlp_out"])
@pytest.mark.parametrize("family", CAUSAL)
def test_generation_is_the_same_with_and_without_a_cache(at, family, point):
    host = at(family, f"blocks.1.hook_{point}")
    sae, (ids, mask) = sae_for(host), batch(length=6)
    plain = written(host, ids, mask)
    strong = 20 * float(host.activations(ids, mask).std())
    with steer(host.model, sae, {4: Set(strong), 5: Ablate()}):
        cached, uncached = written(host, ids, mask), written(host, ids, mask, use_cache=False)
        fixed = written(host, ids, mask, cache_implementation="static")
    assert torch.equal(cached, uncached) and torch.equal(cached, fixed)
    assert not torch.equal(cached, plain)
    assert torch.equal(written(host, ids, mask), plain)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in CAUSAL),
        ("gpt2", {"use_cache": False}),
        ("llama", {"cache_implementation": "static"}),
        ("gemma2", {"cache_implementation": "static"}),
        ("neox", {"num_beams": 2}),
        # a window of 4 tokens, which the longest row leaves behind
        *((family, options) for family in WINDOWED for options in CACHES),
    ],
)
def test_left_padding_changes_nothing(at, family, options):
    host = at(family, RESID)
    sae, (ids, mask) = sae_for(host), batch(length=7, rows=3)
    edits = {4: Set(20 * float(host.activations(ids, mask).std())), 2: Scale(3.0)}
    lengths = (7, 4, 2)
    padded, padded_mask = torch.zeros_like(ids), torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        padded[row, 7 - length :], padded_mask[row, 7 - length :] = ids[row, :length], 1
    with steer(host.model, sae, edits, error=False):
        together = written(host, padded, padded_mask, **options)
        alone = [
            written(host, ids[row : row + 1, :n], mask[row : row + 1, :n], **options)[0]
            for row, n in enumerate(lengths)
        ]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_padding_and_special_tokens_keep_their_activation(at, family, monkeypatch):
    host = at(family, RESID)
    sae, (ids, mask) = sae_for(host), batch()
    special = host.frame.prefix[0]
    ids[:, 0], mask[1, 8:], mask[2, :2] = special, 0, 0
    x = stream_at(host, ids, mask)
    kept = (ids == special) | (mask == 0)
    for error in (True, False):
        with steer(host, sae, {4: Set(9.0)}, error=error):
            assert torch.equal((stream_at(host, ids, mask) == x).all(-1), kept)
        with steer(host, sae, {4: Set(9.0)}, error=error, keep=()):
            assert torch.equal((stream_at(host, ids, mask) == x).all(-1), mask == 0)
    monkeypatch.setattr(host.model.config, "bos_token_id", special)
    with steer(host.model, sae, {4: Set(9.0)}):
        assert torch.equal((stream_at(host, ids, mask) == x).all(-1), kept)


def test_caches_shorter_than_the_text(at):
    """Gemma 2 with a window of 4 tokens in every other layer, and a fixed cache that holds no more of those."""
    from transformers import Gemma2ForCausalLM

    config = copy.deepcopy(at("gemma2", RESID).model.config)
    config.sliding_window = 4
    torch.manual_seed(0)
    host = Host(Gemma2ForCausalLM(config), at("gemma2", RESID).tokenizer, RESID, causal=True)
    sae, (ids, mask) = sae_for(host), batch(length=6)
    padded, padded_mask = torch.nn.functional.pad(ids, (3, 0)), torch.nn.functional.pad(mask, (3, 0))
    with steer(host, sae, {4: Set(20 * float(host.activations(ids, mask).std()))}):
        plain = written(host, ids, mask, use_cache=False)
        assert torch.equal(written(host, padded, padded_mask), plain)
        assert torch.equal(written(host, padded, padded_mask, cache_implementation="static"), plain)


def test_a_cache_by_any_name(at):
    """As in a loop of one's own: a fixed cache, a square mask for the newest token, the cache under the name of this
    version or of the one before.
    """
    from transformers import StaticCache

    host = at("llama", RESID)
    sae, (ids, mask) = sae_for(host), batch(length=6)
    mask[1, :3] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with steer(host, sae, {4: Set(9.0)}), torch.no_grad():
        plain = host.model(ids, mask, places).logits[:, -1]
        for name in {"past_key_values", *inspect.signature(host.model.forward).parameters} & {
            "past_key_values",
            "cache",
        }:
            cache = StaticCache(config=host.model.config, max_cache_len=8)
            host.model(ids[:, :5], mask[:, :5], places[:, :5], **{name: cache}, use_cache=True)
            column = torch.nn.functional.pad(mask, (0, 2)).bool()[:, None, None]
            last = host.model(ids[:, 5:], column, places[:, 5:], **{name: cache}, use_cache=True).logits[:, -1]
            assert torch.allclose(last, plain, atol=1e-5)


def test_no_hook_survives_an_exception(at):
    host = at("gpt2", RESID)
    sae, (ids, mask) = sae_for(host), batch()
    before, weights = (
        n_hooks(host.model),
        [w.clone() for w in (*host.model.parameters(), *sae.parameters(), sae.threshold)],
    )
    x = stream_at(host, ids, mask)

    def fail(*_):
        raise RuntimeError("in a layer")

    with pytest.raises(ZeroDivisionError), steer(host, sae, {4: Set(9.0)}):
        assert n_hooks(host.model) == before + 3
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="in a layer"), steer(host, sae, {4: Set(9.0)}):
        handle = host.model.transformer.h[2].register_forward_hook(fail)
        try:
            host.output(ids, mask)
        finally:
            handle.remove()
            # the call that broke off is over
            with pytest.raises(UserError, match="ran by itself"):
                host.model.transformer.h[1](x)
    wide = SAE(SAEConfig(host.d + 1, 5))
    wide.threshold = torch.zeros(5)
    with pytest.raises(UserError, match=r"width 33, 'transformer\.h\.1' has 32"), steer(host, wide, {4: 1.0}, RESID):
        host.output(ids, mask)
    assert n_hooks(host.model) == before and torch.equal(stream_at(host, ids, mask), x)
    assert all(map(torch.equal, weights, (*host.model.parameters(), *sae.parameters(), sae.threshold)))


def test_no_hook_is_left_when_opening_fails(at, monkeypatch):
    host = at("gpt2", RESID)
    sae = sae_for(host)

    def fail(*_, **__):
        raise RuntimeError("no room")

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        with monkeypatch.context() as patch:
            patch.setattr(host.model.transformer.h[1] if "pre" in name else host.model.transformer, name, fail)
            with pytest.raises(RuntimeError, match="no room"), steer(host, sae, {4: 1.0}):
                pass
        assert n_hooks(host.model) == 0


def test_nested_blocks_compose(at):
    host = at("llama", RESID)
    sae, (ids, mask) = sae_for(host), batch()
    x = stream_at(host, ids, mask)
    outer, inner = {4: Set(0.5)}, {4: Scale(2.0), 5: Add(0.1)}
    with steer(host, sae, outer, keep=()):
        with steer(host, sae, inner, keep=()):
            both = stream_at(host, ids, mask)
        assert torch.allclose(stream_at(host, ids, mask), by_hand(sae, x, outer), atol=1e-5)
    assert torch.allclose(both, by_hand(sae, by_hand(sae, x, outer), inner), atol=1e-5)
    later = "blocks.2.hook_resid_pre"
    with steer(host, sae, outer, keep=()), steer(host, sae, {5: Ablate()}, later, keep=()):
        assert torch.allclose(stream_at(host, ids, mask), by_hand(sae, x, outer), atol=1e-5)
        two = host.output(ids, mask)
    with steer(host, sae, outer, keep=()):
        y = stream_at(host, ids, mask, later)
        assert not torch.equal(host.output(ids, mask), two)
        # the second point sees what the first one made of the stream
        with steer(host, sae, {5: Ablate()}, later, keep=()):
            assert torch.allclose(stream_at(host, ids, mask, later), by_hand(sae, y, {5: Ablate()}), atol=1e-5)


@pytest.mark.parametrize("error", [True, False])
def test_the_sae_computes_in_fp32_whatever_the_model_does(build, error):
    host = Host.load(recipe.Model(path=str(build("llama")), dtype="bf16"), RESID)
    sae, (ids, mask) = sae_for(host, "token"), batch()
    with torch.autocast("cpu", torch.bfloat16):
        x = stream_at(host, ids, mask)
    edits = {4: Ablate(), 7: Scale(2.0)}
    fired = (sae.encode(x.float())[..., [4, 7]] > 0).any(-1)
    with steer(host, sae, edits, error=error, keep=()), torch.autocast("cpu", torch.bfloat16):
        steered = stream_at(host, ids, mask)
    assert steered.dtype == torch.bfloat16
    wanted = by_hand(sae, x, edits, error)
    assert torch.allclose(steered.float(), wanted, rtol=2**-8, atol=1e-6)
    assert not error or torch.equal((steered != x).any(-1), fired)


def test_an_untouched_token_keeps_even_the_sign_of_zero(at):
    host = at("gpt2", RESID)
    sae, (ids, mask) = sae_for(host), batch()
    sae.threshold.fill_(torch.inf)

    def negative_zero(x):
        return torch.full_like(x, -0.0)

    with (
        hooks.hooked(hooks.resolve(host.model, RESID, "gpt2", 3), negative_zero),
        steer(host, sae, {4: Ablate()}, keep=()),
    ):
        assert torch.signbit(stream_at(host, ids, mask)).all()


def test_token_statistics_belong_to_one_call(at):
    """Calls of other lengths and scales inside one block do not leak into each other."""
    host = at("gpt2", RESID)
    sae = sae_for(host, "token")
    calls = [batch(length) for length in (11, 4, 9)]
    x = [stream_at(host, *call) for call in calls]
    with steer(host, sae, {4: Set(2.0)}, keep=()):
        steered = [stream_at(host, *call) for call in calls]
    for before, after in zip(x, steered, strict=True):
        assert torch.allclose(after, by_hand(sae, before, {4: Set(2.0)}), atol=1e-5)


def test_an_inner_model_called_by_itself_is_steered_too(at):
    host = at("gpt2", RESID)
    sae, (ids, mask) = sae_for(host), batch()
    with steer(host.model, sae, {4: Set(5.0)}, keep=()), torch.no_grad():
        inner = host.model.transformer(ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(host.model.lm_head(inner), host.output(ids, mask), atol=1e-5)
        names = list(inspect.signature(host.model.forward).parameters)
        by_place = [
            {"input_ids": ids, "attention_mask": mask}.get(name) for name in names[: names.index("attention_mask") + 1]
        ]
        positional = host.model(*by_place).logits
        assert torch.equal(positional, host.output(ids, mask))
        with pytest.raises(UserError, match=r"'transformer\.h\.1' ran by itself"):
            host.model.transformer.h[1](torch.zeros(1, 2, host.d))


def test_what_is_refused(at):
    host = at("gpt2", RESID)
    sae, (ids, mask) = sae_for(host), batch()
    bare = SAE(SAEConfig(host.d, 4))
    nowhere = sae.scaled(1.0)
    nowhere.config.metadata.clear()

    def refused(says, model=host, given=sae, edits=(4,), point=None):
        edits = dict.fromkeys(edits, 1.0) if isinstance(edits, tuple) else edits
        with pytest.raises(UserError, match=says) as caught, steer(model, given, edits, point):
            pass
        assert "\n" not in str(caught.value) and n_hooks(host.model) == 0

    refused("no latent 12: this SAE has the latents 0 to 11", edits=(12,))
    refused("no latent -1", edits=(-1,))
    refused("at least one edit", edits=())
    refused("latent 3 must be a finite number, not nan", edits={3: Add(float("nan"))})
    refused("latent 3 must be a finite number, not inf", edits={3: float("inf")})
    refused("no threshold", given=bare, edits=(0,))
    refused(r"did you mean 'blocks\.1\.hook_resid_mid'", point="blocks.1.hook_resid_mit")
    refused("pass point=", model=host.model, given=nowhere)
    refused("transformers model or a Host, not a Linear", model=torch.nn.Linear(2, 2))
    with steer(host, nowhere, {4: 1.0}):
        host.output(ids, mask)
    embeds = host.model.transformer.wte(ids)
    with steer(host, sae, {4: 1.0}), pytest.raises(UserError, match=r"pass keep=\(\)"):
        host.model(inputs_embeds=embeds)
    with steer(host, sae, {4: 1.0}), pytest.raises(UserError, match="without input_ids and inputs_embeds"):
        host.model(attention_mask=mask)
    with torch.no_grad(), steer(host, sae, {4: 1.0}, keep=()):
        assert torch.allclose(host.model(inputs_embeds=embeds).logits, host.output(ids, mask), atol=1e-5)


def test_gradients_flow_through_a_steered_model(at):
    host = at("gpt2", RESID)
    sae, (ids, _) = sae_for(host), batch()
    embeds = host.model.transformer.wte(ids).detach().requires_grad_()
    with steer(host, sae, {4: Scale(2.0)}, keep=()):
        host.model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad.abs().sum() > 0 and all(w.grad is None for w in sae.parameters())


def test_texts_with_and_without(at, tmp_path):
    # large weights, so that a token of padding that is attended to would change the text
    config = copy.deepcopy(at("gpt2", RESID).model.config)
    config.initializer_range = 0.5
    torch.manual_seed(0)
    type(at("gpt2", RESID).model)(config).save_pretrained(tmp_path / "model")
    at("gpt2", RESID).tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    host = Host.load(recipe.Model(path=model, dtype="fp32"), RESID)
    sae = sae_for(host)
    sae.config.metadata["metasae"] = {"recipe": {"model": {"path": model, "dtype": "fp32"}}}
    sae.save(tmp_path / "sae")
    prompts = ["The river ran past", "Snow"]
    state = torch.random.get_rng_state()
    result = run_steer(tmp_path / "sae", ["4=50", "5=off"], prompts, tokens=6)
    assert (result["point"], result["edits"], result["error"], result["seed"]) == (RESID, ["4=50", "5=off"], True, None)
    for prompt, text in zip(prompts, result["texts"], strict=True):
        ids = torch.tensor([[BOS, *host.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            options = {
                "attention_mask": torch.ones_like(ids),
                "max_new_tokens": 6,
                "do_sample": False,
                "pad_token_id": 0,
            }
            plain = host.model.generate(ids, **options)
            with steer(host, sae, parse_edits(["4=50", "5=off"])):
                steered = host.model.generate(ids, **options)
        for key, out in (("without", plain), ("with", steered)):
            assert text[key] == host.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text["prompt"] == prompt
    assert any(text["with"] != text["without"] for text in result["texts"])
    options = {"tokens": 6, "model": model, "point": RESID}
    drawn = [run_steer(tmp_path / "sae", ["4*=1"], prompts, seed=seed, **options)["texts"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    # the same draws on both sides: an edit that changes nothing gives the same text
    assert all(text["with"] == text["without"] for text in drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_texts_that_cannot_be_had(build, at, tmp_path):
    sae = sae_for(at("gpt2", RESID))
    sae.save(tmp_path / "sae")
    bert, gpt2 = str(build("bert")), str(build("gpt2"))
    nobos = str(build("gpt2", bos=False))

    def refused(says, prompts=("a",), **options):
        with pytest.raises(UserError, match=says):
            run_steer(tmp_path / "sae", ["4=1"], prompts, **options)

    refused("which model it was trained on")
    refused("is an encoder and writes no text", model=bert)
    refused("do not fit into the model's 64", model=gpt2, tokens=64)
    refused("at least one prompt", prompts=(), model=gpt2)
    refused("no BOS token to start from", prompts=("",), model=nobos)
    sae.config.metadata.clear()
    sae.save(tmp_path / "sae")
    refused(r"metadata\.hook_name", model=gpt2)
    with pytest.raises(UserError, match="no SAE at"):
        run_steer(tmp_path / "none", ["4=1"], ["a"])
    with pytest.raises(UserError, match="LATENT=VALUE"):
        run_steer(tmp_path / "none", ["4"], ["a"])
    with pytest.raises(UserError, match="no latent 12"):
        run_steer(tmp_path / "sae", ["12=1"], ["a"], model="/nowhere")


def test_an_sae_that_keeps_the_k_largest_is_refused(load):
    host = load("gpt2", RESID)
    sae = SAE(SAEConfig(host.d, 16, k=2, rule="topk"))
    with pytest.raises(UserError, match="keeps the k largest latents of each token"), steer(host, sae, {3: 1.0}):
        pass
