"""Named ablations: lists of settings that are made from a recipe.

`kinds` and `k` compare at equal FVU (`metasae.sweep.equal_fvu`): each kind is trained at several k, and its measures
are interpolated at the FVU of the kind it is compared with.
"""

from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE, SUBJECT
from metasae.sweep.cells import Setting
from metasae.sweep.grid import expand

# A penalty or an architecture changes the FVU at equal k by about -2 to +12%; ln FVU falls by about .3 ln k, so these k
# enclose solo's FVU.
K_AROUND = (0.9, 1.2, 1.6)
K_DOWN = (0.7, 0.85, 1.0)
# Coefficients of the further penalties if the recipe has none: OrtSAE's (arXiv 2509.22033) and C2R's own (arXiv
# 2606.30609); co-firing's as docs/sweeps.md tries it.
STRENGTHS = {"ortsae": 0.25, "c2r": 5.0, "cofiring": 0.1}
NO_PENALTY = {"train.lambda2": 0.0, "train.penalties": {}}
# n_p : n_m of the paper, of its released code, and two more.
STEPS = ((10, 5), (100, 10), (10, 1), (10, 10))
# m / n
META_SHARES = (0.045, 0.09, 0.18, 0.25)
ABLATIONS = (
    "lambda2-sigma", "meta-width", "meta-k", "steps", "meta-input", "penalty-start", "kinds", "k", "l0-curve",
    "atomic",
)  # fmt: skip


def named(name: str, base: Recipe) -> tuple[list[Setting], dict | None]:
    """(the settings of an ablation, what is compared at equal FVU or None).

    What is compared: `target`, the SAE whose FVU is used; `curves`, the kinds whose curves are interpolated there;
    `baseline`, which of the two is the baseline. The paper's grids are in arXiv 2604.03436, Table 1. Raises UserError
    for an unknown name.
    """
    if name not in ABLATIONS:
        raise UserError(f"no ablation is named '{name}'{nearest(name, ABLATIONS)}")
    if name == "kinds":
        return _kinds(base)
    if name == "atomic":
        return _atomic(base), None
    if name == "k":
        lower = [Setting({**NO_PENALTY, "sae.k": k}, BASELINE) for k in _ks(base, K_DOWN)]
        target = {"kind": SUBJECT, "k": base.sae.k}
        spec = {"target": target, "curves": [BASELINE], "baseline": "curve"}
        return [Setting({"sae.k": base.sae.k}, SUBJECT), *lower], spec
    if name == "steps":
        return [Setting({"train.n_primary_steps": p, "train.n_meta_steps": m}) for p, m in STEPS], None
    widths = dict.fromkeys(max(base.meta.k, round(share * base.sae.n)) for share in META_SHARES)
    grids = {
        "lambda2-sigma": {"train.lambda2": (0.1, 0.3, 1.0), "train.sigma_sq": (0.3, 1.0, 3.0)},
        "meta-width": {"meta.n": tuple(widths)},
        "meta-k": {"meta.k": tuple(k for k in (1, 2, 4, 8) if k <= base.meta.n)},
        "meta-input": {"meta.input": ("raw", "token")},
        "penalty-start": {"train.penalty_start": (0.0, 0.1, 0.25, 0.5)},
        "l0-curve": {"sae.k": tuple(_ks(base, (0.25, 0.5, 1.0, 2.0, 4.0)))},
    }
    return list(map(Setting, expand(grids[name]))), None


def _kinds(base: Recipe) -> tuple[list[Setting], dict]:
    kinds = {
        BASELINE: NO_PENALTY,
        "decomposability": {"train.lambda2": base.train.lambda2 or 0.3, "train.penalties": {}},
        **{
            name: {"train.lambda2": 0.0, "train.penalties": {name: base.train.penalties.get(name) or coef}}
            for name, coef in STRENGTHS.items()
        },
        "matryoshka": {**NO_PENALTY, "sae.architecture": "matryoshka"},
    }
    # solo's own curve shows the effect of k alone, and the error of interpolation
    ks = {kind: _ks(base, (*K_AROUND, 1.0) if kind == BASELINE else K_AROUND) for kind in kinds}
    settings = [Setting({**values, "sae.k": k}, kind) for kind, values in kinds.items() for k in ks[kind]]
    return settings, {"target": {"kind": BASELINE, "k": base.sae.k}, "curves": list(kinds), "baseline": "target"}


def _atomic(base: Recipe) -> list[Setting]:
    """Settings that show which objective, and which of its parts, recovers known features; the most informative
    first. The learning rate changes recovery as much as the objective does, so the main ones are also trained at half
    of it and at twice.
    """
    plain = {**NO_PENALTY, "train.nest.weight": 0.0, "train.margin": 0.0}
    two_levels = {**plain, "sae.architecture": "matryoshka", "sae.prefixes": [0.25, 1.0]}
    penalty = {"train.lambda2": base.train.lambda2 or 0.3}

    def more(factor: float) -> dict:
        return {"sae.k": min(max(base.sae.k + 1, round(factor * base.sae.k)), base.sae.n)}

    main = {"solo": plain, "atomic": NO_PENALTY, "matryoshka, two levels": two_levels}
    rates = {
        f"{name}, learning rate x {factor:g}": {**values, "train.lr": factor * base.train.lr}
        for factor in (2, 0.5)
        for name, values in main.items()
    }
    rows = {
        **main,
        **rates,
        "nesting alone": {**NO_PENALTY, "train.margin": 0.0},
        "margin alone": {**NO_PENALTY, "train.nest.weight": 0.0},
        "atomic, margin .2": {**NO_PENALTY, "train.margin": 0.2},
        "atomic, higher k": {**NO_PENALTY, **more(1.1)},
        "matryoshka, two levels, higher k": {**two_levels, **more(1.25)},
        "solo, higher k": {**plain, **more(1.1)},
        "joint": {**plain, **penalty},
        "matryoshka, five levels": {**plain, "sae.architecture": "matryoshka"},
        "atomic, nesting of weight .03": {**NO_PENALTY, "train.nest.weight": 0.03},
        "atomic, nesting of weight .3": {**NO_PENALTY, "train.nest.weight": 0.3},
        "nesting kept": {**NO_PENALTY, "train.nest.hold": 1.0, "train.nest.gone": 2.0},
        "nesting let go early": {**NO_PENALTY, "train.nest.hold": 0.1, "train.nest.gone": 0.3},
        "nesting let go late": {**NO_PENALTY, "train.nest.hold": 0.5, "train.nest.gone": 0.75},
        "atomic-joint": penalty,
        **{name: {**plain, "train.penalties": {name: STRENGTHS[name]}} for name in ("ortsae", "c2r")},
    }
    return [Setting(values, kind) for kind, values in rows.items()]


def _ks(base: Recipe, factors: tuple[float, ...]) -> list[int]:
    return list(dict.fromkeys(min(max(1, round(factor * base.sae.k)), base.sae.n) for factor in factors))
