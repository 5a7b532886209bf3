"""SAEBench 0.6: our SAEs under its evaluations.

Its contract for an SAE of one's own: W_enc, W_dec with unit rows, b_enc, b_dec, encode(x), decode(acts), a `cfg` with
the fields of `BenchConfig`, and a rule that does not depend on the batch. It calls encode and decode apart from each
other, so decode may know nothing of x but its activations.

Which evaluation needs what: `meta_structure` the decoder rows alone; `core` a TransformerLens model and tokens, both
given; the others load their model and data sets from the hub by name. Results lie where SAEBench looks for them,
`OUT/EVAL/NAME_custom_sae_eval_results.json`.
"""

import importlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasae import files
from metasae.errors import UserError, nearest
from metasae.interop.formats import load
from metasae.interop.identities import assemble, has_unit_rows, norms_into_encoder, tensors_of
from metasae.interop.saebench_names import FROM_HUB, WEIGHTS_ONLY, check_evals
from metasae.sae.sae import SAE, Codes

# What SAEBench calls an SAE that is not one of SAELens's list, and its own default seed.
CUSTOM, SEED = "custom_sae", 42
# What `core` works out.
_CORE = (
    "kl",
    "ce_loss",
    "l2_norms",
    "sparsity_metrics",
    "variance_metrics",
    "featurewise_density_statistics",
    "featurewise_weight_based_metrics",
)


@dataclass
class BenchConfig:
    """What SAEBench reads of an SAE's `cfg`, itself or through SAELens.

    metasae: arm, seed and data of an SAE that we trained.
    """

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None
    architecture: str
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    dataset_path: str = ""
    training_tokens: int = -1
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict = field(default_factory=dict)
    apply_b_dec_to_input: bool = True
    hook_head_index: int | None = None
    model_from_pretrained_kwargs: dict = field(default_factory=dict)
    dataset_trust_remote_code: bool = False
    metasae: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The fields alone: SAEBench sets further attributes, which are not JSON."""
        return asdict(self)


class BenchSAE(nn.Module):
    """A `metasae.SAE` as SAEBench calls one. Made by `adapt`. forward(x) is decode(encode(x)), to the bit."""

    def __init__(self, sae: SAE, cfg: BenchConfig):
        super().__init__()
        self.sae, self.cfg = sae, cfg

    W_enc = property(lambda self: self.sae.W_enc)
    W_dec = property(lambda self: self.sae.W_dec)
    b_enc = property(lambda self: self.sae.b_enc)
    b_dec = property(lambda self: self.sae.b_dec)
    threshold = property(lambda self: self.sae.threshold)
    dtype = property(lambda self: self.sae.W_dec.dtype)
    device = property(lambda self: self.sae.W_dec.device)

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d] in the model's units -> activations [..., n], in the SAE's dtype."""
        _refuse_normalised(self.sae)
        return self.sae.encode(x.to(self.dtype)).acts

    def decode(self, acts: Tensor) -> Tensor:
        """activations [..., n] -> x_hat [..., d] in the model's units."""
        _refuse_normalised(self.sae)
        return self.sae.decode(Codes(acts.to(self.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def to(self, *args, **kwargs) -> "BenchSAE":
        """As any module's; `cfg` follows."""
        super().to(*args, **kwargs)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return self


def adapt(
    sae: SAE | str | Path,
    model_name: str | None = None,
    hook_name: str | None = None,
    hook_layer: int | None = None,
    context_size: int | None = None,
) -> BenchSAE:
    """An SAE, or the one at a path in any format that `metasae.load` reads, for SAEBench.

    The SAE itself stays as it is.

    What is not given is taken from its metadata; hook_layer from the number in hook_name. Rows of other length than 1
    are scaled to it and their norms go to the activations, which changes no output. Raises UserError for what SAEBench
    cannot run, with the reason, and for an SAE that does not say where it belongs.
    """
    sae = sae if isinstance(sae, SAE) else load(sae)
    _refuse_normalised(sae)
    config = _config_of(
        sae, {"model_name": model_name, "hook_name": hook_name, "context_size": context_size}, hook_layer
    )
    return BenchSAE(_with_unit_rows(sae), config)


def evaluate(
    sae: SAE | BenchSAE | str | Path,
    out: str | Path,
    evals: Sequence[str] = WEIGHTS_ONLY,
    *,
    name: str = "metasae",
    model: Any = None,
    tokens: Tensor | None = None,
    settings: dict[str, dict] | None = None,
    seed: int = SEED,
    device: str = "cpu",
) -> dict[str, dict]:
    """Runs SAEBench's evaluations of an SAE; {evaluation: its result envelope}, as written under `out`.

    sae: an SAE, a path, or what `adapt` made. evals: names of `EVALS`. name: what the SAE is called in the results.
    model, tokens: a TransformerLens model and int64 [P, context], for `core`; the model's own special tokens are left
    out of its means. settings: evaluation -> fields of its config, e.g. {"meta_structure": {"width_ratio": 0.09}}.
    seed: global random numbers are drawn from it and put back afterwards; SAEBench seeds them only from its own command
    line.

    `meta_structure` reads decoder rows alone, so it is run on SAEs that normalise tokens too. Raises UserError where
    SAEBench is not installed, for an unknown evaluation or setting, and where something it needs is missing.
    """
    check_evals((*evals, *(settings or {})))
    if not isinstance(sae, BenchSAE):
        sae = _rows_of(sae) if set(evals) <= set(WEIGHTS_ONLY) else adapt(sae)
    # a copy for each, as SAEBench casts the SAE it is given
    bench, results = deepcopy(sae).to(device), {}
    for evaluation in evals:
        values = {"random_seed": seed, **(settings or {}).get(evaluation, {})}
        path = Path(out) / evaluation / f"{name}_{CUSTOM}_eval_results.json".replace("/", "_")
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.enable_grad():
            torch.manual_seed(seed)
            if evaluation == "meta_structure":
                result = _meta_structure(deepcopy(bench), name, values, device)
            elif evaluation == "core":
                result = _core(deepcopy(bench), name, values, path, model, tokens)
            else:
                result = _from_hub(evaluation, deepcopy(bench), name, values, path, device)
        # SAEBench writes the commit of whatever repository it is called in
        results[evaluation] = {**result, "sae_bench_commit_hash": f"sae-bench {metadata.version('sae-bench')}"}
        files.write_json(path, results[evaluation])
    return results


def _meta_structure(bench: BenchSAE, name: str, values: dict, device: str) -> dict:
    """How much of the decoder rows' variance a fresh BatchTopK SAE explains.

    SAELens trains it on them, and its batch top-k is over all rows.
    """
    module = importlib.import_module("sae_bench.evals.meta_structure.main")
    config = _settings(module.MetaStructureEvalConfig, values)
    return json.loads(module.run_eval_single_sae(name, CUSTOM, bench, config, device).to_json())


def _core(bench: BenchSAE, name: str, values: dict, path: Path, model: Any, tokens: Tensor | None) -> dict:
    """Reconstruction, sparsity and what the model loses, over all whole batches of `tokens`."""
    if model is None or tokens is None:
        raise UserError(
            "SAEBench's core evaluation needs a model and tokens: "
            "evaluate(..., model=HookedTransformer, tokens=int64 [P, context])"
        )
    core = importlib.import_module("sae_bench.evals.core.main")
    batch = values.get("batch_size_prompts", 16)
    if len(tokens) < batch:
        raise UserError(
            f"{len(tokens)} prompts are fewer than a batch of {batch}; give more tokens or set batch_size_prompts"
        )
    config = dict.fromkeys((f"compute_{part}" for part in _CORE), True) | {
        "n_eval_reconstruction_batches": len(tokens) // batch,
        "n_eval_sparsity_variance_batches": len(tokens) // batch,
        "batch_size_prompts": batch,
        "model_name": bench.cfg.model_name,
        "dataset": "tokens as given",
        "context_size": tokens.shape[1],
        "exclude_special_tokens_from_reconstruction": True,
    }
    config |= {key: value for key, value in values.items() if key != "random_seed"}
    config = _settings(core.CoreEvalConfig, config)
    _, formatted, _ = core.general_utils.load_and_format_sae(name, bench, str(bench.device))
    special = {getattr(model.tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos", "bos")} - {None}
    metrics, by_feature = core.run_evals(formatted, _Prompts(tokens, batch), model, config, ignore_tokens=special)
    metrics["misc_metrics"] = core.calculate_misc_metrics(by_feature)
    result = {"eval_cfg": config, "metrics": metrics, "feature_metrics": by_feature, "sae_set": name, "sae_id": CUSTOM}
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = (core.get_eval_uuid(), core.get_sae_lens_version(), "")
    core.save_single_eval_result(core.replace_nans_with_negative_one(result), *versions, str(path), formatted)
    return files.read_json(path)


class _Prompts:
    """What `core` asks of SAELens's store of activations: the prompts in order, from the first again after a reset."""

    def __init__(self, tokens: Tensor, batch: int):
        self.tokens, self.store_batch_size_prompts, self.context_size, self._next = tokens, batch, tokens.shape[1], 0

    def get_batch_tokens(self, batch: int) -> Tensor:
        self._next += batch
        return self.tokens[self._next - batch : self._next]

    def reset_input_dataset(self) -> None:
        self._next = 0


def _from_hub(evaluation: str, bench: BenchSAE, name: str, values: dict, path: Path, device: str) -> dict:
    """An evaluation that loads its model and data sets itself."""
    (package, config_name, fixed, keeps), folder = FROM_HUB[evaluation], path.parent
    try:
        module = importlib.import_module(f"sae_bench.evals.{package}.main")
        config_class = getattr(importlib.import_module(f"sae_bench.evals.{package}.eval_config"), config_name)
    except ModuleNotFoundError as error:
        raise UserError(f"SAEBench's {evaluation} needs the package {error.name}: pip install {error.name}") from None
    config = _settings(config_class, {"model_name": bench.cfg.model_name, **values, **fixed})
    artifacts = {"artifacts_path": str(folder / "artifacts")} if keeps else {}
    folder.mkdir(parents=True, exist_ok=True)
    module.run_eval(config, [(name, bench)], device, str(folder), force_rerun=True, **artifacts)
    written = next(folder.rglob(path.name), None)
    if written is None:
        raise UserError(f"SAEBench's {evaluation} has left no result in {folder}; its own messages say why")
    return files.read_json(written)


def _settings(config_class: type, values: dict) -> Any:
    known = config_class.__dataclass_fields__
    for key in values:
        if key not in known:
            raise UserError(f"SAEBench's {config_class.__name__} has no field '{key}'{nearest(key, list(known))}")
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(f"SAEBench's {config_class.__name__}: {str(error).splitlines()[-2].strip()}") from None


def _rows_of(sae: SAE | str | Path) -> BenchSAE:
    """For evaluations of the decoder rows alone: any SAE, whether or not it says where it belongs."""
    sae = sae if isinstance(sae, SAE) else load(sae)
    noted = sae.config.metadata
    place = {"model_name": noted.get("model_name") or "unknown", "hook_name": noted.get("hook_name") or "unknown"}
    layer = None if re.search(r"\d", place["hook_name"]) else -1
    return BenchSAE(_with_unit_rows(sae), _config_of(sae, {**place, "context_size": None}, layer))


def _config_of(sae: SAE, place: dict[str, Any], hook_layer: int | None) -> BenchConfig:
    """place: model_name, hook_name and context_size, None for what the SAE's metadata say."""
    noted, config = sae.config.metadata, sae.config
    ours = noted.get("metasae", {})
    place = {key: noted.get(key) if value is None else value for key, value in place.items()}
    for key in ("model_name", "hook_name"):
        if place[key] is None:
            raise UserError(f"the SAE does not say its {key}; give adapt(..., {key}=...)")
    number = re.search(r"\d+", place["hook_name"])
    if hook_layer is None and number is None:
        raise UserError(f"the hook '{place['hook_name']}' names no layer; give adapt(..., hook_layer=...)")
    topk = config.rule == "topk"
    return BenchConfig(
        **place,
        d_in=config.d_in,
        d_sae=config.d_sae,
        hook_layer=int(number[0]) if hook_layer is None else hook_layer,
        architecture="topk" if topk else "jumprelu",
        activation_fn_str="topk" if topk else "relu",
        activation_fn_kwargs={"k": config.k} if topk else {},
        prepend_bos=bool(noted.get("prepend_bos", True)),
        dataset_path=noted.get("dataset_path") or "",
        training_tokens=ours.get("recipe", {}).get("train", {}).get("tokens", -1),
        metasae={key: ours[key] for key in ("version", "arm", "seed", "data_fingerprint") if key in ours},
    )


def _refuse_normalised(sae: SAE) -> None:
    if sae.config.normalize != "none":
        raise UserError(
            "SAEBench cannot run an SAE that normalises each token: it decodes activations alone, and to undo the "
            "normalisation decode would need the mean and spread of the token; "
            'train with sae.normalize = "global"'
        )


def _with_unit_rows(sae: SAE) -> SAE:
    """A copy with thresholds and rows of unit length. Raises UserError where that would change what fires."""
    tensors = tensors_of(sae)
    if has_unit_rows(tensors):
        return deepcopy(sae)
    if sae.config.rule == "topk":
        raise UserError(
            "SAEBench takes rows of unit length; "
            "scaling them would change which activations of a TopK SAE are its k largest"
        )
    return assemble(norms_into_encoder(tensors, threshold=True), replace(sae.config), "the SAE with unit rows")
