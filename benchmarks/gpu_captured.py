"""A primary step with its penalty as one CUDA graph: what is left of the step's time when nothing is launched by the
host.

Every shape is fixed beforehand and nothing is waited for: searches are proposals, and what they found is looked at
after the step (`enough`). For the time only: the step is the paper's (BatchTopK, no dead latents) at a learning rate of
0.
"""

import torch

from metasae.sae.kernels import kernels
from metasae.train.trainer import Trainer


class CapturedStep:
    """primary_step(x) of a trainer in its state at the start; x [B, d] of the recipe's batch."""

    # no meta steps
    meta = None

    def __init__(self, trainer: Trainer):
        self.trainer, self.triton = trainer, kernels("triton")
        self.dtype, weights = trainer.how.dtype, trainer.primary.weights
        B, device = trainer.recipe.train.batch, weights.W_dec_ND.device
        self.x = torch.zeros(B, trainer.d, device=device)
        self.cut, self.probe_cut = torch.zeros(1, device=device), torch.zeros(1, device=device)
        self.found, self.graph, self.ready = (), None, False

    def primary_step(self, x: torch.Tensor) -> None:
        self.x.copy_(x)
        if not self.ready:
            self._prepare()
            self.ready = True
        # on a CPU there is nothing to capture
        (self.graph.replay if self.graph else self._step)()

    def enough(self) -> bool:
        """Whether the last step's searches found what they should, waited for."""
        return all(
            proposal.kept.values.numel() <= int(proposal.n_above) <= proposal.capacity for proposal in self.found
        )

    def _prepare(self) -> None:
        """First cuts, a few steps on the side so that every kernel is compiled, then the capture."""
        primary, meta = self.trainer.primary.weights, self.trainer.meta
        keep = self.trainer.recipe.sae.k * self.x.shape[0]
        self.cut.fill_(
            self.triton.encode_select(
                self.x - primary.b_dec_D, primary.W_enc_ND, primary.b_enc_N, keep, 0.0, self.dtype
            )[1]
        )
        self.probe_cut.fill_(
            self.triton.add_penalty(primary.W_dec_ND, meta.weights, meta.k, 0.0, True, self.dtype, 1.0, 0.0)[1]
        )
        if not torch.cuda.is_available():
            return
        self.trainer.primary.optimiser.adam.param_groups[0]["capturable"] = True
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    @torch.no_grad()
    def _step(self) -> None:
        triton, trainer, weights = self.triton, self.trainer, self.trainer.primary.weights
        (B, d), meta, train = self.x.shape, self.trainer.meta, self.trainer.recipe.train
        xc = self.x - weights.b_dec_D
        proposal = triton.encode_propose(
            xc, weights.W_enc_ND, weights.b_enc_N, trainer.recipe.sae.k * B, self.cut, self.dtype
        )
        residual, _, dots = triton.residual(proposal.kept, weights.W_dec_ND, xc)
        G, dz = residual * (-2 / (B * d)), dots * (-2 / (B * d))
        dW_dec, dW_enc = triton.latent_rows(proposal.kept, (proposal.kept.values, dz), (G, xc))
        db_dec = G.sum(0) - proposal.kept.latent_sums(dz) @ weights.W_enc_ND
        rows, mean, std = triton.normalised(weights.W_dec_ND, meta.weights.b_dec_D, 1e-5, self.dtype)
        own = triton.encode_propose(
            rows, meta.weights.W_enc_ND, None, meta.k * rows.shape[0], self.probe_cut, self.dtype
        )
        triton.penalise(
            weights.W_dec_ND,
            own.kept,
            meta.weights.W_dec_ND,
            meta.weights.b_dec_D,
            mean,
            std,
            train.sigma_sq,
            train.lambda2,
            None,
            dW_dec,
        )
        gradients = type(weights)(
            dW_enc, dW_dec, db_dec, None if weights.b_enc_N is None else torch.zeros_like(weights.b_enc_N)
        )
        trainer.primary.optimiser.step(gradients, 0.0)
        self.cut.copy_(proposal.cut[None])
        self.probe_cut.copy_(own.cut[None])
        self.found = (proposal, own)
