"""Ablations by name: lists of settings that follow from the recipe they are asked of.

`kinds` and `k` compare at equal FVU (`metasae.sweep.equal_fvu`): several k per kind are trained, and measures are read off the curve
at the FVU of the kind they are compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass

from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe
from metasae.sweep.cells import Setting

# A penalty or an architecture moves the FVU at equal k by some -2 to +12%; ln FVU falls by about .3 ln k, so these k enclose solo's FVU.
K_AROUND = (0.9, 1.2, 1.6)
K_DOWN = (0.7, 0.85, 1.0)
# Coefficients of the further penalties where the recipe has none: OrtSAE's own (arXiv 2509.22033); the others' as docs/training.md tries them.
STRENGTHS = {"ortsae": 0.25, "c2r": 1.0, "cofiring": 0.1}
NO_PENALTY = {"train.lambda2": 0.0, "train.penalties": {}}
SOLO = "solo"


@dataclass(frozen=True)
class Ablation:
    """arms: None for the recipe's. shared_baseline: every cell is compared with solo of the recipe itself. equal_fvu: see `equal_fvu.Spec`."""

    settings: tuple[Setting, ...]
    arms: tuple[str, ...] | None = None
    shared_baseline: bool = False
    equal_fvu: dict | None = None


def named(name: str, base: Recipe) -> Ablation:
    """Raises UserError for an unknown name."""
    if name not in ABLATIONS:
        raise UserError(f"no sweep is named '{name}'{nearest(name, ABLATIONS)}")
    return ABLATIONS[name][1](base)


def _each(key: str, values) -> Ablation:
    return Ablation(tuple(Setting({key: value}) for value in dict.fromkeys(values)))


def _lambda2_sigma(base: Recipe) -> Ablation:
    return Ablation(
        tuple(Setting({"train.lambda2": a, "train.sigma_sq": b}) for a in (0.1, 0.3, 1.0) for b in (0.3, 1.0, 3.0))
    )


def _meta_width(base: Recipe) -> Ablation:
    return _each("meta.n", [max(base.meta.k, round(share * base.sae.n)) for share in (0.045, 0.09, 0.18, 0.25)])


def _meta_k(base: Recipe) -> Ablation:
    return _each("meta.k", [k for k in (1, 2, 4, 8) if k <= base.meta.n])


def _steps(base: Recipe) -> Ablation:
    pairs = ((10, 5), (100, 10), (10, 1), (10, 10))
    return Ablation(tuple(Setting({"train.n_primary_steps": p, "train.n_meta_steps": m}) for p, m in pairs))


def _meta_input(base: Recipe) -> Ablation:
    return _each("meta.input", ("raw", "token"))


def _penalty_start(base: Recipe) -> Ablation:
    return _each("train.penalty_start", (0.0, 0.1, 0.25, 0.5))


def _l0_curve(base: Recipe) -> Ablation:
    return _each("sae.k", _ks(base, (0.25, 0.5, 1.0, 2.0, 4.0)))


def _kinds(base: Recipe) -> Ablation:
    kinds = {
        SOLO: NO_PENALTY,
        "decomposability": {"train.lambda2": base.train.lambda2 or 0.3, "train.penalties": {}},
        **{
            name: {"train.lambda2": 0.0, "train.penalties": {name: base.train.penalties.get(name) or coef}}
            for name, coef in STRENGTHS.items()
        },
        "matryoshka": {**NO_PENALTY, "sae.architecture": "matryoshka"},
    }
    # solo's own curve says what k alone does, and how far off reading from a curve is
    ks = {kind: _ks(base, (*K_AROUND, 1.0) if kind == SOLO else K_AROUND) for kind in kinds}
    settings = [Setting({**values, "sae.k": k}, kind) for kind, values in kinds.items() for k in ks[kind]]
    spec = {"target": {"kind": SOLO, "k": base.sae.k}, "curves": list(kinds), "baseline": "target"}
    return Ablation(tuple(settings), (SOLO, "joint"), True, spec)


def _k(base: Recipe) -> Ablation:
    settings = [Setting({}, "joint"), *(Setting({**NO_PENALTY, "sae.k": k}, SOLO) for k in _ks(base, K_DOWN))]
    spec = {"target": {"kind": "joint", "k": base.sae.k}, "curves": [SOLO], "baseline": "curve"}
    return Ablation(tuple(settings), (SOLO, "joint"), True, spec)


def _ks(base: Recipe, factors: tuple[float, ...]) -> list[int]:
    return list(dict.fromkeys(min(max(1, round(factor * base.sae.k)), base.sae.n) for factor in factors))


ABLATIONS: dict[str, tuple[str, Callable[[Recipe], Ablation]]] = {
    "lambda2-sigma": (
        "the paper's grid: lambda2 in .1, .3, 1 and sigma^2 in .3, 1, 3 (arXiv 2604.03436, Table 1)",
        _lambda2_sigma,
    ),
    "meta-width": ("m / n: 4.5%, 9%, 18%, 25%", _meta_width),
    "meta-k": ("k_m: 1, 2, 4, 8", _meta_k),
    "steps": ("n_p : n_m: 10:5 (paper), 100:10 (released), 10:1, 10:10", _steps),
    "meta-input": ("decoder rows as they are, or each row normalised", _meta_input),
    "penalty-start": ("the share of steps before any penalty: 0, .1, .25, .5", _penalty_start),
    "kinds": ("decomposability, OrtSAE, C2R, co-firing and Matryoshka at solo's FVU", _kinds),
    "k": ("joint beside solo of lower k at equal FVU", _k),
    "l0-curve": ("k: a quarter, half, once, twice, four times the recipe's", _l0_curve),
}
