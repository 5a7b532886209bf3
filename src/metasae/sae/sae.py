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
    """What a weight file does not say. `metadata` is free provenance: recipe, seed, hook, model.

    normalize: "none"; "token" (see `token_normalise`); "token_eps", the same but undone by y * (std + eps) + mean.
    rule: "threshold", a latent fires where pre > threshold; "topk", of those only the k largest of each token.
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
    length where we trained them; those of other libraries are kept as they are. Rule "topk" keeps the k largest z of
    each token, ties to the lower latent; it needs no calibration, its thresholds are 0. W_enc lies in memory as its
    transpose, so that a latent's encoder column is contiguous like its decoder row.
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
        # a buffer, so that it moves with the weights; the weight file's writer adds it by itself
        self.threshold: Tensor | None
        self.register_buffer("threshold", torch.zeros(n) if config.rule == "topk" else None, persistent=False)
        # [n], of an SAE fresh from training with a margin: how far each threshold is to lie above the common one.
        # Calibration makes it a part of the thresholds
        self.offset: Tensor | None = None

    @classmethod
    def load(cls, folder) -> "SAE":
        """Reads a folder with cfg.json and sae_weights.safetensors; see `metasae.sae.folder.load`. `metasae.load` reads
        runs, arms and addresses too.
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
        """x [..., d] in the model's units -> (x [..., d] as the weights see it, mean [..., 1], std [..., 1] to undo it
        with).
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

        They are computed in the weights' dtype, and are all that `decode` needs, unless the SAE normalises each token
        (`normalize` is not "none"): then `codes` gives them with the mean and std to undo that. Raises UserError for
        another width and for a NaN or inf, ValueError when the SAE has no threshold yet.
        """
        self._refuse_not_finite(x)
        return self.codes(x).acts

    def codes(self, x: Tensor) -> Codes:
        """As `encode`, with the mean and std of each token where the SAE normalises them, so that `decode` can undo it.

        It does not look for NaN: a token that holds one has no activation above 0.
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
        """What fires at each token of a text: `metasae.latents(sae, text, ...)`, whose arguments it takes.

        That function reads the text with the model that this SAE's notes name, so it lies in a room above this one, and
        is reached by its public name.
        """
        return metasae.latents(self, text, model, **options)

    def __repr__(self) -> str:
        """One line: which SAE, its size, where it reads, k and threshold."""
        config, notes = self.config, self.config.metadata.get("metasae")
        # files of other making may hold anything there
        ours = isinstance(notes, dict) and {"arm", "seed"} <= notes.keys()
        which = f"{notes['arm']}-s{notes['seed']}: " if ours else ""
        size = f"{config.d_sae:,} latents of width {config.d_in:,}, {config.architecture}"
        parts = [size, *self._place_in_words(), f"k {config.k}", self._threshold_in_words()]
        return f"SAE({which}{', '.join(parts)})"

    def _place_in_words(self) -> list[str]:
        """Hook point and model, as far as the notes name them."""
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
        # a sum is finite only when every term is, or when it overflows, which the second look tells apart
        if not torch.isfinite(x.sum(dtype=torch.float32)):
            bad = torch.nonzero(~torch.isfinite(x))
            if len(bad):
                raise UserError(f"x{bad[0].tolist()} is NaN or inf, as are {len(bad) - 1:,} more of its numbers")

    @torch.no_grad()
    def scaled(self, scale: float) -> "SAE":
        """The same SAE for inputs that come unscaled: it was trained on scale * x. Decoder rows keep unit length.

        The decoder's 1/scale would break unit rows, so it goes to the activations: W_enc is unchanged,
        biases and thresholds are divided by the scale, and activations come out in the model's units.
        Raises ValueError for a scale that is not positive, and for any but 1 where each token is normalised anyway.
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
    # the fast twin reads the numbers' bits in numpy, which knows neither gradients nor other types
    kernels = fast if acts.dtype in (torch.float32, torch.bfloat16) and not acts.requires_grad else reference
    return kernels.keep_rows(acts.reshape(-1, acts.shape[-1]), k).view(acts.shape)


def token_normalise(x: Tensor, eps: float = TOKEN_EPS) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / (std + eps) per row, std with n - 1. Undone by y * std + mean, without eps, as SAELens does. [...,
    d].
    """
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    # Five times faster than Tensor.std along rows, and the same number. Centred once more, as std does: in a constant
    # row what the first mean leaves of rounding would otherwise count as spread.
    spread = centred - centred.mean(dim=-1, keepdim=True)
    std = torch.linalg.vector_norm(spread, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
    return centred / (std + eps), mean, std
