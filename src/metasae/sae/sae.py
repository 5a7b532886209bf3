"""One sparse autoencoder class, used for the primary SAE and for the meta SAE.

Shapes: B tokens (any leading shape), D input width d, N latents n.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import metasae
from metasae.errors import UserError
from metasae.sae.kernels import fast, reference

TOKEN_EPS = 1e-5


@dataclass(frozen=True)
class Codes:
    """Latent activations, with what decoding them needs (`SAE.codes`, `SAE.decode`).

    acts: [..., n]. mean, std: [..., 1] of each token where the SAE normalises per token, else None.
    """

    acts: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None


@dataclass
class SAEConfig:
    """What the weights do not contain. metadata: where the SAE comes from, in any keys: recipe, seed, hook, model.

    normalize: "none"; "token" (see `token_normalise`); "token_eps", which is undone by y * (std + eps) + mean instead.
    rule: "threshold": a latent fires where pre > threshold; "topk": of these latents the k largest of each token fire.
    """

    d_in: int
    d_sae: int
    architecture: str = "batchtopk"
    k: int = 1
    normalize: str = "none"
    metadata: dict = field(default_factory=dict)
    rule: str = "threshold"


class SAE(nn.Module):
    """z = relu(pre) * (pre > threshold),  pre = (norm(x) - b_dec) W_enc + b_enc;   x_hat = unnorm(z W_dec + b_dec).

    W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], threshold [n] (None until calibrated). Rows of W_dec have unit
    length in SAEs that metasae trained; rows of other libraries' SAEs keep their lengths. Rule "topk" keeps the k
    largest z of each token, ties to the lower latent. It needs no calibration, as its thresholds are 0. W_enc is stored
    as its transpose, so that a latent's encoder column is contiguous, as its decoder row is.
    """

    def __init__(self, config: SAEConfig):
        super().__init__()
        if config.normalize not in ("none", "token", "token_eps"):
            raise ValueError(
                f"normalize must be 'none', 'token' or 'token_eps', not '{config.normalize}'; fold a global scale "
                "with `scaled`"
            )
        if config.rule not in ("threshold", "topk"):
            raise ValueError(f"rule must be 'threshold' or 'topk', not '{config.rule}'")
        d, n = config.d_in, config.d_sae
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(n, d).t(), requires_grad=False)
        self.b_enc = nn.Parameter(torch.zeros(n), requires_grad=False)
        self.W_dec = nn.Parameter(torch.zeros(n, d), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(d), requires_grad=False)
        # a buffer moves between devices with the weights; not persistent, as `save` writes it separately
        self.threshold: Tensor | None
        self.register_buffer("threshold", torch.zeros(n) if config.rule == "topk" else None, persistent=False)
        # [n], of an SAE that was trained with a margin and is not calibrated yet: how far each threshold is to lie
        # above the common one. Calibration adds it to the thresholds
        self.offset: Tensor | None = None

    @classmethod
    def load(cls, folder) -> "SAE":
        """Reads a folder with cfg.json and sae_weights.safetensors; see `metasae.sae.folder.load`. `metasae.load` also
        reads runs, arms and addresses.
        """
        from metasae.sae.folder import load

        return load(folder)

    def save(self, folder) -> None:
        """Writes cfg.json and sae_weights.safetensors; see `metasae.sae.folder.save`."""
        from metasae.sae.folder import save

        save(self, folder)

    @property
    def n_latents(self) -> int:
        return self.config.d_sae

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Kaiming-uniform columns of length 1 as decoder rows, W_enc = W_dec^T, zero biases."""
        n, d = self.W_dec.shape
        bound = (6.0 / d) ** 0.5
        rows = torch.rand(n, d, generator=generator) * (2 * bound) - bound
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.t())
        self.b_enc.zero_()
        self.b_dec.zero_()

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [..., d] in the model's units -> (normalised x [..., d], mean [..., 1], std [..., 1]); the last two undo it
        and are None without normalisation.
        """
        if self.config.normalize == "none":
            return x, None, None
        x, mean, std = token_normalise(x)
        return x, mean, std + TOKEN_EPS if self.config.normalize == "token_eps" else std

    def pre_activations(self, x: Tensor) -> Tensor:
        """x [..., d], already normalised -> pre [..., n]."""
        return torch.addmm(self.b_enc, (x - self.b_dec).reshape(-1, x.shape[-1]), self.W_enc).view(
            *x.shape[:-1], self.W_enc.shape[1]
        )

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d] in the model's units -> activations [..., n] at the calibrated threshold, by the SAE's rule.

        The activations are in the weights' dtype. They are all that `decode` needs, unless the SAE normalises each
        token (`normalize` is not "none"): then `codes` gives them with each token's mean and std. Raises UserError for
        x of another width or with a NaN or inf, ValueError when the SAE has no threshold yet.
        """
        self._refuse_not_finite(x)
        return self.codes(x).acts

    def codes(self, x: Tensor) -> Codes:
        """As `encode`, with the mean and std of each token where the SAE normalises tokens, so that `decode` can undo
        it.

        It does not check for NaN: a token with a NaN has no activation above 0.
        """
        if self.threshold is None:
            raise ValueError("this SAE has no threshold yet: calibrate it first (metasae.measures.firing.calibrate)")
        if x.shape[-1] != self.config.d_in:
            raise UserError(f"x has the width {x.shape[-1]}, and this SAE reads vectors of width {self.config.d_in}")
        x, mean, std = self.normalise(x.to(self.W_enc.dtype))
        pre = self.pre_activations(x)
        acts = torch.where(pre > self.threshold, pre, 0).relu_()
        return Codes(largest_of_rows(acts, self.config.k) if self.config.rule == "topk" else acts, mean, std)

    def decode(self, acts: Tensor | Codes) -> Tensor:
        """acts [..., n], or codes -> x_hat [..., d] in the model's units.

        Raises UserError for another width, and for activations alone where the SAE normalises each token.
        """
        codes = acts if isinstance(acts, Codes) else Codes(acts)
        if codes.acts.shape[-1] != self.config.d_sae:
            raise UserError(
                f"the activations have the width {codes.acts.shape[-1]}, and this SAE has {self.config.d_sae} latents"
            )
        if codes.mean is None and self.config.normalize != "none":
            raise UserError(
                "this SAE normalises each token, so its activations alone do not tell the output's mean and scale: "
                "use codes = sae.codes(x), change codes.acts as you like, and sae.decode(codes)"
            )
        out = codes.acts @ self.W_dec + self.b_dec
        return out if codes.mean is None else out * codes.std + codes.mean

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> x_hat [..., d], both in the model's units. Raises as `encode` does."""
        self._refuse_not_finite(x)
        return self.decode(self.codes(x))

    def latents(self, text: str, model=None, **options):
        """The latents that fire at each token of a text: `metasae.latents(sae, text, ...)`, with the same arguments.

        That function runs the model that this SAE's metadata name. It lies in a room above this one, so it is called by
        its public name.
        """
        return metasae.latents(self, text, model, **options)

    def __repr__(self) -> str:
        """One line: which SAE, its size, where it reads, k and threshold."""
        config, notes = self.config, self.config.metadata.get("metasae")
        # in another library's file this key may have any value
        ours = isinstance(notes, dict) and {"arm", "seed"} <= notes.keys()
        which = f"{notes['arm']}-s{notes['seed']}: " if ours else ""
        size = f"{config.d_sae:,} latents of width {config.d_in:,}, {config.architecture}"
        parts = [size, *self._place_in_words(), f"k {config.k}", self._threshold_in_words()]
        return f"SAE({which}{', '.join(parts)})"

    def _place_in_words(self) -> list[str]:
        """Hook point and model, as far as the metadata name them."""
        notes = self.config.metadata
        if notes.get("dataset_path") == "planted":
            return ["of a planted world"]
        named = (("at", "hook_name"), ("of", "model_name"))
        return [f"{word} {notes[key]}" for word, key in named if notes.get(key)]

    def _threshold_in_words(self) -> str:
        if self.threshold is None:
            return "no threshold yet"
        if self.config.rule == "topk":
            return "keeps the k largest of each token"
        least, most = float(self.threshold.min()), float(self.threshold.max())
        return f"threshold {least:.4g}" if least == most else f"thresholds {least:.4g} to {most:.4g}"

    def _refuse_not_finite(self, x: Tensor) -> None:
        # a sum that is not finite has a term that is not finite, or overflows; the terms themselves decide
        if not torch.isfinite(x.sum(dtype=torch.float32)):
            bad = torch.nonzero(~torch.isfinite(x))
            if len(bad):
                raise UserError(f"x{bad[0].tolist()} is NaN or inf, as are {len(bad) - 1:,} more of its numbers")

    @torch.no_grad()
    def scaled(self, scale: float) -> "SAE":
        """The same SAE for inputs x, after training on scale * x. Decoder rows keep unit length.

        Dividing the decoder by the scale would change the length of its rows, so the activations are divided: W_enc is
        unchanged, biases and thresholds are divided by the scale, and activations are in the model's units. Raises
        ValueError for a scale that is not positive, and for a scale other than 1 where each token is normalised.
        """
        if not scale > 0:
            raise ValueError(f"a scale must be positive, not {scale}")
        if self.config.normalize != "none" and scale != 1:
            raise ValueError("an SAE that normalises each token does not see a scale of its inputs")
        out = SAE(replace(self.config, metadata=dict(self.config.metadata))).to(self.W_dec)
        out.W_enc.copy_(self.W_enc)
        out.W_dec.copy_(self.W_dec)
        out.b_enc.copy_(self.b_enc / scale)
        out.b_dec.copy_(self.b_dec / scale)
        out.threshold = None if self.threshold is None else self.threshold / scale
        return out


def largest_of_rows(acts: Tensor, k: int) -> Tensor:
    """acts [..., n] >= 0 -> the k largest of each row, ties to the lower latent; zero elsewhere."""
    # the fast kernel reads the numbers' bits in numpy, so it takes no gradients and no other dtypes
    kernels = fast if acts.dtype in (torch.float32, torch.bfloat16) and not acts.requires_grad else reference
    return kernels.keep_rows(acts.reshape(-1, acts.shape[-1]), k).view(acts.shape)


def token_normalise(x: Tensor, eps: float = TOKEN_EPS) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., d] -> ((x - mean) / (std + eps) [..., d], mean [..., 1], std [..., 1]), std with d - 1. It is undone by
    y * std + mean, without eps, as in SAELens.
    """
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    # Five times faster than Tensor.std along rows, and the same number. Rows are centred a second time, as in std:
    # otherwise the rounding error of the first mean would count as spread in a constant row.
    spread = centred - centred.mean(dim=-1, keepdim=True)
    std = torch.linalg.vector_norm(spread, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
    return centred / (std + eps), mean, std
