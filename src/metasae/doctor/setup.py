"""A recipe on a number of GPUs of one kind: what a rank holds and sends and how long its step takes, by arithmetic.

    floor of a step = sum over parts of max(products / FLOP/s, bytes / bandwidth) + bytes sent / link     (`floors`, `parallel.traffic`)
    slow end        = (the same with gathered rows from memory) / efficiency + MESSAGE seconds per message

Nothing overlaps in either, as in the code.
"""

from dataclasses import dataclass, replace

from metasae.doctor.cards import Card, check_count
from metasae.doctor.estimate import BYTES, Needs, needs, weight_bytes
from metasae.doctor.floors import Part, above_of, floor_of, parts_of
from metasae.doctor.presence import Shape
from metasae.ranks.shards import own_latents
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.traffic import Traffic, bytes_per_step, charged_penalties, n_prefixes

Span = tuple[float, float]
# Seconds that a message between ranks takes however short it is: the order of what collectives take within one machine.
MESSAGE = 20e-6
# Bytes of a GPU that no tensor of ours can have: CUDA's context, libraries' workspaces, buffers of messages, pieces.
RESERVE = 1.5e9


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's GPU. weights: with Adam's moments and gradients, of its latents. meta: likewise of the meta SAE, whole on every rank.

    passing: of a step. model, forward: the language model, which stays, and a batch through it. gather: the whole SAE, brought together
    on the first rank at an arm's end. at_once: whether the first rank harvests the next window while it trains.
    """

    weights: int
    meta: int
    passing: int
    gather: int
    model: int
    forward: int
    at_once: bool

    @property
    def training(self) -> int:
        return self.weights + self.meta + self.passing

    @property
    def other(self) -> int:
        """Peak of a rank that is not the first."""
        return self.model + max(self.forward, self.training)

    @property
    def first(self) -> int:
        """Peak of the first rank. No gradients are there when the SAE is brought together."""
        gathering = (self.weights + self.meta) * 3 // 4 + self.gather
        if self.at_once:
            return self.model + self.forward + max(self.training, gathering)
        return max(self.other, self.model + gathering)


@dataclass(frozen=True)
class Step:
    """Seconds of an arm's primary step with its share of meta steps. computing, sending: at least. slow: the upper end of both."""

    computing: float
    sending: float
    slow: float

    @property
    def floor(self) -> float:
        return self.computing + self.sending

    @property
    def span(self) -> Span:
        """(least, most)."""
        return self.floor, self.slow


def refuse_unusable(recipe: Recipe, gpus: int) -> None:
    """Raises UserError for what training on so many ranks would refuse: too many, a meta SAE that cannot be spread."""
    check_count(gpus)
    if gpus == 1:
        return
    from metasae.train.sharded.trainer import refuse_meta

    own_latents(recipe.sae.n, gpus, 0)
    if any(recipe.has_meta(arm) for arm in recipe.arms):
        refuse_meta(recipe.meta.architecture)


@dataclass(frozen=True)
class Setup:
    """efficiency: the share of the card's rates that the slow end counts with. shape: of the recipe's language model."""

    recipe: Recipe
    gpus: int
    card: Card
    efficiency: float
    shape: Shape

    def with_gpus(self, gpus: int) -> "Setup":
        """The same on another number of GPUs."""
        return replace(self, gpus=gpus)

    @property
    def arm(self) -> str:
        """The recipe's costliest arm."""
        return max(self.recipe.arms, key=lambda each: (self.recipe.has_meta(each), each == "joint"))

    @property
    def width(self) -> int:
        """Bytes per number of the dense products. Every card that is listed multiplies bf16."""
        return 4 if self.recipe.train.dtype == "fp32" else 2

    @property
    def model_width(self) -> int:
        """Bytes per number of the language model."""
        return BYTES.get(self.recipe.model.dtype, 2)

    @property
    def needs(self) -> Needs:
        """Of the first rank, and of the disks."""
        model = self.shape.numbers * self.model_width
        return needs(self.recipe, self.shape.d, model, self.shape.vocabulary, self.width, on_gpu=True, ranks=self.gpus)

    @property
    def memory(self) -> Memory:
        found = self.needs
        weights, meta = weight_bytes(self.recipe, self.shape.d, self.gpus)
        # W_enc whole, and W_dec twice while its parts are put together
        gather = 3 * 4 * self.recipe.sae.n * self.shape.d if self.gpus > 1 else 0
        passing = found.train - weights - meta + self._all_rows
        return Memory(weights, meta, passing, gather, found.model, found.forward, found.windows > 0)

    @property
    def host_memory(self) -> int:
        """Bytes of the processor's memory, all ranks on one machine. A rank is a program that draws the whole SAE before it keeps its part."""
        found = self.needs
        drawn = 8 * self.recipe.sae.n * self.shape.d
        return found.memory + (self.gpus - 1) * (found.process + max(found.harvest, drawn))

    @property
    def harvest(self) -> Span | None:
        """Seconds of the harvest, all ranks together but for windows, which are the first's; None where its products are not known."""
        recipe, flops = self.recipe, self.shape.flops
        if flops is None:
            return None
        tokens = recipe.split_tokens
        alone = tokens["train"] if recipe.harvest.window_tokens else 0
        seconds = (alone + (sum(tokens.values()) - alone) / self.gpus) * flops / self.card.flops(self.model_width)
        return seconds, seconds / self.efficiency

    @property
    def fits(self) -> bool:
        return self.memory.first + RESERVE <= self.card.memory

    def parts(self, arm: str) -> list[Part]:
        """Of an arm's step on one rank."""
        return parts_of(self.recipe, self.shape.d, arm, self.gpus)

    @property
    def traffic(self) -> Traffic:
        return bytes_per_step(self.recipe, self.shape.d, self.gpus, self.width == 2, BYTES[self.recipe.harvest.dtype])

    def sent(self, arm: str) -> float:
        """Bytes that a rank sends per primary step of an arm with its share of meta steps."""
        traffic = self.traffic
        penalty = traffic.primary["meta threshold"] * (arm != "joint" or not self.recipe.has_meta(arm))
        further = sum(traffic.further.values()) / self.recipe.train.penalty_every * (arm == "joint")
        return sum(traffic.primary.values()) - penalty + further + self._share(arm) * sum(traffic.meta.values())

    def messages(self, arm: str) -> float:
        """Collectives of the same, each for bytes of its own: the least that a step needs."""
        if self.gpus == 1:
            return 0.0
        # two histograms in fp32, one and the ties of few digits in bf16; the widths and the candidates of TopK; a sum of the sparsity term
        primary = (
            {"batchtopk": 2, "topk": 2, "matryoshka": 2}.get(self.recipe.sae.architecture, 1)
            + n_prefixes(self.recipe.sae)
            - 1
        )
        meta = {"batchtopk": 2}.get(self.recipe.meta.architecture, 0)
        # tokens, reconstruction, b_dec's gradient, the norm, L0, the dead twice, whether to stop
        count = 8 + primary
        if arm == "joint" and self.recipe.has_meta(arm):
            count += 1 + meta
        if arm == "joint":
            count += self._further_messages / self.recipe.train.penalty_every
        # gradients, the loss, firings, whether to stop
        return count + self._share(arm) * (4 + meta)

    def step(self, arm: str) -> Step:
        """Of an arm."""
        parts, sending = self.parts(arm), self.sent(arm) / self.card.link
        slow = (above_of(parts, self.card, self.width) + sending) / self.efficiency + self.messages(arm) * MESSAGE
        return Step(floor_of(parts, self.card, self.width), sending, slow)

    @property
    def _all_rows(self) -> int:
        """Bytes of the decoder rows of all latents, where a further penalty takes them; twice while parts of unequal length are put together."""
        n = self.recipe.sae.n
        needed = self.gpus > 1 and "joint" in self.recipe.arms and charged_penalties(self.recipe) - {"c2r"}
        return 4 * n * self.shape.d * (2 if n % self.gpus else 1) if needed else 0

    @property
    def _further_messages(self) -> int:
        """Of a step that charges further penalties: a gather is a message with lengths and one with rows."""
        charged = charged_penalties(self.recipe)
        rows = 2 * bool(charged - {"c2r"})
        return rows + sum({"c2r": 2, "ortsae": 2, "cofiring": 3}.get(name, 6) for name in charged)

    def _share(self, arm: str) -> float:
        """Meta steps per primary step."""
        return self.recipe.train.n_meta_steps / self.recipe.train.n_primary_steps if self.recipe.has_meta(arm) else 0.0
