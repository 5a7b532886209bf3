"""An SAE's losses and gradients in closed form, on kept entries only. `metasae.train.objective` is the specification
that they equal.

With G = dL/dxh [B, d] and the kept entries (row b, latent j, value z):

    dL/dz_bj     = <G_b, w_j>                    only where kept; the selection itself has no gradient;
                                                 plus that of penalties on the activations
    dL/dW_dec_j  = sum_b z_bj G_b
    dL/dW_enc_j  = sum_b dL/dz_bj (x_b - b_dec)
    dL/db_dec    = sum_b G_b - sum_j (sum_b dL/dz_bj) W_enc_j      b_dec is in the encoder and in the decoder

With nested prefixes (Matryoshka, `train.nest`) a latent is in several prefixes, so its G is the sum over these, each
times its weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metasae.device import multiplies_bf16
from metasae.sae.architectures import Architecture
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE, Whole
from metasae.sae.weights import Weights


@dataclass(frozen=True)
class Arithmetic:
    """How products are computed: by which kernels, and in which dtype the dense matrix products (sums over kept entries
    are in fp32).

    spread: how rows and latents lie over processes. Where they are spread, `kernels` is an object with the functions of
    a kernel module whose selections run over all processes.
    """

    kernels: ModuleType
    dtype: torch.dtype
    spread: Whole = WHOLE

    @property
    def fused(self) -> bool:
        """Whether several parts of the step are computed in one pass: the kernels have such passes, and this process
        has all rows and latents.
        """
        return self.spread is WHOLE and hasattr(self.kernels, "encode_select")


@dataclass(frozen=True)
class Auxiliary:
    """The AuxK term (arXiv 2406.04093). dead_N: bool [n]. detach: no gradient through the residual; with False, as in
    the paper's code, the term also has a gradient by the live latents.
    """

    dead_N: Tensor
    k: int
    coef: float
    detach: bool


@dataclass(frozen=True)
class Prefixes:
    """Nested prefixes of the latents that each rebuild the input.

    ends: as of `Architecture.ends`; the last is that of all latents. weights: of each prefix's mean squared error.
    inner_bias: whether the errors of the inner prefixes have a gradient by the b_dec of the decoder.
    """

    ends: tuple[int, ...]
    weights: tuple[float, ...]
    inner_bias: bool = True

    @classmethod
    def even(cls, ends: tuple[int, ...]) -> "Prefixes":
        """All prefixes with the same weight; the weights sum to 1."""
        return cls(ends, (1 / len(ends),) * len(ends))


@dataclass(frozen=True)
class Group:
    """The kept entries of the latents start <= j < end. places: their indices among all kept entries (None: they are
    all).

    Where the latents are spread, this process may have none of a group's latents.
    """

    start: int
    end: int
    kept: Kept
    places: Tensor | None

    @property
    def empty(self) -> bool:
        return self.start == self.end


@dataclass(frozen=True)
class Reconstruction:
    """One forward pass. xc: x - b_dec; residuals: x - xh for each nested prefix, the whole SAE's last.

    pre: None where the kernels did not keep the whole matrix. dots: <residual, w_j> [K] of each kept entry, where the
    kernels computed them together with the residual.
    """

    pre_BN: Tensor | None
    kept: Kept
    prefixes: Prefixes
    groups: tuple[Group, ...]
    xc_BD: Tensor
    residuals: tuple[Tensor, ...]
    cut: float
    dots_K: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """l2: sum over prefixes of weight * mean (x - xh)^2; aux, sparsity: 0-dim; weights: dL/dweights of their sum."""

    l2: Tensor
    aux: Tensor
    sparsity: Tensor
    weights: Weights


def matmul_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """'auto': bf16 where the device multiplies it natively, else fp32."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def forward(
    x_BD: Tensor,
    weights: Weights,
    architecture: Architecture,
    k: int,
    cut: float,
    how: Arithmetic,
    prefixes: Prefixes | None = None,
    offset_N: Tensor | None = None,
) -> Reconstruction:
    """Encodes, selects and decodes x [B, d]. cut: the warm start of the selection, which does not change its result.
    prefixes: None takes the architecture's. offset_N: what each latent's pre-activation is lowered by in the selection.
    """
    xc, b_enc = x_BD - weights.b_dec_D, weights.b_enc_N
    if offset_N is not None:
        b_enc = -offset_N if b_enc is None else b_enc - offset_N
    if how.fused and architecture.over_batch:
        pre = None
        kept, cut = how.kernels.encode_select(xc, weights.W_enc_ND, b_enc, k * xc.shape[0], cut, how.dtype)
    else:
        pre = how.kernels.encode(xc, weights.W_enc_ND, b_enc, how.dtype)
        kept, cut = architecture.select(pre, weights, k, cut, how.kernels)
    if offset_N is not None:
        # entries are selected by pre - offset, and their values are pre
        pre, kept = None, kept.with_values(kept.values + offset_N[kept.latents.long()])
    prefixes = prefixes or Prefixes.even(architecture.ends(weights.W_dec_ND.shape[0]))
    groups = _groups(kept, prefixes.ends)
    if how.fused and len(groups) == 1:
        residual, _, dots = how.kernels.residual(kept, weights.W_dec_ND, xc)
        return Reconstruction(pre, kept, prefixes, groups, xc, (residual,), cut, dots)
    residuals, remaining = [], xc
    for group in groups:
        part = (
            torch.zeros_like(xc)
            if group.empty
            else how.kernels.decode(group.kept, weights.W_dec_ND[group.start : group.end])
        )
        part = how.spread.over_latents(part)
        remaining = torch.sub(remaining, part, out=part)
        residuals.append(remaining)
    return Reconstruction(pre, kept, prefixes, groups, xc, tuple(residuals), cut)


def sae_gradients(
    passed: Reconstruction,
    weights: Weights,
    architecture: Architecture,
    aux: Auxiliary | None,
    how: Arithmetic,
    dz_K: Tensor | None = None,
) -> Gradients:
    """The losses of a forward pass and their gradients. aux: None, or without a dead latent, for no aux term. dz_K:
    dL/dz of further losses on the kept entries; it is backpropagated through the encoder as that of the reconstruction
    is.
    """
    prefixes, numel = passed.prefixes, how.spread.rows(passed.kept.n_rows) * passed.xc_BD.shape[1]
    weighted = list(zip(prefixes.weights, passed.residuals, strict=True))
    l2 = sum(weight * how.spread.row_mean(residual.square()) for weight, residual in weighted)
    G_groups = [residual * (-2 * weight / numel) for weight, residual in weighted]
    aux_loss, extra = torch.zeros_like(l2), None
    n_dead = 0 if aux is None else int(how.spread.over_latents(aux.dead_N.sum()))
    if n_dead:
        aux_loss, G_aux, *extra = _auxiliary(passed, weights, aux, n_dead, numel, how)
        if not aux.detach:
            G_groups[-1] += G_aux
    for number in reversed(range(len(weighted) - 1)):
        G_groups[number] += G_groups[number + 1]

    # the dots that the kernels computed are those of the residual, without the aux term's gradient
    as_they_came = passed.dots_K is not None and (extra is None or aux.detach)
    dz = passed.dots_K * (-2 / numel) if as_they_came else _entry_gradients(passed, weights, G_groups, how)
    if dz_K is not None:
        dz = dz + dz_K
    pre_K = (
        passed.pre_BN[passed.kept.rows.long(), passed.kept.latents.long()].float()
        if architecture.own_threshold
        else passed.kept.values
    )
    sparsity, dpre_K, dlog_threshold = architecture.sparsity(pre_K, passed.kept, dz, weights)
    dW_dec, dW_enc = _row_gradients(passed, G_groups, dpre_K, how)
    dpre_N = passed.kept.latent_sums(dpre_K)
    if extra is not None:
        aux_dec, aux_enc, aux_pre, dead = extra
        dW_dec.index_add_(0, dead, aux_dec)
        dW_enc.index_add_(0, dead, aux_enc)
        dpre_N.index_add_(0, dead, aux_pre)
    G_bias = G_groups[0 if prefixes.inner_bias else -1].sum(0)
    db_dec = G_bias - how.spread.over_latents(dpre_N @ weights.W_enc_ND)
    db_enc = None if weights.b_enc_N is None else dpre_N
    gradients = how.spread.gradients(Weights(dW_enc, dW_dec, db_dec, db_enc, dlog_threshold))
    return Gradients(l2, aux_loss, torch.zeros_like(l2) if sparsity is None else sparsity, gradients)


def _groups(kept: Kept, ends: tuple[int, ...]) -> tuple[Group, ...]:
    if len(ends) == 1:
        return (Group(0, ends[0], kept, None),)
    return tuple(Group(start, end, *kept.between(start, end)) for start, end in zip((0, *ends), ends, strict=False))


def _with_latents(passed: Reconstruction, G_groups: list[Tensor]) -> Iterator[tuple[Group, Tensor]]:
    """The groups that have latents on this process, each with its dL/dxh."""
    return ((group, G) for group, G in zip(passed.groups, G_groups, strict=True) if not group.empty)


def _entry_gradients(passed: Reconstruction, weights: Weights, G_groups: list[Tensor], how: Arithmetic) -> Tensor:
    """dL/dz [K] from each group's dL/dxh."""
    out = torch.empty_like(passed.kept.values)
    for group, G in _with_latents(passed, G_groups):
        part = how.kernels.entry_dots(group.kept, G, weights.W_dec_ND[group.start : group.end])
        if group.places is None:
            return part
        out[group.places] = part
    return out


def _row_gradients(
    passed: Reconstruction, G_groups: list[Tensor], dpre_K: Tensor, how: Arithmetic
) -> tuple[Tensor, Tensor]:
    """(dL/dW_dec, dL/dW_enc), both [n, d]: those of the groups, whose latents are disjoint, stacked."""
    pieces = []
    for group, G in _with_latents(passed, G_groups):
        dpre = dpre_K if group.places is None else dpre_K[group.places]
        pieces.append(how.kernels.latent_rows(group.kept, (group.kept.values, dpre), (G, passed.xc_BD)))
    return pieces[0] if len(pieces) == 1 else tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _auxiliary(passed: Reconstruction, weights: Weights, aux: Auxiliary, n_dead: int, numel: int, how: Arithmetic):
    """AuxK loss, dL/d(aux reconstruction) [B, d], the dead latents' (dL/dW_dec rows, dL/dW_enc rows, dL/dpre summed)
    and their indices.

    The products are dense on the dead columns, as with k near d / 2 sparse products would move more bytes.
    """
    dead = aux.dead_N.nonzero().squeeze(1)
    if passed.pre_BN is None:
        b_enc = None if weights.b_enc_N is None else weights.b_enc_N[dead]
        columns = how.kernels.encode(passed.xc_BD, weights.W_enc_ND[dead], b_enc, how.dtype)
    else:
        columns = how.kernels.take_columns(passed.pre_BN, dead)
    a = how.kernels.keep_rows(columns, min(aux.k, n_dead))
    W_dec = weights.W_dec_ND[dead].to(how.dtype)
    # the residual after the dead latents' reconstruction, with the opposite sign
    ra = how.spread.over_latents((a @ W_dec).float()).sub_(passed.residuals[-1])
    loss = aux.coef * how.spread.row_mean(ra.square())
    G = ra * (2 * aux.coef / numel)
    Gh = G.to(how.dtype)
    da = (Gh @ W_dec.t()).mul_(a > 0)
    return (
        loss,
        G,
        (a.t() @ Gh).float(),
        (da.t() @ passed.xc_BD.to(how.dtype)).float(),
        da.sum(0, dtype=torch.float32),
        dead,
    )
