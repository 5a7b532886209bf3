"""The bank of concepts on all tokens that have labels: the part that needs no SAE, made once for all SAEs, and the
measure itself.

There are up to three kinds of token sets: the evaluation text, whose labels come from its own letters; the tagged
occurrences of each word with known senses, where each sense is a concept that is judged among the occurrences of its
word; and the sentences that a user has labelled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from metasae.data.concepts.labels import Bank, Concept, LabelledText, concept_bank
from metasae.data.concepts.tagged_concepts import TaggedConcepts
from metasae.data.senses import SenseActivations
from metasae.data.split import Part, Rows
from metasae.measures.firing.firings import Firings, fire
from metasae.measures.truth.concepts import SetScores, halves_with, merged, score_set
from metasae.measures.truth.probe import RIDGE, RIDGE_OF_FEW, probe_f1_of_split
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE

SENSE = "sense"


@dataclass(frozen=True)
class LabelledTokens:
    """T tokens with labels.

    documents: int [T]; every second one is in the half that is judged. ceiling: F1 [C] of a linear probe on the
    activations. rows: the activations; None for the evaluation text, whose firings are known already. tells_blends:
    whether a latent that serves two of these concepts counts as blended. For senses it does not, as a latent for the
    word itself is no defect.
    """

    bank: Bank
    documents: np.ndarray
    ceiling: np.ndarray
    rows: Rows | None = None
    tells_blends: bool = True


def concept_reference(
    evaluation: Part,
    string_of: Callable[[int], str],
    per_family: int,
    seed: int,
    words: Sequence[SenseActivations] = (),
    tagged: TaggedConcepts | None = None,
    progress: Progress = SILENT,
) -> tuple[LabelledTokens, ...]:
    """Makes the token sets with labels: the evaluation text, then each word, then the user's sentences. string_of: a
    token's id -> its text as after another word. per_family, seed: of the concepts drawn from the text.
    """
    tokens = [np.asarray(column) for column in (evaluation.tokens, evaluation.documents, evaluation.positions)]
    bank = concept_bank(LabelledText(*tokens, string_of), per_family, seed)
    sets = [(bank, tokens[1], evaluation, None, True)]
    for word in words:
        senses, rows = _senses(word), Rows(word.x)
        sets.append((senses, numbered_by_concept(senses, word.sentence, seed), rows, rows, False))
    if tagged is not None:
        rows = Rows(tagged.x)
        sets.append((tagged.bank, numbered_by_concept(tagged.bank, tagged.sentence, seed), rows, rows, True))
    out, total = [], sum(len(documents) for _, documents, *_ in sets)
    with progress.task("fitting probes for concepts", total) as task:
        for bank, documents, split, rows, tells_blends in sets:
            # tagged sentences may have fewer tokens than their activations have dimensions
            ridge = RIDGE if rows is None else RIDGE_OF_FEW
            ceiling = probe_f1_of_split(split, bank.labels, documents, ridge)
            out.append(LabelledTokens(bank, documents, ceiling, rows, tells_blends))
            task.advance(len(documents))
    return tuple(out)


def _senses(word: SenseActivations) -> Bank:
    """Each sense of a word as a concept: labels [T, S]."""
    concepts = [Concept(f"{word.word!r} as {sense}", SENSE) for sense in word.senses]
    labels = np.eye(len(word.senses), dtype=np.float32)[word.sense]
    return Bank(concepts, csr_array(labels))


def numbered_by_concept(bank: Bank, sentence: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of sentences, int [T], in which the sentences of one concept follow each other. Then both halves and all
    blocks have about as many of each concept, whatever the order in the file.

    sentence: int [T], 0 to S - 1. A sentence with several concepts goes by the first of the bank.
    """
    n_sentences = int(sentence.max(initial=-1)) + 1
    first = np.full(n_sentences, len(bank.concepts))
    tokens, concepts = bank.labels.nonzero()
    np.minimum.at(first, sentence[tokens], concepts)
    number = np.empty(n_sentences, np.int64)
    shuffled = np.random.default_rng(seed).permutation(n_sentences)
    number[np.lexsort((shuffled, first))] = np.arange(n_sentences)
    return number[sentence]


def measure_concepts(
    sae: SAE,
    firings: Firings,
    blocks: np.ndarray | None,
    reference: Sequence[LabelledTokens],
    progress: Progress = SILENT,
) -> dict:
    """The `concepts` part of measures.json (`metasae.measures.truth.concepts.merged`).

    sae: with a threshold. firings: of this SAE on the evaluation text. blocks: of its documents, int [T], None where
    there is one. Blocks of other sets are their sentences in turn, two by two, so that both halves have some of each.
    """
    n_blocks, scores = 1 if blocks is None else int(blocks.max()) + 1, []
    with progress.task("scoring concepts", sum(len(tokens.documents) for tokens in reference)) as task:
        for tokens in reference:
            scores.append(_scores_on(sae, firings, blocks, n_blocks, tokens))
            task.advance(len(tokens.documents))
    return merged(scores)


def _scores_on(
    sae: SAE, firings: Firings, blocks: np.ndarray | None, n_blocks: int, tokens: LabelledTokens
) -> SetScores:
    if tokens.rows is not None:
        firings = fire(sae, tokens.rows)
        blocks = tokens.documents // 2 % n_blocks
    halves = halves_with(tokens.documents, blocks, n_blocks)
    scores = score_set(tokens.bank, firings.csr, halves, tokens.ceiling)
    if tokens.tells_blends:
        return scores
    return SetScores(scores.families, scores.values, scores.blended[:, :0])
