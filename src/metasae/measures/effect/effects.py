"""Per-token numbers of what a replaced activation does to a model's output, and their means with blocks of documents left out."""

import copy
import math

import numpy as np
from torch import Tensor, nn

from metasae.errors import UserError
from metasae.measures.effect.vocabulary import predictions
from metasae.measures.firing.blocks import document_blocks


class Columns:
    """Named numbers per unit (a token or a window) with the document each unit is of."""

    def __init__(self):
        self.documents: list[np.ndarray] = []
        self.parts: dict[str, list[np.ndarray]] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.double().cpu().numpy())

    @property
    def n_units(self) -> int:
        return sum(map(len, self.documents))

    def means(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """(means over all units, means without each block of documents in turn)."""
        documents = np.concatenate(self.documents)
        order = np.argsort(documents, kind="stable")
        blocks = document_blocks(documents[order])
        sizes = np.bincount(blocks)
        sums = {name: np.bincount(blocks, np.concatenate(parts)[order]) for name, parts in self.parts.items()}
        everything = {name: float(total.sum() / sizes.sum()) for name, total in sums.items()}
        left = sizes.sum() - sizes
        if len(sizes) < 2:
            return everything, []
        return everything, [
            {name: float((total.sum() - total[block]) / left[block]) for name, total in sums.items()}
            for block in range(len(sizes))
        ]


class _Effect:
    def __init__(self):
        self.columns = Columns()

    def copy(self):
        """For another SAE on the same reference."""
        out = copy.copy(self)
        out.columns = _copied(self.columns)
        return out

    @property
    def n_tokens(self) -> int:
        return self.columns.n_units


def _copied(columns: Columns) -> Columns:
    out = Columns()
    out.documents, out.parts = columns.documents, {name: list(parts) for name, parts in columns.parts.items()}
    return out


def _with_blocks(number, *columns: Columns) -> dict:
    """number(means) -> {key: value}; the same of the means without each block, under `leave_one_out`."""
    found = [each.means() for each in columns]
    everything = number({name: value for means, _ in found for name, value in means.items()})
    n_blocks = min(len(blocks) for _, blocks in found)
    left_out = [
        number({name: value for _, blocks in found for name, value in blocks[block].items()})
        for block in range(n_blocks)
    ]
    return {
        **everything,
        "leave_one_out": {key: [each[key] for each in left_out] for key in everything} if n_blocks else {},
    }


class EncoderEffect(_Effect):
    """Cosine distances of the last hidden state, per token and of its mean over each window."""

    def __init__(self):
        super().__init__()
        self.windows = Columns()

    def copy(self):
        out = super().copy()
        out.windows = _copied(self.windows)
        return out

    def reference(
        self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor, documents: np.ndarray
    ) -> None:
        """clean, changed: [b, t, D]; ids, mask, own: [b, t]; documents [b]."""
        self.columns.documents.append(np.repeat(documents, own.sum(1).numpy()))
        self.windows.documents.append(documents)
        self.add(clean, changed, ids, mask, own)

    def add(self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor) -> None:
        mask, own, clean = mask.to(clean.device), own.to(clean.device), clean.double()
        for name, state in changed.items():
            state = state.double()
            self.columns.add({name: 1 - nn.functional.cosine_similarity(clean, state, dim=-1)[own]})
            self.windows.add(
                {name: 1 - nn.functional.cosine_similarity(_pooled(clean, mask), _pooled(state, mask), dim=-1)}
            )

    def check(self) -> None:
        """Hidden states have no number that says whether they are plausible."""

    def result(self) -> dict:
        if not self.n_tokens:
            return {}
        tokens, windows = _renamed(self.columns, "token"), _renamed(self.windows, "window")
        return _with_blocks(_distances, tokens, windows)


def _renamed(columns: Columns, prefix: str) -> Columns:
    out = _copied(columns)
    out.parts = {f"{prefix}/{name}": parts for name, parts in columns.parts.items()}
    return out


def _distances(means: dict[str, float]) -> dict:
    endings = {"sae": "", "mean": "_mean_ablated", "zero": "_zero_ablated", "batch_topk": "_batch_topk"}
    kinds = {"token": "output_cosine_distance", "window": "output_cosine_distance_pooled"}
    return {
        kinds[kind] + endings[name]: value
        for (kind, name), value in ((key.split("/"), value) for key, value in means.items())
    }


def _pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """[b, t, D], mask [b, t] -> mean over a window's tokens [b, D]. A positive factor leaves the cosine as it is."""
    return (hidden * mask[..., None]).sum(1)


class CausalEffect(_Effect):
    """Cross-entropy of the next token and its divergence from the clean prediction. readout: see `metasae.data.model.readout`."""

    def __init__(self, readout):
        super().__init__()
        self.readout = readout

    def reference(
        self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor, documents: np.ndarray
    ) -> None:
        """clean, changed: [b, t, D]; ids, mask, own: [b, t]; documents [b]."""
        self.columns.documents.append(np.repeat(documents, _scored(own).sum(1).numpy()))
        self._add(clean, changed, ids, own, ("ce_clean",))

    def add(self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor) -> None:
        self._add(clean, changed, ids, own, ())

    def _add(self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, own: Tensor, more: tuple[str, ...]) -> None:
        where = _scored(own).to(clean.device)
        hidden = {name: state[:, :-1][where] for name, state in {"clean": clean, **changed}.items()}
        found = predictions(self.readout, hidden, ids[:, 1:].to(clean.device)[where])
        ce = {f"ce_{name}": value for name, value in found.ce.items()}
        self.columns.add({name: value for name, value in ce.items() if name != "ce_clean" or name in more})
        self.columns.add({f"kl_{name}": value for name, value in found.kl.items()})

    def check(self) -> None:
        """Refuses a model that predicts worse than chance, and one whose cross-entropy is no number."""
        if self.n_tokens and not (clean := float(np.concatenate(self.columns.parts["ce_clean"]).mean())) <= (
            limit := math.log(self.readout.n_vocabulary)
        ):
            raise UserError(
                f"the model's own cross-entropy is {clean:.2f} nats, worse than guessing ({limit:.2f}); "
                "check model.name, model.dtype and that the cache was harvested with this model"
            )

    def result(self) -> dict:
        return _with_blocks(_cross_entropies, self.columns) if self.n_tokens else {}


def _scored(own: Tensor) -> Tensor:
    """Position t predicts token t + 1; both must be the document's own, so the prediction made at BOS is left out. [b, t - 1]."""
    return own[:, :-1] & own[:, 1:]


def _cross_entropies(mean: dict[str, float]) -> dict:
    clean, zero = mean["ce_clean"], mean["ce_zero"]
    out = {
        "ce_clean": clean,
        "ce_mean": mean["ce_mean"],
        "ce_zero": zero,
        "kl_mean": mean["kl_mean"],
        "kl_zero": mean["kl_zero"],
    }
    for name, ending in (("sae", ""), ("batch_topk", "_batch_topk")):
        if f"ce_{name}" not in mean:
            continue
        ce = mean[f"ce_{name}"]
        out |= {
            f"ce_sae{ending}": ce,
            f"ce_delta{ending}": ce - clean,
            f"ce_delta_percent{ending}": 100 * (ce - clean) / clean if clean else None,
            f"ce_recovered{ending}": (zero - ce) / (zero - clean) if zero != clean else None,
            f"kl{ending}": mean[f"kl_{name}"],
        }
    return out
