"""Scores for which a judge reads: it explains a latent from training windows, then is asked about scoring windows it has not seen.

    detection     does the latent fire in this window?     mean of (share of activating windows found, share of silent ones left)
    fuzz_marks    are the marked tokens the right ones?    the same; a silent window carries as many marks as an activating one, at
                  random places, and where it has a focus (the same token, a neighbour's) one of them is there
    fuzz_2afc     which of two windows is the real one?    2 x accuracy - 1, each pair asked in both orders; in the other the tokens on
                  which the latent fires are replaced by others drawn from the text. A window with a token that nothing can replace, as
                  of a latent that always fires, is not asked about and is counted
    sim_spearman  how strongly, 0 to 10, at the last token?  Spearman's rho with the true peaks of 25 windows that end at their peak, 5 from
                  each fifth; 0 where either side is constant. It has no negatives, so it cannot see that an explanation is too wide.

Sources: arXiv 2410.13928 (detection, fuzz_marks), 2604.03436 (fuzz_2afc in its text, sim_spearman in its code). A reply that cannot be
read, and a question that stays unanswered, has the credit of chance and is counted.

Where the judge gives log probabilities, detection and fuzz_marks have parts `<kind>_auc` beside their balanced accuracy:
P(P(yes | an activating window) > P(yes | a silent one)) + 1/2 P(equal), which no threshold of the judge's moves. It is NaN for a latent
with a readable reply without log probabilities; those replies are counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from metasae.interp import prompts
from metasae.interp.asking import Asker
from metasae.interp.coverage import LatentWindows
from metasae.interp.draws import contents_of, draw_activating, peaks_of
from metasae.interp.probabilities import yes_probabilities
from metasae.interp.prompts import Shown, shown
from metasae.interp.replies import Ask, Reply
from metasae.interp.result import Score, auc
from metasae.interp.windows import END, Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress

WINDOWS_PER_ASK = 10
SIMULATED, FIFTHS = 25, 5
PAIRS = 10
REPEATED = 0.05
# Tokens drawn in place of another before all that would do are looked up.
TRIES = 50
# Latents whose questions are asked again with another one's explanation.
FLOOR = 100
FIRES = "fires"
# repeated: answers that were asked for twice and read both times; repeated_alike: those that said the same.
NOTHING_COUNTED = {"asked": 0, "unreadable": 0, "failed": 0, "repeated": 0, "repeated_alike": 0}


class Reader:
    """Asks about the latents of one text. spec: of the windows it is given; seed: of everything random here."""

    def __init__(self, asker: Asker, text: Text, spec: WindowSpec, seed: int = 0):
        self.asker, self.text, self.spec, self.seed = asker, text, spec, seed

    def explanations(self, view: ByLatent, latents: Sequence[LatentWindows]) -> list[str | None]:
        """One sentence per latent from its training windows; None where the reply cannot be read."""
        asks = [prompts.explain(shown(self.text, each.train, view, each.latent)) for each in latents]
        found = [prompts.field_of(reply, "explanation") for reply in self.asker.ask(asks)]
        return [" ".join(each.split()) if isinstance(each, str) and each.strip() else None for each in found]

    def scorer(self, key: str):
        """A scorer for `metasae.interp.run`. key: one of the four above."""
        values = {
            "detection": self._detection,
            "fuzz_marks": self._marks,
            "fuzz_2afc": self._pairs,
            "sim_spearman": self._simulation,
        }[key]

        def score(
            view: ByLatent, latents: Sequence[LatentWindows], floor: np.ndarray | None, progress: Progress = SILENT
        ) -> Score:
            explanations = self.explanations(view, latents)
            counts = {"unexplained": explanations.count(None), **NOTHING_COUNTED}
            own = values(view, latents, explanations, counts)
            shuffled = {}
            if floor is not None:
                some = min(FLOOR, len(latents))
                # what cannot be read of the floor is not counted as the score's
                shuffled = values(view, latents[:some], [explanations[by] for by in floor[:some]], dict(counts))
            return Score(key, own, shuffled, counts, tuple(explanations))

        return score

    def _detection(
        self, view: ByLatent, latents: Sequence[LatentWindows], explanations: Sequence[str | None], counts: dict
    ) -> dict[str, np.ndarray]:
        def items(each: LatentWindows, rng: np.random.Generator) -> dict[str, list[Shown]]:
            return {FIRES: shown(self.text, each.score)} | {
                kind: shown(self.text, windows) for kind, windows in each.silent.items()
            }

        return self._yes_or_no(prompts.DETECT, items, latents, explanations, counts)

    def _marks(
        self, view: ByLatent, latents: Sequence[LatentWindows], explanations: Sequence[str | None], counts: dict
    ) -> dict[str, np.ndarray]:
        def items(each: LatentWindows, rng: np.random.Generator) -> dict[str, list[Shown]]:
            right = shown(self.text, each.score, view, each.latent)
            sizes = [int(window.marked.sum()) for window in right]
            wrong = {}
            for kind, windows in each.silent.items():
                focus = windows.focus - windows.starts if kind != "random" else np.full(len(windows), -1)
                wrong[kind] = [
                    replace(
                        window, marked=_random_marks(windows.length, sizes[place % len(sizes)], int(focus[place]), rng)
                    )
                    for place, window in enumerate(shown(self.text, windows))
                ]
            return {FIRES: right, **wrong}

        return self._yes_or_no(prompts.MARKS, items, latents, explanations, counts)

    def _yes_or_no(
        self, question: str, items, latents: Sequence[LatentWindows], explanations: Sequence[str | None], counts: dict
    ) -> dict:
        """Balanced accuracy per kind of silent windows. items: (latent, rng) -> part -> windows, the part FIRES being the yes."""
        asks, wanted = [], []
        for row, (each, explanation) in enumerate(zip(latents, explanations, strict=True)):
            rng = np.random.default_rng([self.seed, each.latent, 11])
            short = [kind for kind, windows in each.silent.items() if len(windows) < self.spec.silent]
            every = [
                (row, part, window)
                for part, windows in items(each, rng).items()
                if part not in short
                for window in windows
            ]
            every = [every[place] for place in rng.permutation(len(every))]
            for start in range(0, len(every), WINDOWS_PER_ASK):
                some = every[start : start + WINDOWS_PER_ASK]
                wanted.append([(row, part) for row, part, _ in some])
                asks.append(
                    None
                    if explanation is None
                    else prompts.per_window(question, explanation, [item[2] for item in some], {"type": "boolean"})
                )
        found, replies = self.replies(
            asks, [partial(prompts.answers_of, count=len(some), kind=bool) for some in wanted], counts
        )
        credit: dict[tuple[int, str], list[float]] = {}
        chances: dict[tuple[int, str], list[float]] = {}
        untold: set[int] = set()
        counts["without_logprobs"] = 0
        for some, answers, reply in zip(wanted, found, replies, strict=True):
            told = None if answers is None else yes_probabilities(reply, len(some))
            if answers is not None and told is None:
                untold.add(some[0][0])
                counts["without_logprobs"] += 1
            for place, (row, part) in enumerate(some):
                credit.setdefault((row, part), []).append(
                    0.5 if answers is None else float(answers[place] == (part == FIRES))
                )
                chances.setdefault((row, part), []).append(np.nan if told is None else told[place])
        kinds = latents[0].silent if latents else ()

        def balanced(row: int, kind: str) -> float:
            return (np.mean(credit[row, FIRES]) + np.mean(credit[row, kind])) / 2 if (row, kind) in credit else np.nan

        def ranked(row: int, kind: str) -> float:
            told = (row, kind) in chances and row not in untold
            return auc(np.array(chances[row, FIRES]), np.array(chances[row, kind])) if told else np.nan

        rows = range(len(latents))
        parts = {kind: np.array([balanced(row, kind) for row in rows]) for kind in kinds}
        if any(np.isfinite(each).any() for each in chances.values()):
            parts |= {f"{kind}_auc": np.array([ranked(row, kind) for row in rows]) for kind in kinds}
        return parts

    def _simulation(
        self, view: ByLatent, latents: Sequence[LatentWindows], explanations: Sequence[str | None], counts: dict
    ) -> dict[str, np.ndarray]:
        spec = replace(self.spec, position=END, strata=FIFTHS)
        drawn, asks = [], []
        for each, explanation in zip(latents, explanations, strict=True):
            rng = np.random.default_rng([self.seed, each.latent, 12])
            # a document that comes twice must not be scored on what the explanation was made from
            seen = contents_of(self.text, each.train)
            windows = draw_activating(
                self.text, peaks_of(self.text, *view.latent(each.latent), spec), True, SIMULATED, spec, rng, seen
            )
            order = rng.permutation(len(windows))
            drawn.append(windows.peaks[order])
            texts = shown(self.text, windows)
            usable = explanation is not None and len(windows) == SIMULATED
            item = {"type": "integer", "minimum": 0, "maximum": 10}
            asks.append(
                prompts.per_window(prompts.SIMULATE, explanation, [texts[place] for place in order], item)
                if usable
                else None
            )
        replies, _ = self.replies(asks, [partial(prompts.answers_of, count=SIMULATED, kind=int)] * len(asks), counts)
        found = [
            np.nan if len(peaks) < SIMULATED else _spearman(answers, peaks)
            for answers, peaks in zip(replies, drawn, strict=True)
        ]
        return {"all": np.array(found, np.float64)}

    def _pairs(
        self, view: ByLatent, latents: Sequence[LatentWindows], explanations: Sequence[str | None], counts: dict
    ) -> dict[str, np.ndarray]:
        asks, truth = [], []
        counts["irreplaceable"] = 0
        for row, (each, explanation) in enumerate(zip(latents, explanations, strict=True)):
            rng = np.random.default_rng([self.seed, each.latent, 13])
            real = shown(self.text, each.score, view, each.latent)[:PAIRS]
            for window in real:
                plain, other = (
                    replace(window, marked=np.zeros_like(window.marked)),
                    self._replaced(window, view.latent(each.latent)[0], rng),
                )
                if other is None:
                    counts["irreplaceable"] += 1
                    continue
                asks += (
                    [None, None]
                    if explanation is None
                    else [prompts.choose(explanation, plain, other), prompts.choose(explanation, other, plain)]
                )
                truth += [(row, "A"), (row, "B")]
        replies, _ = self.replies(asks, [lambda reply: _letter(prompts.field_of(reply, "answer"))] * len(asks), counts)
        credit: list[list[float]] = [[] for _ in latents]
        for (row, right), answer in zip(truth, replies, strict=True):
            credit[row].append(0.5 if answer is None else float(answer == right))
        return {"all": np.array([2 * np.mean(each) - 1 if each else np.nan for each in credit])}

    def _replaced(self, window: Shown, fires: np.ndarray, rng: np.random.Generator) -> Shown | None:
        """The marked tokens replaced, without marks; None where nothing can replace one of them."""
        strings = list(window.strings)
        for place in np.flatnonzero(window.marked):
            other = self._other_string(strings[place], fires, rng)
            if other is None:
                return None
            strings[place] = other
        return Shown(tuple(strings), np.zeros_like(window.marked))

    def _other_string(self, string: str, fires: np.ndarray, rng: np.random.Generator) -> str | None:
        """Of a random token of the scoring text on which the latent does not fire and which reads otherwise; None where there is none."""
        pool = self.text.scoring_tokens
        for _ in range(TRIES):
            token = int(rng.choice(pool))
            if (
                fires[min(np.searchsorted(fires, token), len(fires) - 1)] != token
                and (other := self.text.string_at(token)) != string
            ):
                return other
        # a latent that fires nearly everywhere, or text of hardly any other token: all that is left, in random order
        left = rng.permutation(np.setdiff1d(pool, fires, assume_unique=True))
        return next((other for other in map(self.text.string_at, left.tolist()) if other != string), None)

    def replies(
        self, asks: Sequence[Ask | None], parsers: Sequence[Callable[[Reply], object | None]], counts: dict
    ) -> tuple[list, list]:
        """(what each reply says, the reply), None where it was not asked, answered or readable. A twentieth is asked a second time.

        counts: as NOTHING_COUNTED, added to.
        """
        real = [place for place, ask in enumerate(asks) if ask is not None]
        rng = np.random.default_rng([self.seed, len(asks), 14])
        again = [place for place in real if rng.random() < REPEATED]
        replies = self.asker.ask([asks[place] for place in real] + [replace(asks[place], repeat=1) for place in again])
        found, raw = [None] * len(asks), [None] * len(asks)
        counts["asked"] += len(real)
        for place, reply in zip(real, replies[: len(real)], strict=True):
            raw[place] = reply
            found[place] = None if reply is None else parsers[place](reply)
            counts["failed"] += reply is None
            counts["unreadable"] += reply is not None and found[place] is None
        for place, reply in zip(again, replies[len(real) :], strict=True):
            second = None if reply is None else parsers[place](reply)
            if second is not None and found[place] is not None:
                twice = (
                    list(zip(second, found[place], strict=True))
                    if isinstance(second, list)
                    else [(second, found[place])]
                )
                counts["repeated"] += len(twice)
                counts["repeated_alike"] += sum(one == other for one, other in twice)
        return found, raw


def _random_marks(length: int, count: int, focus: int, rng: np.random.Generator) -> np.ndarray:
    """bool [length]: count random marks, one of them at `focus` where that is not -1."""
    marked = np.zeros(length, bool)
    marked[rng.choice(length, min(count, length), replace=False)] = True
    if focus >= 0 and not marked[focus]:
        marked[rng.choice(np.flatnonzero(marked))] = False
        marked[focus] = True
    return marked


def _spearman(answers: list[int] | None, peaks: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if answers is None or len(set(answers)) == 1 or len(set(peaks.tolist())) == 1:
        return 0.0
    return float(spearmanr(answers, peaks).statistic)


def _letter(answer) -> str | None:
    return answer if answer in ("A", "B") else None
