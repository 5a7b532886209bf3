"""The other libraries' side, for tests and the matrix: randomised checkpoints as they write them, and their outputs.

`make` writes a checkpoint of a format, an architecture and a normalisation with random weights, biases and thresholds,
rows of any length and a dead latent. `run` computes activations and outputs from the files by that library's equations,
in float64 and without any code of the loaders here; `theirs` asks the library itself where it is installed.
"""

import importlib.metadata
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D, N, K, SCALE = 16, 48, 5, 0.4
Outputs = tuple[Tensor, Tensor]

# format -> architectures
ARCHITECTURES = {
    "saelens": ("standard", "jumprelu", "gated", "topk", "topk rescaled", "batchtopk", "batchtopk rescaled"),
    "dictionary_learning": (
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
    ),
    "sparsify": ("topk",),
    "paper": ("batchtopk + npy", "batchtopk", "topk", "vanilla", "jumprelu"),
    "gemma_scope": ("jumprelu",),
}
# format -> normalisations
NORMALISATIONS = {
    "saelens": ("none", "no b_dec", "layer_norm", "expected_average_only_in", "constant_norm_rescale"),
    "dictionary_learning": ("none",),
    "sparsify": ("none",),
    "paper": ("none", "input_unit_norm"),
    "gemma_scope": ("none",),
}


def inputs(seed: int = 0, n_tokens: int = 200) -> Tensor:
    """Random activations [T, d] with an offset and a spread of their own in every dimension."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, D, generator=generator) * (1 + torch.rand(D, generator=generator)) + torch.randn(
        D, generator=generator
    )


def make(
    format: str, architecture: str, normalisation: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Writes a checkpoint into `folder`; gives the path to load."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = draw(N, D)
    tensors = {
        "W_enc": rows.t() * 0.3 + 0.1 * draw(D, N),
        "W_dec": rows / rows.norm(dim=1, keepdim=True) * (0.5 + torch.rand(N, 1, generator=generator)),
        "b_enc": 0.3 * draw(N),
        "b_dec": 0.5 * draw(D),
        "threshold": draw(N).abs(),
        "b_gate": 0.3 * draw(N),
        "b_mag": 0.3 * draw(N),
        "r_mag": 0.3 * draw(N),
    }
    tensors["threshold"][3], tensors["threshold"][7] = math.inf, 0.0
    return _MAKE[format](
        folder, architecture, normalisation, {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    )


def run(format: str, path: Path, x: Tensor) -> Outputs:
    """(activations [T, n], outputs [T, d]) by the library's equations, from the files alone."""
    return _RUN[format](path, x.double())


def theirs(format: str, path: Path, x: Tensor) -> Outputs:
    """The same by the library itself where it is installed, else as `run`."""
    return _LIBRARY[format](path, x) if library(format) else run(format, path, x)


def library(format: str) -> str | None:
    """The library's name and version, or None where it is not installed; the paper's code is no package."""
    package = {"saelens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}.get(
        format
    )
    try:
        return None if package is None else f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def _make_saelens(folder: Path, architecture: str, normalisation: str, tensors: dict[str, Tensor]) -> Path:
    kind, _, rescaled = architecture.partition(" ")
    names = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(kind, ("b_enc",))
    state = {name: tensors[name] for name in ("W_enc", "W_dec", "b_dec", *names)}
    if kind == "batchtopk":
        state["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    cfg = {
        "architecture": kind,
        "d_in": D,
        "d_sae": N,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": normalisation != "no b_dec",
        "normalize_activations": "none" if normalisation == "no b_dec" else normalisation,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
    }
    if kind in ("topk", "batchtopk"):
        cfg |= {"k": K, "rescale_acts_by_decoder_norm": bool(rescaled)}
    if normalisation == "expected_average_only_in":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": SCALE, "has_whitening": False}))
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def _run_saelens(path: Path, x: Tensor) -> Outputs:
    cfg = json.loads((path / "cfg.json").read_text())
    w = {name: tensor.double() for name, tensor in load_file(path / "sae_weights.safetensors").items()}
    kind, normalise, norms = cfg["architecture"], cfg["normalize_activations"], w["W_dec"].norm(dim=1)
    rescaled = cfg.get("rescale_acts_by_decoder_norm", False)
    scale = (
        json.loads((path / "activation_scaler.json").read_text())["scaling_factor"]
        if normalise == "expected_average_only_in"
        else 1.0
    )
    z, mean, std = _normalised(x * scale, normalise == "layer_norm")
    centred = z - w["b_dec"] if cfg["apply_b_dec_to_input"] else z
    if kind == "gated":
        acts = (centred @ w["W_enc"] + w["b_gate"] > 0) * (
            centred @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
        ).relu()
        return acts, (acts @ w["W_dec"] + w["b_dec"]) * std / scale + mean
    pre = (centred @ w["W_enc"] + w["b_enc"]) * (norms if rescaled else 1.0)
    if kind == "topk":
        acts = _top(pre.relu(), cfg["k"])
    else:
        limit = w.get("threshold", w.get("topk_threshold", torch.zeros(())))
        acts = torch.where(pre > limit, pre.relu(), 0.0)
    out = (acts / norms if rescaled else acts) @ w["W_dec"] + w["b_dec"]
    # a BatchTopK SAE that was trained on scaled inputs is saved for use with the scale in its activations
    return (acts / scale if rescaled else acts), out * std / scale + mean


def _make_dictionary_learning(folder: Path, kind: str, normalisation: str, t: dict[str, Tensor]) -> Path:
    linear = {
        "encoder.weight": t["W_enc"].t().contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].t().contiguous(),
    }
    k, one = torch.tensor(K, dtype=torch.int), torch.tensor(0.7)
    gates = {"decoder_bias": t["b_dec"], "r_mag": t["r_mag"], "gate_bias": t["b_gate"], "mag_bias": t["b_mag"]}
    by_name = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    state = {
        "AutoEncoder": {**linear, "bias": t["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": t["b_dec"]},
        "GatedAutoEncoder": {
            "encoder.weight": linear["encoder.weight"],
            "decoder.weight": linear["decoder.weight"],
            **gates,
        },
        "AutoEncoderTopK": {**linear, "b_dec": t["b_dec"], "k": k, "threshold": one},
        "BatchTopKSAE": {**linear, "b_dec": t["b_dec"], "k": k, "threshold": one},
        "MatryoshkaBatchTopKSAE": {
            **by_name,
            "k": k,
            "threshold": one,
            "group_sizes": torch.tensor([N // 4, N - N // 4]),
        },
        "JumpReluAutoEncoder": {**by_name, "threshold": t["threshold"]},
    }[kind]
    trainer = {
        "dict_class": kind,
        "k": K,
        "activation_dim": D,
        "dict_size": N,
        "lm_name": "tiny",
        "layer": 1,
        "submodule_name": "resid_post_layer_1",
    }
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
    return folder


def _run_dictionary_learning(path: Path, x: Tensor) -> Outputs:
    kind = json.loads((path / "config.json").read_text())["trainer"]["dict_class"]
    w = {name: t.double() for name, t in torch.load(path / "ae.pt", weights_only=True).items()}
    E = w["encoder.weight"].t() if "encoder.weight" in w else w["W_enc"]
    rows = w["decoder.weight"].t() if "decoder.weight" in w else w["W_dec"]
    b_dec = next(w[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in w)
    u = x @ E if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else (x - b_dec) @ E
    if kind == "GatedAutoEncoder":
        acts = (u + w["gate_bias"] > 0) * (w["r_mag"].exp() * u + w["mag_bias"]).relu()
        return acts, acts @ rows + b_dec
    acts = (u + w.get("encoder.bias", w.get("b_enc"))).relu()
    if kind == "AutoEncoderTopK":
        acts = _top(acts, int(w["k"]))
    elif "threshold" in w:
        acts = torch.where(acts > w["threshold"], acts, 0.0)
    out = acts @ rows + b_dec
    return (acts * rows.norm(dim=1) if kind == "AutoEncoder" else acts), out


def _make_sparsify(folder: Path, architecture: str, normalisation: str, t: dict[str, Tensor]) -> Path:
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": N,
        "k": K,
        "multi_topk": False,
    }
    state = {
        "encoder.weight": t["W_enc"].t().contiguous(),
        "encoder.bias": t["b_enc"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }
    save_file(state, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**cfg, "skip_connection": False, "transcode": False, "d_in": D}))
    return folder


def _run_sparsify(path: Path, x: Tensor) -> Outputs:
    k = json.loads((path / "cfg.json").read_text())["k"]
    w = {name: tensor.double() for name, tensor in load_file(path / "sae.safetensors").items()}
    acts = _top(((x - w["b_dec"]) @ w["encoder.weight"].t() + w["encoder.bias"]).relu(), k)
    return acts, acts @ w["W_dec"] + w["b_dec"]


def _make_paper(folder: Path, architecture: str, normalisation: str, t: dict[str, Tensor]) -> Path:
    kind, _, thresholds = architecture.partition(" + ")
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else []))
    cfg = {
        "sae_type": kind,
        "act_size": D,
        "dict_size": N,
        "top_k": K,
        "dtype": t["W_enc"].dtype,
        "input_unit_norm": normalisation != "none",
    }
    place = {
        "model_name": "tiny",
        "layer": 1,
        "site": "resid_pre",
        "seq_len": 64,
        "dataset_path": "docs",
        "seed": 49,
        "device": "cpu",
    }
    torch.save({"cfg": cfg | place, "state_dict": {name: t[name] for name in names}}, folder / "joint_primary_sae.pt")
    if thresholds:
        np.save(folder / "thresholds_joint.npy", t["threshold"].float().clamp(max=10.0).numpy())
    return folder / "joint_primary_sae.pt"


def _run_paper(path: Path, x: Tensor) -> Outputs:
    file = path if path.suffix == ".pt" else next(path.glob("*.pt"))
    checkpoint = torch.load(file, weights_only=True)
    cfg, w = checkpoint["cfg"], {name: tensor.double() for name, tensor in checkpoint["state_dict"].items()}
    u, mean, std = _normalised(x, cfg["input_unit_norm"])
    thresholds = next(file.parent.glob("thresholds_*.npy"), None)
    if thresholds is not None:
        acts = ((u - w["b_dec"]) @ w["W_enc"]).relu()
        acts = torch.where(acts > torch.from_numpy(np.load(thresholds)).double(), acts, 0.0)
        return acts, (acts @ w["W_dec"] + w["b_dec"]) * (std + (1e-5 if cfg["input_unit_norm"] else 0.0)) + mean
    if cfg["sae_type"] in ("topk", "batchtopk"):
        acts = _top(((u - w["b_dec"]) @ w["W_enc"]).relu(), cfg["top_k"])
    elif cfg["sae_type"] == "vanilla":
        acts = ((u - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    else:
        acts = (u @ w["W_enc"] + w["b_enc"]).relu()
        acts = torch.where(acts > w["threshold"], acts, 0.0)
    return acts, (acts @ w["W_dec"] + w["b_dec"]) * std + mean


def _make_gemma_scope(folder: Path, architecture: str, normalisation: str, t: dict[str, Tensor]) -> Path:
    # numpy has no bf16, and fp16 holds these very numbers
    half = t["W_enc"].dtype == torch.bfloat16
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{name: (t[name].half() if half else t[name]).numpy() for name in names})
    return folder


def _run_gemma_scope(path: Path, x: Tensor) -> Outputs:
    w = {name: torch.from_numpy(array).double() for name, array in np.load(path / "params.npz").items()}
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = (pre > w["threshold"]) * pre.relu()
    return acts, acts @ w["W_dec"] + w["b_dec"]


def _normalised(x: Tensor, on: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not on:
        return x, torch.zeros(len(x), 1), torch.ones(len(x), 1)
    mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


def _top(acts: Tensor, k: int) -> Tensor:
    largest = acts.topk(k, dim=1)
    return torch.zeros_like(acts).scatter(1, largest.indices, largest.values)


@torch.no_grad()
def _saelens(path: Path, x: Tensor) -> Outputs:
    import sae_lens

    cfg = json.loads((path / "cfg.json").read_text())
    scale = (
        json.loads((path / "activation_scaler.json").read_text())["scaling_factor"]
        if (path / "activation_scaler.json").exists()
        else None
    )
    if cfg["architecture"] == "batchtopk":
        # what SAELens does with it at the end of training
        training = sae_lens.BatchTopKTrainingSAE.load_from_disk(path, dtype="float32")
        if scale is not None:
            training.fold_activation_norm_scaling_factor(scale)
        with tempfile.TemporaryDirectory() as folder:
            training.save_inference_model(folder)
            sae = sae_lens.SAE.load_from_disk(folder, dtype="float32")
    else:
        sae = sae_lens.SAE.load_from_disk(path, dtype="float32")
        if scale is not None:
            sae.fold_activation_norm_scaling_factor(scale)
    return sae.encode(x), sae(x)


@torch.no_grad()
def _dictionary_learning(path: Path, x: Tensor) -> Outputs:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(path), device="cpu")
    return sae.encode(x), sae(x)


@torch.no_grad()
def _sparsify(path: Path, x: Tensor) -> Outputs:
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(path).float()
    top = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents).scatter(1, top.top_indices, top.top_acts), sae(x).sae_out


_MAKE = {
    "saelens": _make_saelens,
    "dictionary_learning": _make_dictionary_learning,
    "sparsify": _make_sparsify,
    "paper": _make_paper,
    "gemma_scope": _make_gemma_scope,
}
_RUN = {
    "saelens": _run_saelens,
    "dictionary_learning": _run_dictionary_learning,
    "sparsify": _run_sparsify,
    "paper": _run_paper,
    "gemma_scope": _run_gemma_scope,
}
_LIBRARY = {"saelens": _saelens, "dictionary_learning": _dictionary_learning, "sparsify": _sparsify}
