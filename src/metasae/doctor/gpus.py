"""A plan for GPUs that are not at hand: whether a recipe fits them, how long it takes, and how much they send to each
other.

Nothing is run and no weights are loaded. Sizes are calculated from shapes (`estimate`), times from a datasheet's rates
(`cards`). The floor of a step, its least time, is the sum over its parts, plus the time of sending. The time of a part
is the longer of two: its products, or moving its bytes once. Kernel launches, dead latents, calibration, checkpoints
and measuring are left out.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from metasae.doctor.cards import EFFICIENCY, Card, asked_card
from metasae.doctor.estimate import BYTES, Needs, chooses_by_row, is_planted, kind_of, needs, prefixes_of, weight_bytes
from metasae.doctor.presence import Shape, shape_of
from metasae.errors import UserError
from metasae.ranks.ranks import own_latents
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS, PENALTIES, named
from metasae.recipe.resolve import resolve
from metasae.train.penalties.scene import rows_multiplied
from metasae.train.sharded.trainer import refuse_meta

Span = tuple[float, float]
# Seconds for the short messages between ranks in a step: about sixteen of about 20 us each.
MESSAGES = 16 * 20e-6
# Bytes of a GPU that are not available for tensors: CUDA's context, workspaces of libraries, message buffers,
# fragmentation.
RESERVE = 1.5e9
# The most GPUs that are tried to find the fewest that fit, and the numbers of GPUs shown beside the requested one.
MOST, SHOWN = 1024, (1, 2, 4, 8)


@dataclass(frozen=True)
class StepPart:
    """A part of a primary step with its share of meta steps, on one rank. products: FLOPs. moved: bytes read or
    written, each counted once.

    gathered: bytes of rows read for single entries, which are additional unless they are in a cache.
    """

    name: str
    products: float
    moved: float
    gathered: float = 0.0

    def floor(self, card: Card, width: int) -> float:
        """The least time of the part, in seconds. width: bytes per number of the products."""
        return max(self.products / card.flops(width), self.moved / card.bandwidth)


def parts_of(recipe: Recipe, d: int, arm: str, ranks: int = 1) -> list[StepPart]:
    """The parts of an arm's step on the rank with the most latents. d: width of the hooked tensor.

    Each further penalty is counted as if it read the decoder rows of all latents; its products are as it declares
    (`metasae.train.penalties.scene.multiplies`).
    """
    sae, meta, train, B, m = recipe.sae, recipe.meta, recipe.train, recipe.train.batch, recipe.meta.n
    own = -(-sae.n // ranks)
    rows, passes = 4 * d * B * sae.k * own / sae.n, 4 * B * d * (1 + prefixes_of(recipe, arm))
    further = [named(PENALTIES, name) for name in recipe.charged(arm)]
    multiplied = sum(rows_multiplied(penalty, sae.n) for penalty in further)
    further_moved = len(further) * (4 * sae.n * d + 8 * own * d)
    share, meta_rows = _meta_share(recipe, arm), 4 * d * own * meta.k
    charged = bool(share) and ARMS[arm].penalty
    parts = [
        StepPart("encode and select", 2 * B * own * d, 8 * own * d),
        StepPart("residual and entry gradients", 0, 4 * own * d + passes, 2 * rows),
        StepPart("weight gradients", 0, 8 * own * d + passes, 2 * rows),
        StepPart("clip and Adam", 0, 64 * own * d),
        StepPart(
            "further penalties", 2 * own * multiplied * d / train.penalty_every, further_moved / train.penalty_every
        ),
        StepPart("penalty", charged * 2 * own * m * d, charged * (20 * own * d + 8 * m * d), charged * meta_rows),
        StepPart("meta steps", share * 2 * own * m * d, share * (16 * own * d + 16 * m * d), share * 4 * meta_rows),
        StepPart("meta clip and Adam", 0, share * 64 * m * d),
    ]
    return [part for part in parts if part.moved]


def sent_bytes(recipe: Recipe, d: int, arm: str, ranks: int, width: int = 2) -> float:
    """Bytes that a rank sends in a primary step with its share of meta steps: partial reconstructions in fp32; the
    tokens of the batch; each token's candidates, if its largest entries fire; the decoder rows, for further penalties;
    and the meta SAE's gradients. Histograms and sums of a few numbers are left out. width: bytes per pre-activation.
    """
    sae, B, kind = recipe.sae, recipe.train.batch, kind_of(recipe.sae)
    # in a ring, a rank sends all but one share of what is gathered, and twice that of what is summed
    own, gathered, summed = -(-sae.n // ranks), ranks - 1, 2 * (ranks - 1) / ranks
    tokens, candidates = -(-B // ranks) * d * BYTES[recipe.harvest.dtype], B * min(sae.k, own) * width
    rows = 4 * own * d / recipe.train.penalty_every * bool(recipe.charged(arm))
    reconstructions = 4 * B * d * prefixes_of(recipe, arm)
    meta = _meta_share(recipe, arm) * 4 * (2 * recipe.meta.n * d + d)
    return summed * (reconstructions + meta) + gathered * (tokens + candidates * chooses_by_row(kind) + rows)


def _meta_share(recipe: Recipe, arm: str) -> float:
    """Meta steps per primary step."""
    return recipe.train.n_meta_steps / recipe.train.n_primary_steps if recipe.has_meta(arm) else 0.0


def refuse_unusable(recipe: Recipe, gpus: int) -> None:
    """Raises UserError if training would refuse this number of ranks: there are too many, or the meta SAE cannot be
    spread.
    """
    own_latents(recipe.sae.n, gpus, 0)
    if gpus > 1 and any(recipe.has_meta(arm) for arm in recipe.arms):
        refuse_meta(recipe.meta.architecture)


@dataclass(frozen=True)
class GpuPlan:
    """The plan for a recipe on a number of GPUs of one kind. shape: of its language model.

    efficiency: the share of the card's rates that the slowest time assumes. Computing and sending do not overlap, as in
    the code.
    """

    recipe: Recipe
    gpus: int
    card: Card
    efficiency: float
    shape: Shape

    @property
    def arm(self) -> str:
        """The recipe's costliest arm."""
        return max(self.recipe.arms, key=lambda arm: (self.recipe.has_meta(arm), ARMS[arm].penalty))

    @property
    def width(self) -> int:
        """Bytes per number of the dense products. All listed cards multiply bf16."""
        return 4 if self.recipe.train.dtype == "fp32" else 2

    @property
    def model_width(self) -> int:
        """Bytes per number of the language model."""
        return BYTES.get(self.recipe.model.dtype, 2)

    @cached_property
    def needs(self) -> Needs:
        """The needs of the first rank and of the disks. At the end of an arm this rank gathers the whole SAE, without
        gradients.
        """
        recipe, d = self.recipe, self.shape.d
        model = self.shape.numbers * self.model_width
        need = needs(recipe, d, model, self.shape.vocabulary, self.width, on_gpu=True, ranks=self.gpus)
        # W_enc, and W_dec twice while its parts are joined
        gathering = need.weights * 3 // 4 + 3 * 4 * recipe.sae.n * d
        return replace(need, train=max(need.train, gathering)) if self.gpus > 1 else need

    @property
    def fits(self) -> bool:
        return self.needs.gpu + RESERVE <= self.card.memory

    @property
    def harvest(self) -> Span | None:
        """Seconds of the harvest (least, slowest). All ranks share it, except windows, which the first rank harvests.
        None if not known.
        """
        if self.shape.flops is None:
            return None
        tokens = self.recipe.split_tokens
        alone = tokens["train"] if self.recipe.harvest.window_tokens else 0
        most_tokens = alone + (sum(tokens.values()) - alone) / self.gpus
        seconds = most_tokens * self.shape.flops / self.card.flops(self.model_width)
        return seconds, seconds / self.efficiency

    def step(self, arm: str) -> dict[str, float]:
        """Seconds of an arm's primary step with its share of meta steps: computing and sending; floor, the least time
        of both; slow, the slowest time, with every gathered row read from memory.
        """
        parts = parts_of(self.recipe, self.shape.d, arm, self.gpus)
        computing = sum(part.floor(self.card, self.width) for part in parts)
        sending = sent_bytes(self.recipe, self.shape.d, arm, self.gpus, self.width) / self.card.link
        floor, gathering = computing + sending, sum(part.gathered for part in parts) / self.card.bandwidth
        slow = (floor + gathering) / self.efficiency + MESSAGES * (self.gpus > 1)
        return {"computing": computing, "sending": sending, "floor": floor, "slow": slow}

    def rates(self, arm: str) -> Span:
        """Tokens per second of an arm's training, at the slowest time and at the floor."""
        step, batch = self.step(arm), self.recipe.train.batch
        return batch / step["slow"], batch / step["floor"]

    @property
    def figures(self) -> dict[str, dict]:
        """All numbers of the plan that are not zero, by name: `value` in `unit` (a pair is the least and the most, None
        not known), its meaning (`says`), and its `origin`: arithmetic (exact, from shapes), fitted (a model of memory
        fitted to measured peaks, within a fifth), stated (calculated from a datasheet's rates), assumed (our
        assumption).
        """
        recipe, need, gpus, arm, d = self.recipe, self.needs, self.gpus, self.arm, self.shape.d
        weights, meta = weight_bytes(recipe, d, gpus)
        steps, one, arms = -(-recipe.train.tokens // recipe.train.batch), self.step(arm), map(self.step, recipe.arms)
        spans = [(step["floor"], step["slow"]) for step in arms]
        train = tuple(len(recipe.seeds) * steps * sum(seconds) for seconds in zip(*spans, strict=True))
        harvest = 0 if is_planted(recipe) else self.harvest
        run = tuple(map(sum, zip(harvest, train, strict=True))) if harvest else harvest
        where = "on the first rank" if recipe.harvest.window_tokens else "shared by all ranks"
        # each rank is a program that draws the whole SAE before it keeps its part
        host = need.memory + (gpus - 1) * (need.process + max(need.harvest, 8 * recipe.sae.n * d))
        rows = [
            ("weights", weights, "bytes", "arithmetic", "weights, Adam's moments and gradients of one rank's latents"),
            ("meta weights", meta, "bytes", "arithmetic", "the same for the meta SAE, which every rank has whole"),
            ("model", need.model, "bytes", "arithmetic", f"on every rank; shapes from {self.shape.source}"),
            ("first rank", need.gpu, "bytes", "fitted", "peak of all that is on its GPU"),
            ("reserve", RESERVE, "bytes", "assumed", "context, workspaces and buffers of every GPU"),
            ("card", self.card.memory, "bytes", "stated", f"memory of one {self.card.name}"),
            (
                "host memory",
                host,
                "bytes",
                "fitted",
                "of the processor, for all ranks on one machine, without the cache",
            ),
            ("cache", need.cache, "bytes", "arithmetic", "activations on disk"),
            ("run folder", need.run_folder, "bytes", "arithmetic", "on disk, with windows of activations"),
            ("sent", one["sending"] * self.card.link, "bytes", "arithmetic", f"by a rank per {arm} step"),
            (
                "sending",
                one["sending"],
                "s",
                "stated",
                f"time to send that at {self.card.link / 1e9:,.0f} GB/s in one direction",
            ),
            ("computing", one["computing"], "s", "stated", "least time to compute the step's parts"),
            ("step", (one["floor"], one["slow"]), "s", "stated", f"a {arm} step with its share of meta steps"),
            ("tokens", self.rates(arm), "tokens/s", "stated", f"in batches of {recipe.train.batch:,}"),
            ("harvest", harvest, "s", "stated", f"{sum(recipe.split_tokens.values()):,} tokens, {where}"),
            ("train", train, "s", "stated", f"{', '.join(recipe.arms)}; {len(recipe.seeds)} seeds of {steps:,} steps"),
            ("run", run, "s", "stated", "harvest and training, without measuring and the report"),
        ]
        keys = ("value", "unit", "origin", "says")
        return {name: dict(zip(keys, facts, strict=True)) for name, *facts in rows if facts[0] != 0}

    @cached_property
    def others(self) -> dict[int, "GpuPlan"]:
        """{number of GPUs: the same plan on so many}, for every number up to MOST that training accepts."""
        others = {}
        for count in range(1, max(MOST, self.gpus) + 1):
            with suppress(UserError):
                refuse_unusable(self.recipe, count)
                others[count] = replace(self, gpus=count)
        return others

    @property
    def least(self) -> int | None:
        """The fewest GPUs that the recipe fits on; None if it fits on no number of them."""
        return next((count for count, other in self.others.items() if other.fits), None)

    @property
    def balance(self) -> int | None:
        """The fewest GPUs with which sending takes longer than computing; None if there is no such number."""
        steps = ((count, other.step(self.arm)) for count, other in self.others.items())
        return next((count for count, step in steps if step["sending"] > step["computing"]), None)

    @property
    def notes(self) -> list[str]:
        name, least, balance, together = self.card.name, self.least, self.balance, self.card.together
        run = self.figures.get("run", {}).get("value")
        share = self.harvest[0] / run[0] if run else 0.0
        notes = [
            (
                least is None,
                f"no number of {name} is enough: the model, a batch and the meta SAE are not divided among GPUs",
            ),
            (least not in (None, self.gpus), f"it fits on {least} {name} or more"),
            (share > 0.5, f"the harvest takes {share:.0%} of the run's floor"),
            (balance, f"with {balance} GPUs or more, sending takes longer than computing, so further GPUs help little"),
            (
                self.gpus > together,
                f"beyond {together} GPUs machines are joined by a slower network, which is not counted",
            ),
            (
                self.shape.flops is None,
                "the harvest's time is not known, as the products of this model are known only in a run",
            ),
        ]
        return [note for holds, note in notes if holds]

    def as_dict(self) -> dict:
        """The plan as plain JSON."""
        parts = parts_of(self.recipe, self.shape.d, self.arm, self.gpus)
        return {
            "fits": self.fits,
            "gpus": self.gpus,
            "card": asdict(self.card),
            "efficiency": self.efficiency,
            "model": asdict(self.shape),
            "arm": self.arm,
            "figures": self.figures,
            "parts": [asdict(part) | {"floor": part.floor(self.card, self.width)} for part in parts],
            "scaling": [
                {"gpus": count, "first_rank": other.needs.gpu, "fits": other.fits, "tokens": other.rates(self.arm)}
                | other.step(self.arm)
                for count, other in self.others.items()
                if count in {*SHOWN, self.gpus}
            ],
            "least_gpus": self.least,
            "sending_longer_from": self.balance,
            "notes": self.notes,
        }


def plan(
    recipe: Any, gpus: int, gpu: str, overrides: dict[str, Any] | None = None, efficiency: float = EFFICIENCY
) -> GpuPlan:
    """The plan for a recipe on `gpus` GPUs named `gpu`. A model in `presence.KNOWN` needs neither its weights nor the
    hub.

    Raises UserError for an unknown GPU or model, and for a number of GPUs that training would refuse.
    """
    wanted, card = resolve(recipe, None, overrides, "cpu")[0], asked_card(gpu, gpus, efficiency)
    refuse_unusable(wanted, gpus)
    return GpuPlan(wanted, gpus, card, efficiency, shape_of(wanted))
