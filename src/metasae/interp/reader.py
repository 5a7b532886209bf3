"""Scores for which a judge reads text: it explains a latent from training windows and is then asked about scoring
windows that it has not seen.

    detection     Does the latent fire in this window? The mean of two shares: of activating windows that the judge
                  finds, and of silent ones that it leaves.
    fuzz_marks    Are the marked tokens the right ones? The same mean. A silent window has as many marks as an
                  activating one, at random places, one of them at its focus (the same token, a neighbour's).
    fuzz_2afc     Which of two windows is the real one? 2 x accuracy - 1, each pair asked in both orders. In the other
                  window the tokens on which the latent fires are replaced by others drawn from the text. A window with
                  a token that nothing can replace, as of a latent that always fires, is not asked about and is counted.
    sim_spearman  How strongly, 0 to 10, at the last token? Spearman's rho with the true peaks of 25 windows that end
                  at their peak, 5 from each fifth; 0 where either side is constant. It has no negatives, so it cannot
                  see that an explanation is too wide.

Sources: arXiv 2410.13928 (detection, fuzz_marks), 2604.03436 (fuzz_2afc in its text, sim_spearman in its code). A reply
that cannot be read, and a question that stays unanswered, has the credit of chance and is counted. A latent of which
nothing was read, its explanation or any answer, has no score.

Where the judge gives log probabilities, detection and fuzz_marks have parts `<kind>_auc` beside their balanced
accuracy, which do not depend on the judge's threshold: P(P(yes | an activating window) > P(yes | a silent one)) + 1/2
P(equal). It is NaN for a latent with a readable reply without log probabilities; those replies are counted.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from metasae.interp import prompts
from metasae.interp.asking import Asker
from metasae.interp.draws import RANDOM, LatentWindows, contents_of, draw_activating, peaks_of
from metasae.interp.excerpts import END, Text, WindowSpec
from metasae.interp.marks import Shown
from metasae.interp.prompts import LETTERS, shown
from metasae.interp.questions import NOTHING_COUNTED, Question, credit_of, means, put, uncounted
from metasae.interp.reading import answers_of, choice_of, field_of, yes_probabilities
from metasae.interp.scores import Score, auc
from metasae.measures.firing.by_latent import ByLatent

WINDOWS_PER_ASK = 10
SIMULATED, FIFTHS = 25, 5
PAIRS = 10
# Random draws of a token to replace another, before all possible ones are looked up.
TRIES = 50
# Latents whose questions are asked again with another one's explanation.
FLOOR = 100
FIRES = "fires"

# Latents, each with the explanation by which it is judged, its own or another one's.
Explained = Sequence[tuple[LatentWindows, str | None]]


class Reader:
    """Asks about the latents of one text. spec: of the windows it is given; seed: of everything random here."""

    def __init__(self, asker: Asker, text: Text, spec: WindowSpec, seed: int = 0):
        self.asker, self.text, self.spec, self.seed = asker, text, spec, seed

    def explanations(self, view: ByLatent, latents: Sequence[LatentWindows]) -> list[str | None]:
        """One sentence per latent from its training windows; None where the reply cannot be read."""
        asks = [prompts.explain(shown(self.text, latent.train, view, latent.latent)) for latent in latents]
        sentences = [field_of(reply, "explanation") for reply in self.asker.ask(asks)]
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
                shuffled = values(view, borrowed, uncounted())
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
        self, question: str, windows_of: Callable, view: ByLatent, explained: Explained, counts: dict
    ) -> dict[str, np.ndarray]:
        """Balanced accuracy per kind of silent windows, and the AUC where the judge gives log probabilities.

        windows_of: `_plain` or `_marked`.
        """
        questions = []
        for row, (latent, explanation) in enumerate(explained):
            rng = np.random.default_rng([self.seed, latent.latent, 11])
            listed = [
                (part, window)
                for part, windows in windows_of(view, latent, rng).items()
                if part == FIRES or len(windows) >= self.spec.silent
                for window in windows
            ]
            order = rng.permutation(len(listed))
            for start in range(0, len(order), WINDOWS_PER_ASK):
                batch = [listed[place] for place in order[start : start + WINDOWS_PER_ASK]]
                parts, windows = zip(*batch, strict=True)
                build = explanation and partial(prompts.per_window, question, explanation, {"type": "boolean"})
                questions.append(Question(build, windows, row, parts, [part == FIRES for part in parts]))
        put(self.asker, questions, partial(answers_of, kind=bool), counts, self.seed)
        shares = [asked.answers and yes_probabilities(asked.reply, len(asked.parts)) for asked in questions]
        without = [asked.row for asked, known in zip(questions, shares, strict=True) if asked.answers and not known]
        counts["without_logprobs"] = len(without)
        credit, rows = credit_of(questions, 0.5), range(len(explained))
        fires, kinds = means(credit, len(rows), FIRES), explained[0][0].silent if explained else ()
        scores = {kind: (fires + means(credit, len(rows), kind)) / 2 for kind in kinds}
        if not any(shares):
            return scores
        chances = defaultdict(list)
        for asked, known in zip(questions, shares, strict=True):
            for part, share in zip(asked.parts, known or [np.nan] * len(asked.parts), strict=True):
                chances[asked.row, part].append(share)
        for kind in kinds:
            aucs = [auc(np.array(chances[row, FIRES]), np.array(chances[row, kind])) for row in rows]
            scores[f"{kind}_auc"] = np.where(np.isin(rows, without), np.nan, aucs)
        return scores

    def _simulation(self, view: ByLatent, explained: Explained, counts: dict) -> dict[str, np.ndarray]:
        spec = replace(self.spec, position=END, strata=FIFTHS)
        questions = []
        for row, (latent, explanation) in enumerate(explained):
            rng = np.random.default_rng([self.seed, latent.latent, 12])
            # a document that occurs twice must not be scored on text that the explanation was made from
            drawn = contents_of(self.text, latent.train)
            peaks = peaks_of(self.text, *view.latent(latent.latent), spec)
            windows = draw_activating(self.text, peaks, True, SIMULATED, spec, rng, drawn)
            order, texts = rng.permutation(len(windows)), shown(self.text, windows)
            strength = {"type": "integer", "minimum": 0, "maximum": 10}
            build = explanation and partial(prompts.per_window, prompts.SIMULATE, explanation, strength)
            build = build if len(windows) == SIMULATED else None
            texts = [texts[place] for place in order]
            questions.append(Question(build, texts, row, ["all"] * SIMULATED, windows.peaks[order]))
        put(self.asker, questions, partial(answers_of, kind=int), counts, self.seed)
        # too few windows are not asked about
        rhos = [np.nan if asked.answers is None else _spearman(asked.answers, asked.right) for asked in questions]
        return {"all": np.array(rhos, np.float64)}

    def _pairs(self, view: ByLatent, explained: Explained, counts: dict) -> dict[str, np.ndarray]:
        questions = []
        counts["irreplaceable"] = 0
        for row, (latent, explanation) in enumerate(explained):
            rng = np.random.default_rng([self.seed, latent.latent, 13])
            for window in shown(self.text, latent.score, view, latent.latent)[:PAIRS]:
                real = replace(window, marked=np.zeros_like(window.marked))
                other = self._replaced(window, view.latent(latent.latent)[0], rng)
                if other is None:
                    counts["irreplaceable"] += 1
                    continue
                for right, a, b in (("A", real, other), ("B", other, real)):
                    build = explanation and partial(prompts.choose, explanation)
                    questions.append(Question(build, [a, b], row, ["all"], [right], LETTERS))
        put(self.asker, questions, partial(choice_of, name="answer", allowed=LETTERS), counts, self.seed)
        return {"all": 2 * means(credit_of(questions, 0.5), len(explained)) - 1}

    def _replaced(self, window: Shown, fires: np.ndarray, rng: np.random.Generator) -> Shown | None:
        """The marked tokens replaced, without marks; None where nothing can replace one of them. A character of which a
        part is marked is replaced as a whole.
        """
        strings = list(window.strings)
        for place in np.flatnonzero(window.spread):
            other = self._other_string(strings[place], fires, rng)
            if other is None:
                return None
            strings[place] = other
        return Shown(tuple(strings), np.zeros_like(window.marked))

    def _other_string(self, string: str, fires: np.ndarray, rng: np.random.Generator) -> str | None:
        """The text of a random token of the scoring text on which the latent does not fire and whose text is different;
        None where there is none.
        """
        pool = self.text.scoring_tokens
        for _ in range(TRIES):
            token = int(rng.choice(pool))
            is_silent = fires[min(np.searchsorted(fires, token), len(fires) - 1)] != token
            other = self.text.strings(token, 1)[0]
            if is_silent and other != string:
                return other
        # for a latent that fires nearly everywhere, or text with hardly any other token: all that are left, in random
        # order
        left = rng.permutation(np.setdiff1d(pool, fires, assume_unique=True))
        others = (self.text.strings(token, 1)[0] for token in left.tolist())
        return next((other for other in others if other != string), None)


def _random_marks(length: int, count: int, focus: int, rng: np.random.Generator) -> np.ndarray:
    """bool [length]: count random marks, one of them at `focus` where that is not -1."""
    marked = np.zeros(length, bool)
    marked[rng.choice(length, min(count, length), replace=False)] = True
    if focus >= 0 and not marked[focus]:
        marked[rng.choice(np.flatnonzero(marked))] = False
        marked[focus] = True
    return marked


def _spearman(answers: list[int], peaks: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(set(answers)) == 1 or len(set(peaks.tolist())) == 1:
        return 0.0
    return float(spearmanr(answers, peaks).statistic)
