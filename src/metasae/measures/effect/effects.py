"""Per-token numbers of what a replaced activation does to a model's output, and their means with blocks of documents
left out."""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from metasae.errors import UserError
from metasae.measures.effect.vocabulary import ReadOut, predictions
from metasae.measures.firing.blocks import document_blocks

ENCODER_ENDINGS = {"sae": "", "mean": "_mean_ablated", "zero": "_zero_ablated", "batch_topk": "_batch_topk"}
CAUSAL_ENDINGS = {"sae": "", "batch_topk": "_batch_topk"}


@dataclass
class Columns:
    """Named numbers per unit (a token or a window) with the document each unit is of, in pieces."""

    documents: list[np.ndarray] = field(default_factory=list)
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.double().cpu().numpy())

    def copy(self) -> "Columns":
        return Columns(self.documents, {name: list(parts) for name, parts in self.parts.items()})

    def means(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """(means over all units, means without each block of documents in turn; none where there is a single block)."""
        documents = np.concatenate(self.documents)
        order = np.argsort(documents, kind="stable")
        blocks = document_blocks(documents[order])
        sizes = np.bincount(blocks)
        sums = {name: np.bincount(blocks, np.concatenate(parts)[order]) for name, parts in self.parts.items()}
        everything = {name: float(total.sum() / sizes.sum()) for name, total in sums.items()}
        left = sizes.sum() - sizes
        return everything, [
            {name: float((total.sum() - total[block]) / left[block]) for name, total in sums.items()}
            for block in range(len(sizes) if len(sizes) > 1 else 0)
        ]


class _Effect:
    """columns: for each kind of unit, the first of which are tokens."""

    def __init__(self, kinds: int):
        self.columns = [Columns() for _ in range(kinds)]

    def copy(self) -> "_Effect":
        """For another SAE on the same reference."""
        other = copy.copy(self)
        other.columns = [columns.copy() for columns in self.columns]
        return other

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.columns[0].documents))

    def add(
        self,
        clean: Tensor,
        changed: dict[str, Tensor],
        ids: Tensor,
        mask: Tensor,
        own: Tensor,
        documents: np.ndarray | None = None,
    ) -> None:
        """A batch of windows. clean, changed: [b, t, D]; ids, mask, own: [b, t].

        documents: [b], of the windows; given with the first changes, and not with further ones of the same windows.
        """
        if documents is not None:
            for columns, of_units in zip(self.columns, self._documents(own, documents), strict=True):
                columns.documents.append(of_units)
        for columns, values in zip(self.columns, self._values(clean, changed, ids, mask, own), strict=True):
            if documents is None:
                values.pop("ce_clean", None)
            columns.add(values)

    def check(self) -> None:
        """Refuses a reference that no model that reads its text gives; nothing where no number says so."""

    def result(self) -> dict:
        """Key -> number; `leave_one_out`: key -> the number without each block of documents in turn.

        Empty without tokens.
        """
        if not self.n_tokens:
            return {}
        means = [columns.means() for columns in self.columns]
        everything = self._numbers(*(whole for whole, _ in means))
        left_out = [self._numbers(*blocks) for blocks in zip(*(without for _, without in means), strict=False)]
        without = {key: [numbers[key] for numbers in left_out] for key in everything} if left_out else {}
        return {**everything, "leave_one_out": without}


class EncoderEffect(_Effect):
    """Cosine distances of the last hidden state, per token and of its mean over each window."""

    def __init__(self):
        super().__init__(kinds=2)

    def _documents(self, own: Tensor, documents: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.repeat(documents, own.sum(1).numpy()), documents

    def _values(
        self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor
    ) -> tuple[dict[str, Tensor], ...]:
        mask, own, clean = mask.to(clean.device)[..., None], own.to(clean.device), clean.double()
        states = {name: state.double() for name, state in changed.items()}
        # the sum over a window: a positive factor leaves the cosine as it is
        return (
            {name: _cosine_distance(clean, state)[own] for name, state in states.items()},
            {name: _cosine_distance((clean * mask).sum(1), (state * mask).sum(1)) for name, state in states.items()},
        )

    def _numbers(self, tokens: dict[str, float], windows: dict[str, float]) -> dict[str, float]:
        key = "output_cosine_distance"
        return {
            **{key + ENCODER_ENDINGS[name]: value for name, value in tokens.items()},
            **{f"{key}_pooled" + ENCODER_ENDINGS[name]: value for name, value in windows.items()},
        }


def _cosine_distance(clean: Tensor, changed: Tensor) -> Tensor:
    return 1 - nn.functional.cosine_similarity(clean, changed, dim=-1)


class CausalEffect(_Effect):
    """Cross-entropy of the next token and its divergence from the clean prediction.

    readout: see `metasae.data.model.readout`.
    """

    def __init__(self, readout: ReadOut):
        super().__init__(kinds=1)
        self.readout = readout

    def _documents(self, own: Tensor, documents: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.repeat(documents, _scored(own).sum(1).numpy()),)

    def _values(
        self, clean: Tensor, changed: dict[str, Tensor], ids: Tensor, mask: Tensor, own: Tensor
    ) -> tuple[dict[str, Tensor], ...]:
        where = _scored(own).to(clean.device)
        hidden = {name: state[:, :-1][where] for name, state in {"clean": clean, **changed}.items()}
        ce, kl = predictions(self.readout, hidden, ids[:, 1:].to(clean.device)[where])
        ce = {f"ce_{name}": value for name, value in ce.items()}
        return (ce | {f"kl_{name}": value for name, value in kl.items()},)

    def check(self) -> None:
        """Refuses a model that predicts worse than chance, and one whose cross-entropy is no number."""
        if not self.n_tokens:
            return
        clean, limit = self.columns[0].means()[0]["ce_clean"], math.log(self.readout.n_vocabulary)
        if not clean <= limit:
            raise UserError(
                f"the model's own cross-entropy is {clean:.2f} nats, worse than guessing ({limit:.2f}); "
                "check model.name, model.dtype and that the cache was harvested with this model"
            )

    def _numbers(self, mean: dict[str, float]) -> dict[str, float | None]:
        clean, zero = mean["ce_clean"], mean["ce_zero"]
        numbers = {name: mean[name] for name in ("ce_clean", "ce_mean", "ce_zero", "kl_mean", "kl_zero")}
        for name, ending in CAUSAL_ENDINGS.items():
            if f"ce_{name}" not in mean:
                continue
            ce = mean[f"ce_{name}"]
            numbers |= {
                f"ce_sae{ending}": ce,
                f"ce_delta{ending}": ce - clean,
                f"ce_delta_percent{ending}": 100 * (ce - clean) / clean if clean else None,
                f"ce_recovered{ending}": (zero - ce) / (zero - clean) if zero != clean else None,
                f"kl{ending}": mean[f"kl_{name}"],
            }
        return numbers


def _scored(own: Tensor) -> Tensor:
    """Position t predicts token t + 1; both must be the document's own, so the prediction made at BOS is left out. [b,
    t - 1]."""
    return own[:, :-1] & own[:, 1:]
