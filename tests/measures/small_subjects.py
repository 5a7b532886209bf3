"""Dictionaries with given firings, over a split that is no planted one."""

import numpy as np
from fakes import FakeSplit
from scipy.sparse import csr_array

from metasae.measures.truth.truth import as_firings
from tools.subjects import Subject, sae_of


def subject_of(activations, rows=None, document_length=1):
    """A dictionary with these activations [T, n]; rows are the unit vectors of five dimensions where none are given."""
    activations = np.asarray(activations, np.float32)
    split = FakeSplit(np.zeros((len(activations), 5)), document_length)
    rows = np.eye(activations.shape[1], 5) if rows is None else np.asarray(rows, float)
    return Subject(sae_of(rows, 2 * rows), as_firings(csr_array(activations), split), split)


def drawn_subject(n_tokens=400, n=12, rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    acts = np.where(rng.random((n_tokens, n)) < rate, rng.random((n_tokens, n)) + 0.1, 0)
    return subject_of(acts, rows, document_length=20)


def dense(subject):
    """The activations [T, n]."""
    return subject.firings.csr.toarray()
