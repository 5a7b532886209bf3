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

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from metasae.interp import prompts
from metasae.interp.asking import Asker
from metasae.interp.coverage import LatentWindows
from metasae.interp.draws import RANDOM, contents_of, draw_activating, peaks_of
from metasae.interp.prompts import Shown, shown, yes_probabilities
from metasae.interp.replies import Ask, Reply
from metasae.interp.result import Score, auc
from metasae.interp.windows import END, Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent

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

# Latents, each with the explanation by which it is judged, its own or another one's.
Explained = Sequence[tuple[LatentWindows, str | None]]
# What a reply says; None where it was not answered or cannot be read.
Parser = Callable[[Reply | None], object | None]
# (the SAE's firings, a latent, rng) -> part -> windows to be judged.
WindowsOf = Callable[[ByLatent, LatentWindows, np.random.Generator], dict[str, list[Shown]]]


class Reader:
    """Asks about the latents of one text. spec: of the windows it is given; seed: of everything random here."""

    def __init__(self, asker: Asker, text: Text, spec: WindowSpec, seed: int = 0):
        self.asker, self.text, self.spec, self.seed = asker, text, spec, seed

    def explanations(self, view: ByLatent, latents: Sequence[LatentWindows]) -> list[str | None]:
        """One sentence per latent from its training windows; None where the reply cannot be read."""
        asks = [prompts.explain(shown(self.text, latent.train, view, latent.latent)) for latent in latents]
        sentences = [prompts.field_of(reply, "explanation") for reply in self.asker.ask(asks)]
        return [" ".join(words.split()) or None if isinstance(words, str) else None for words in sentences]

    def scorer(self, key: str):
        """A scorer for `metasae.interp.run`. key: one of the four above."""
        values = {
            "detection": partial(self._yes_or_no, prompts.DETECT, self._plain),
            "fuzz_marks": partial(self._yes_or_no, prompts.MARKS, self._marked),
            "fuzz_2afc": self._pairs,
            "sim_spearman": self._simulation,
        }[key]

        def score(view: ByLatent, latents: Sequence[LatentWindows], floor: np.ndarray | None) -> Score:
            explanations = self.explanations(view, latents)
            counts = {"unexplained": explanations.count(None), **NOTHING_COUNTED}
            own = values(view, list(zip(latents, explanations, strict=True)), counts)
            shuffled = {}
            if floor is not None:
                borrowed = [(latents[row], explanations[by]) for row, by in enumerate(floor[:FLOOR])]
                # what cannot be read of the floor is not counted as the score's
                shuffled = values(view, borrowed, dict(counts))
            return Score(key, own, shuffled, counts, tuple(explanations))

        return score

    def _plain(self, view: ByLatent, latent: LatentWindows, rng: np.random.Generator) -> dict[str, list[Shown]]:
        """Part -> windows without marks; FIRES are those in which the latent fires."""
        return {part: shown(self.text, windows) for part, windows in {FIRES: latent.score, **latent.silent}.items()}

    def _marked(self, view: ByLatent, latent: LatentWindows, rng: np.random.Generator) -> dict[str, list[Shown]]:
        """The same with marks, in FIRES on the tokens on which the latent fires."""
        windows_by_part = {FIRES: shown(self.text, latent.score, view, latent.latent)}
        sizes = [int(window.marked.sum()) for window in windows_by_part[FIRES]]
        for kind, windows in latent.silent.items():
            focus = np.full(len(windows), -1) if kind == RANDOM else windows.focus - windows.starts
            windows_by_part[kind] = [
                replace(window, marked=_random_marks(windows.length, sizes[place % len(sizes)], int(focus[place]), rng))
                for place, window in enumerate(shown(self.text, windows))
            ]
        return windows_by_part

    def _yes_or_no(
        self, question: str, windows_of: WindowsOf, view: ByLatent, explained: Explained, counts: dict
    ) -> dict[str, np.ndarray]:
        """Balanced accuracy per kind of silent windows, and the AUC where the judge gives log probabilities."""
        asks, asked = [], []
        for row, (latent, explanation) in enumerate(explained):
            rng = np.random.default_rng([self.seed, latent.latent, 11])
            listed = [
                (row, part, window)
                for part, windows in windows_of(view, latent, rng).items()
                if part == FIRES or len(windows) >= self.spec.silent
                for window in windows
            ]
            order = rng.permutation(len(listed))
            for start in range(0, len(order), WINDOWS_PER_ASK):
                rows, parts, windows = zip(
                    *(listed[place] for place in order[start : start + WINDOWS_PER_ASK]), strict=True
                )
                asked.append(list(zip(rows, parts, strict=True)))
                asks.append(explanation and prompts.per_window(question, explanation, windows, {"type": "boolean"}))
        parsers = [partial(prompts.answers_of, count=len(batch), kind=bool) for batch in asked]
        answers, replies = self.replies(asks, parsers, counts)
        credit, chances = defaultdict(list), defaultdict(list)
        untold: set[int] = set()
        counts["without_logprobs"] = 0
        for batch, yes, reply in zip(asked, answers, replies, strict=True):
            shares = None if yes is None else yes_probabilities(reply, len(batch))
            if yes is not None and shares is None:
                untold.add(batch[0][0])
                counts["without_logprobs"] += 1
            for place, (row, part) in enumerate(batch):
                credit[row, part].append(0.5 if yes is None else float(yes[place] == (part == FIRES)))
                chances[row, part].append(np.nan if shares is None else shares[place])
        kinds = explained[0][0].silent if explained else ()
        scores = {kind: np.full(len(explained), np.nan) for kind in kinds}
        aucs = {f"{kind}_auc": np.full(len(explained), np.nan) for kind in kinds}
        for row, kind in credit:
            if kind == FIRES:
                continue
            scores[kind][row] = (np.mean(credit[row, FIRES]) + np.mean(credit[row, kind])) / 2
            if row not in untold:
                aucs[f"{kind}_auc"][row] = auc(np.array(chances[row, FIRES]), np.array(chances[row, kind]))
        return scores | aucs if any(np.isfinite(shares).any() for shares in chances.values()) else scores

    def _simulation(self, view: ByLatent, explained: Explained, counts: dict) -> dict[str, np.ndarray]:
        spec = replace(self.spec, position=END, strata=FIFTHS)
        peaks, asks = [], []
        for latent, explanation in explained:
            rng = np.random.default_rng([self.seed, latent.latent, 12])
            # a document that comes twice must not be scored on what the explanation was made from
            drawn = contents_of(self.text, latent.train)
            every = peaks_of(self.text, *view.latent(latent.latent), spec)
            windows = draw_activating(self.text, every, True, SIMULATED, spec, rng, drawn)
            order = rng.permutation(len(windows))
            peaks.append(windows.peaks[order])
            texts = shown(self.text, windows)
            item = {"type": "integer", "minimum": 0, "maximum": 10}
            usable = explanation is not None and len(windows) == SIMULATED
            ordered = [texts[place] for place in order]
            asks.append(prompts.per_window(prompts.SIMULATE, explanation, ordered, item) if usable else None)
        strengths, _ = self.replies(asks, [partial(prompts.answers_of, count=SIMULATED, kind=int)] * len(asks), counts)
        rhos = [
            np.nan if len(true) < SIMULATED else _spearman(guessed, true)
            for guessed, true in zip(strengths, peaks, strict=True)
        ]
        return {"all": np.array(rhos, np.float64)}

    def _pairs(self, view: ByLatent, explained: Explained, counts: dict) -> dict[str, np.ndarray]:
        asks, truth = [], []
        counts["irreplaceable"] = 0
        for row, (latent, explanation) in enumerate(explained):
            rng = np.random.default_rng([self.seed, latent.latent, 13])
            for window in shown(self.text, latent.score, view, latent.latent)[:PAIRS]:
                real = replace(window, marked=np.zeros_like(window.marked))
                other = self._replaced(window, view.latent(latent.latent)[0], rng)
                if other is None:
                    counts["irreplaceable"] += 1
                    continue
                asks.append(explanation and prompts.choose(explanation, real, other))
                asks.append(explanation and prompts.choose(explanation, other, real))
                truth += [(row, "A"), (row, "B")]
        letters, _ = self.replies(asks, [_letter] * len(asks), counts)
        credit: list[list[float]] = [[] for _ in explained]
        for (row, right), letter in zip(truth, letters, strict=True):
            credit[row].append(0.5 if letter is None else float(letter == right))
        return {"all": np.array([2 * np.mean(credits) - 1 if credits else np.nan for credits in credit])}

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
            is_silent = fires[min(np.searchsorted(fires, token), len(fires) - 1)] != token
            if is_silent and self.text.string_at(token) != string:
                return self.text.string_at(token)
        # a latent that fires nearly everywhere, or text of hardly any other token: all that is left, in random order
        left = rng.permutation(np.setdiff1d(pool, fires, assume_unique=True))
        return next((other for other in map(self.text.string_at, left.tolist()) if other != string), None)

    def replies(self, asks: Sequence[Ask | None], parsers: Sequence[Parser], counts: dict) -> tuple[list, list]:
        """(what each reply says, the reply), None where it was not asked, answered or readable. A twentieth is asked a second time.

        counts: as NOTHING_COUNTED, added to.
        """
        places = [place for place, ask in enumerate(asks) if ask is not None]
        rng = np.random.default_rng([self.seed, len(asks), 14])
        again = [place for place in places if rng.random() < REPEATED]
        repeats = [replace(asks[place], repeat=1) for place in again]
        replies = self.asker.ask([asks[place] for place in places] + repeats)
        answers, raw = [None] * len(asks), [None] * len(asks)
        counts["asked"] += len(places)
        for place, reply in zip(places, replies, strict=False):
            raw[place], answers[place] = reply, parsers[place](reply)
            counts["failed"] += reply is None
            counts["unreadable"] += reply is not None and answers[place] is None
        for place, reply in zip(again, replies[len(places) :], strict=True):
            first, second = answers[place], parsers[place](reply)
            if first is not None and second is not None:
                # a list's answers are compared one by one
                twice = list(zip(first, second, strict=True)) if isinstance(first, list) else [(first, second)]
                counts["repeated"] += len(twice)
                counts["repeated_alike"] += sum(one == other for one, other in twice)
        return answers, raw


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


def _letter(reply: Reply | None) -> str | None:
    answer = prompts.field_of(reply, "answer")
    return answer if answer in ("A", "B") else None
