"""`python -m tools.matrix`: every format, architecture and normalisation, read, written and read again, as Markdown.

A number is the largest |a - b| / (1 + |b|) over activations and outputs of a randomised SAE on random inputs, ours a
against theirs b. Theirs is the library itself where it is installed, else its equations in float64 (`peers.py`).
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.interop.detection import WRITTEN
from metasae.interop.formats import FORMATS, export, load
from metasae.sae.sae import SAE, SAEConfig
from tools import peers

DTYPES = (torch.float32, torch.bfloat16)
RULES = ("threshold per latent", "threshold per latent, no b_enc", "one threshold", "ReLU", "topk", "topk, no b_enc")
# The formats of others that ours are written in.
_OTHERS = [format for format in FORMATS if format in WRITTEN]
NORMALISATIONS = ("none", "global", "token", "token_eps")


def difference(ours: peers.Outputs, theirs: peers.Outputs) -> float:
    """The largest |a - b| / (1 + |b|) over activations and outputs.

    Below 1e-5 they pass `allclose(rtol=1e-5, atol=1e-5)`.
    """
    return max(
        float(((a.double() - b.double()).abs() / (1 + b.double().abs())).max())
        for a, b in zip(ours, theirs, strict=True)
    )


@torch.no_grad()
def outputs(sae: SAE, x: Tensor) -> peers.Outputs:
    """(activations, outputs) of an SAE here."""
    codes = sae.codes(x)
    return codes.acts, sae.decode(codes)


def read_rows(format: str, folder: Path, refusals: dict[str, int]) -> list[list[str]]:
    """Architecture, normalisation, and the differences after loading in each dtype, writing back and loading again."""
    rows = []
    for architecture in peers.ARCHITECTURES[format]:
        for normalisation in peers.NORMALISATIONS[format]:
            places = {
                dtype: folder / "-".join([format, architecture, normalisation, str(dtype)]).replace(" ", "_")
                for dtype in DTYPES
            }
            paths = [peers.make(format, architecture, normalisation, place, dtype) for dtype, place in places.items()]
            cells = [_loaded(format, path, refusals) for path in paths]
            back = places[DTYPES[0]].with_name(places[DTYPES[0]].name + "-back")
            if format not in WRITTEN or cells[0].startswith("refused"):
                cells += ["", ""]
            else:
                cells += _written(load(paths[0]), format, back, refusals)
            rows.append([architecture, normalisation, *cells])
    return rows


def write_rows(folder: Path, refusals: dict[str, int]) -> list[list[str]]:
    """Rule and normalisation of an SAE of ours, and the difference after writing it in each format."""
    rows = []
    for rule in RULES:
        for normalisation in NORMALISATIONS:
            places = {
                format: folder / "-".join(["own", rule, normalisation, format]).replace(" ", "_") for format in _OTHERS
            }
            cells = [
                _written(random_sae(rule, normalisation), format, place, refusals)[0]
                for format, place in places.items()
            ]
            rows.append([rule, normalisation, *cells])
    return rows


def random_sae(rule: str, normalisation: str, seed: int = 0) -> SAE:
    """An SAE of ours by one of `RULES`, untied, with biases."""
    generator = torch.Generator().manual_seed(seed)
    config = SAEConfig(peers.D, peers.N, k=peers.K, normalize="none" if normalisation == "global" else normalisation)
    config.rule = "topk" if rule.startswith("topk") else "threshold"
    sae = SAE(config)
    sae.init_weights(generator)
    sae.W_enc.data += 0.2 * torch.randn(peers.D, peers.N, generator=generator)
    sae.b_dec.data += 0.5 * torch.randn(peers.D, generator=generator)
    if "no b_enc" not in rule:
        sae.b_enc.data += 0.3 * torch.randn(peers.N, generator=generator)
    per_latent = torch.rand(peers.N, generator=generator)
    sae.threshold = (
        per_latent if "per latent" in rule else torch.full([peers.N], 0.5 if rule == "one threshold" else 0.0)
    )
    return sae.scaled(0.4) if normalisation == "global" else sae


def _loaded(format: str, path: Path, refusals: dict[str, int]) -> str:
    try:
        sae = load(path)
    except UserError as error:
        return _refused(str(error).partition(".json: ")[2], refusals)
    x = peers.inputs()
    return shown(difference(outputs(sae, x), peers.theirs(format, path, x)))


def _written(sae: SAE, format: str, out: Path, refusals: dict[str, int]) -> list[str]:
    """The difference after export, and after loading that again."""
    try:
        export(sae, format, out)
    except UserError as error:
        return [_refused(str(error).partition(": ")[2], refusals), ""]
    x = peers.inputs()
    ours = outputs(sae, x)
    return [shown(difference(ours, peers.theirs(format, out, x))), shown(difference(outputs(load(out), x), ours))]


def _refused(why: str, refusals: dict[str, int]) -> str:
    return f"refused [{refusals.setdefault(why, len(refusals) + 1)}]"


def shown(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def matrix(folder: Path) -> str:
    """The whole page of tables, worked out in `folder`."""
    refusals: dict[str, int] = {}
    parts = []
    for format in FORMATS:
        library = peers.library(format)
        head = ["architecture", "normalisation", "load, fp32", "load, bf16", "export", "round trip"]
        parts.append(
            f"### {format}, against {library or 'its equations'}\n\n{table(head, read_rows(format, folder, refusals))}"
        )
    parts.append(
        f"### SAEs of ours, exported\n\n{table(['rule', 'normalisation', *_OTHERS], write_rows(folder, refusals))}"
    )
    parts.append("\n".join(f"[{number}] {why}  " for why, number in refusals.items()))
    return "\n\n".join(parts)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        page = matrix(Path(folder))
    print(page)


if __name__ == "__main__":
    main()
