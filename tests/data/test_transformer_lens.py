"""Hook points by TransformerLens's names, beside TransformerLens itself with unprocessed weights."""

import json
import shutil

import pytest
import torch

from metasae.data.model.host import Host, activations_at
from metasae.recipe import recipe

lens = pytest.importorskip("transformer_lens")

KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
BERT_KINDS = (*KINDS, "normalized_resid_post")
NEOX_KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
CASES = {
    "gpt2": KINDS,
    "neox": NEOX_KINDS,
    "neox-sequential": KINDS,
    "llama": KINDS,
    "mistral": KINDS,
    "qwen2": KINDS,
    "qwen3": KINDS,
}
CASES |= {"gemma2": KINDS, "bert": BERT_KINDS}


@torch.no_grad()
def noisy(model):
    """Every parameter moved, so that no zero bias and no unit norm hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def hooked_model(family, model, folder):
    """TransformerLens's own model with the same weights, none of them folded, centred or moved."""
    from transformer_lens import loading_from_pretrained as loading

    by_hand = family == "gemma2"
    config = (
        gemma2_config(model.config)
        if by_hand
        else loading.get_pretrained_model_config(str(folder), fold_ln=False, device="cpu")
    )
    theirs = (lens.HookedEncoder if family == "bert" else lens.HookedTransformer)(config)
    left = theirs.load_state_dict(loading.get_pretrained_state_dict(str(folder), config, model), strict=False)
    # buffers only: masks and the tables of rotary positions, and for models without one the unembedding's bias
    assert not left.unexpected_keys and all(
        key.split(".")[-1] in ("mask", "IGNORE", "rotary_sin", "rotary_cos", "b_U") for key in left.missing_keys
    )
    return theirs


def gemma2_config(config):
    """TransformerLens knows Gemma 2 by name only, so its entry for the 2B model is written out here in our sizes."""
    from transformer_lens import HookedTransformerConfig

    return HookedTransformerConfig(
        d_model=config.hidden_size,
        d_head=config.head_dim,
        n_heads=config.num_attention_heads,
        d_mlp=config.intermediate_size,
        n_layers=config.num_hidden_layers,
        n_ctx=config.max_position_embeddings,
        eps=config.rms_norm_eps,
        d_vocab=config.vocab_size,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        rotary_base=10_000,
        rotary_dim=config.head_dim,
        rotary_adjacent_pairs=False,
        positional_embedding_type="rotary",
        use_attn_scale=True,
        attn_scale=config.query_pre_attn_scalar**0.5,
        n_key_value_heads=config.num_key_value_heads,
        attn_scores_soft_cap=config.attn_logit_softcapping,
        output_logits_soft_cap=config.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        device="cpu",
    )


def prepared(family, build, folder):
    """(host, the transformers model TransformerLens converts), the same weights in both."""
    import transformers as hf

    # TransformerLens goes by words in the path, so the folder's name says nothing
    shutil.copytree(build(family), folder)
    # it wants BERT with its heads, under the name of one of them
    loader = hf.BertForPreTraining if family == "bert" else hf.AutoModelForCausalLM
    model = noisy(loader.from_pretrained(folder))
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    extra = {"bert": {"architectures": ["BertForMaskedLM"]}, "gpt2": {"n_ctx": config.get("n_positions")}}.get(
        family, {}
    )
    (folder / "config.json").write_text(json.dumps(config | extra))
    return Host.load(recipe.Model(path=str(folder), dtype="fp32"), "blocks.0.hook_resid_pre"), model


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_names_mean_the_same_tensors(build, tmp_path, family):
    host, model = prepared(family, build, tmp_path / "host")
    theirs = hooked_model(family, model, tmp_path / "host")
    ids = torch.randint(5, 300, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    _, cache = theirs.run_with_cache(ids)
    names = [f"blocks.{layer}.hook_{kind}" for layer in range(3) for kind in CASES[family]]
    for name, ours in zip(names, activations_at([host.at(name) for name in names], ids, mask), strict=True):
        assert torch.allclose(ours, cache[name], atol=1e-4, rtol=1e-4), name
    assert ("blocks.0.hook_resid_mid" in cache) == ("resid_mid" in CASES[family])
