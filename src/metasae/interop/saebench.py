"""Runs SAEBench 0.6's evaluations of metasae's SAEs.

SAEBench's interface for a custom SAE: W_enc, W_dec with unit rows, b_enc, b_dec, encode(x), decode(acts), a `cfg` with
the fields that `_config_of` gives it, and a rule that does not depend on the batch. It calls encode and decode
separately, so decode gets the activations and nothing else of x.

`meta_structure` needs the decoder rows alone; the other evaluations load their model and data sets from the hub by
name. Results lie where SAEBench looks for them, `OUT/EVAL/NAME_custom_sae_eval_results.json`.
"""

import importlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, make_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasae import files
from metasae.errors import UserError
from metasae.interop.formats import load
from metasae.interop.identities import assemble, has_unit_rows, norms_into_encoder, tensors_of
from metasae.interop.saebench_names import FROM_HUB, WEIGHTS_ONLY, check_evals
from metasae.sae.sae import SAE

# SAEBench's name for an SAE that is not in SAELens's list, and its default seed.
CUSTOM, SEED = "custom_sae", 42


class BenchSAE(nn.Module):
    """A `metasae.SAE` as SAEBench calls one. Made by `adapt`. forward(x) is decode(encode(x)), to the bit."""

    def __init__(self, sae: SAE, cfg: Any):
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
        return self.sae.encode(x.to(self.dtype))

    def decode(self, acts: Tensor) -> Tensor:
        """activations [..., n] -> x_hat [..., d] in the model's units."""
        _refuse_normalised(self.sae)
        return self.sae.decode(acts.to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def to(self, *args, **kwargs) -> "BenchSAE":
        """Moves the SAE as any module, and its `cfg` with it."""
        super().to(*args, **kwargs)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return self


def adapt(sae: SAE | str | Path, rows_alone: bool = False) -> BenchSAE:
    """Makes a copy of an SAE, or of the one at a path in any format that `metasae.load` reads, for SAEBench.

    The model and the hook are taken from its metadata. Rows whose length is not 1 are scaled to length 1 and the
    activations are multiplied by their norms, which changes no output. rows_alone: for evaluations of the decoder rows,
    which take any SAE, also one that normalises tokens or has no model and hook in its metadata. Raises UserError for
    an SAE that SAEBench cannot run, with the reason, and for one without model and hook in its metadata.
    """
    sae = sae if isinstance(sae, SAE) else load(sae)
    if not rows_alone:
        _refuse_normalised(sae)
    return BenchSAE(_with_unit_rows(sae), _config_of(sae, rows_alone))


def evaluate(
    sae: SAE | str | Path,
    out: str | Path,
    evals: Sequence[str] = WEIGHTS_ONLY,
    *,
    name: str = "metasae",
    settings: dict[str, dict] | None = None,
    seed: int = SEED,
    device: str = "cpu",
) -> dict[str, dict]:
    """Runs SAEBench's evaluations of an SAE, or of the one at a path; returns {evaluation: its results}, as written
    under `out`.

    evals: names of `EVALS`. name: what the SAE is called in the results. settings: evaluation -> fields of its config,
    e.g. {"meta_structure": {"width_ratio": 0.09}}. seed: of the global random state, which is restored afterwards;
    SAEBench seeds it only from its own command line.

    `meta_structure` reads decoder rows alone, so it also runs on SAEs that normalise tokens. Raises UserError where
    SAEBench is not installed, for an unknown evaluation, and where something it needs is missing.
    """
    settings = settings or {}
    check_evals((*evals, *settings))
    # a copy for each, as SAEBench casts the SAE it is given
    bench, results = adapt(sae, set(evals) <= set(WEIGHTS_ONLY)).to(device), {}
    for evaluation in evals:
        values = {"random_seed": seed, **settings.get(evaluation, {})}
        path = Path(out) / evaluation / f"{name}_{CUSTOM}_eval_results.json".replace("/", "_")
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.enable_grad():
            torch.manual_seed(seed)
            if evaluation == "meta_structure":
                # a fresh BatchTopK SAE is trained on the decoder rows; how much of their variance does it explain?
                module = importlib.import_module("sae_bench.evals.meta_structure.main")
                config = module.MetaStructureEvalConfig(**values)
                output = module.run_eval_single_sae(name, CUSTOM, deepcopy(bench), config, device)
                result = json.loads(output.to_json())
            else:
                result = _from_hub(evaluation, deepcopy(bench), name, values, path, device)
        # SAEBench writes the commit of whatever repository it is called in
        results[evaluation] = {**result, "sae_bench_commit_hash": f"sae-bench {metadata.version('sae-bench')}"}
        files.write_json(path, results[evaluation])
    return results


def _from_hub(evaluation: str, bench: BenchSAE, name: str, values: dict, path: Path, device: str) -> dict:
    """An evaluation that loads its model and data sets itself."""
    (package, config_name, fixed, keeps), folder = FROM_HUB[evaluation], path.parent
    try:
        module = importlib.import_module(f"sae_bench.evals.{package}.main")
        config_class = getattr(importlib.import_module(f"sae_bench.evals.{package}.eval_config"), config_name)
    except ModuleNotFoundError as error:
        raise UserError(f"SAEBench's {evaluation} needs the package {error.name}: pip install {error.name}") from None
    config = config_class(**{"model_name": bench.cfg.model_name, **values, **fixed})
    artifacts = {"artifacts_path": str(folder / "artifacts")} if keeps else {}
    folder.mkdir(parents=True, exist_ok=True)
    module.run_eval(config, [(name, bench)], device, str(folder), force_rerun=True, **artifacts)
    written = next(folder.rglob(path.name), None)
    if written is None:
        raise UserError(f"SAEBench's {evaluation} has left no result in {folder}; its own messages say why")
    return files.read_json(written)


def _config_of(sae: SAE, rows_alone: bool) -> Any:
    """What SAEBench reads of an SAE's `cfg`, itself or through SAELens.

    A dataclass, as some evaluations take it apart by `dataclasses.asdict`; `to_dict` leaves out what SAEBench sets
    beside the fields, which is not JSON. rows_alone: whether the place in a model may be unknown. metasae: arm, seed
    and data of an SAE that we trained.
    """
    noted, config = sae.config.metadata, sae.config
    ours = noted.get("metasae", {})
    place = {key: noted.get(key) or ("unknown" if rows_alone else None) for key in ("model_name", "hook_name")}
    for key, value in place.items():
        if value is None:
            raise UserError(f"the SAE does not say its {key} in its metadata, and SAEBench needs it")
    number = re.search(r"\d+", place["hook_name"])
    if number is None and not rows_alone:
        raise UserError(f"the hook '{place['hook_name']}' names no layer, and SAEBench needs its number")
    topk = config.rule == "topk"
    values = {
        **place,
        "context_size": noted.get("context_size"),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "hook_layer": int(number[0]) if number else -1,
        "hook_head_index": None,
        "architecture": "topk" if topk else "jumprelu",
        "activation_fn_str": "topk" if topk else "relu",
        "activation_fn_kwargs": {"k": config.k} if topk else {},
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "prepend_bos": bool(noted.get("prepend_bos", True)),
        "dtype": "float32",
        "device": "cpu",
        "model_from_pretrained_kwargs": {},
        "dataset_path": noted.get("dataset_path") or "",
        "dataset_trust_remote_code": False,
        "training_tokens": ours.get("recipe", {}).get("train", {}).get("tokens", -1),
        "metasae": {key: ours[key] for key in ("version", "arm", "seed", "data_fingerprint") if key in ours},
    }
    return make_dataclass("BenchConfig", values, namespace={"to_dict": asdict})(**values)


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
