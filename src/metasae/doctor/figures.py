"""The numbers of a plan, each with its unit and where it is from."""

from dataclasses import asdict, dataclass

from metasae.doctor.estimate import BYTES, is_planted
from metasae.doctor.fit import size
from metasae.doctor.setup import MESSAGE, RESERVE, Setup, Span

# arithmetic: exact, from shapes. fitted: a model of memory fitted to measured peaks, within a fifth. stated: arithmetic over a
# datasheet's rates. assumed: ours.
ORIGINS = ("arithmetic", "fitted", "stated", "assumed")


@dataclass(frozen=True)
class Figure:
    """value: in `unit` (bytes, bytes/s, s, tokens/s); a pair is (least, most), None not known. origin: one of ORIGINS."""

    value: float | Span | None
    unit: str
    origin: str
    says: str

    def as_dict(self) -> dict:
        return asdict(self)


def figures_of(setup: Setup) -> dict[str, Figure]:
    """All numbers of a plan by name."""
    return _memory(setup) | _step(setup) | _run(setup)


def rates_of(setup: Setup, arm: str) -> Span:
    """Tokens per second of an arm's training, at the slow end and at the floor."""
    step, batch = setup.step(arm), setup.recipe.train.batch
    return batch / step.slow, batch / step.floor


def _memory(setup: Setup) -> dict[str, Figure]:
    n, memory, needs = setup.recipe.sae.n, setup.memory, setup.needs
    own = -(-n // setup.gpus)
    largest = "training, gathering" if setup.gpus > 1 else "training"
    first = (
        f"model, batch and the largest of {largest}" if memory.at_once else f"model and the largest of batch, {largest}"
    )
    windows = f", with {size(needs.windows)} of windows of activations" if needs.windows else ""
    out = {
        "weights": Figure(
            memory.weights, "bytes", "arithmetic", f"weights, Adam's moments and gradients of {own:,} of {n:,} latents"
        ),
        "meta weights": Figure(memory.meta, "bytes", "arithmetic", "the same of the meta SAE, whole on every rank"),
        "passing": Figure(memory.passing, "bytes", "fitted", "a step in passing"),
        "gather": Figure(
            memory.gather, "bytes", "arithmetic", "the whole SAE brought together at an arm's end, first rank"
        ),
        "model": Figure(
            memory.model, "bytes", "arithmetic", f"language model on every rank; shapes from {setup.shape.source}"
        ),
        "model's batch": Figure(memory.forward, "bytes", "fitted", "through it in the harvest"),
        "first rank": Figure(memory.first, "bytes", "fitted", f"at its peak: {first}"),
        "other ranks": Figure(
            memory.other * (setup.gpus > 1),
            "bytes",
            "fitted",
            "each at its peak: model and the larger of batch and training",
        ),
        "reserve": Figure(RESERVE, "bytes", "assumed", "context, workspaces and buffers of every GPU"),
        "card": Figure(setup.card.memory, "bytes", "stated", f"memory of one {setup.card.name}"),
        "host memory": Figure(
            setup.host_memory, "bytes", "fitted", "of the processor, all ranks in one machine; the mapped cache on top"
        ),
        "cache": Figure(needs.cache, "bytes", "arithmetic", f"activations on disk{' that stay' * memory.at_once}"),
        "run folder": Figure(needs.run_folder, "bytes", "arithmetic", f"on disk{windows}"),
    }
    return {name: figure for name, figure in out.items() if figure.value}


def _step(setup: Setup) -> dict[str, Figure]:
    arm, recipe, link = setup.arm, setup.recipe, setup.card.link
    step, messages, read = setup.step(arm), setup.messages(arm), setup.shape.d * BYTES[recipe.harvest.dtype]
    out = {}
    if setup.gpus > 1:
        copies = f"a copy of the SAE per rank would send {setup.traffic.replicated / 1e6:,.0f} MB"
        out = {
            "sent": Figure(setup.sent(arm), "bytes", "arithmetic", f"by a rank per {arm} step; {copies}"),
            "sending": Figure(step.sending, "s", "stated", f"for that at {link / 1e9:,.0f} GB/s in one direction"),
            "messages": Figure(
                messages * MESSAGE,
                "s",
                "assumed",
                f"{messages:.3g} a step, {MESSAGE * 1e6:.0f} us each; in the slow end only",
            ),
        }
    out |= {
        "computing": Figure(step.computing, "s", "stated", "a step's parts at least"),
        "step": Figure(step.span, "s", "stated", f"a {arm} primary step with its share of meta steps"),
        "tokens": Figure(rates_of(setup, arm), "tokens/s", "stated", f"in batches of {recipe.train.batch:,}"),
    }
    if not is_planted(recipe):
        reading = tuple(rate * read for rate in rates_of(setup, arm))
        out["cache read"] = Figure(
            reading, "bytes/s", "stated", "what all ranks together take from the activation cache"
        )
    return out


def _run(setup: Setup) -> dict[str, Figure]:
    recipe, steps = setup.recipe, -(-setup.recipe.train.tokens // setup.recipe.train.batch)
    spans = [setup.step(arm).span for arm in recipe.arms]
    least, most = (len(recipe.seeds) * steps * sum(span[end] for span in spans) for end in (0, 1))
    out = {
        "train": Figure(
            (least, most),
            "s",
            "stated",
            f"{_counted(recipe.arms, 'arm')} x {_counted(recipe.seeds, 'seed')} x {steps:,} steps",
        )
    }
    if is_planted(recipe):
        return out
    harvest, flops = setup.harvest, setup.shape.flops
    products = "products unknown" if flops is None else f"{flops / 1e9:.3g} GFLOP"
    each = f"{sum(recipe.split_tokens.values()):,} tokens x {products} up to the last hook point"
    if setup.gpus > 1:
        each += ", on the first rank" if recipe.harvest.window_tokens else ", a share on each rank"
    whole = None if harvest is None else (least + harvest[0], most + harvest[1])
    return {
        "harvest": Figure(harvest, "s", "stated", each),
        **out,
        "run": Figure(whole, "s", "stated", "harvest and training; measuring and the report come on top"),
    }


def _counted(things, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) > 1)}"
