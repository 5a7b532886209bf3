"""Tokens that are left out of training and measuring: those with a very large norm, and special tokens inside
documents.

Some tokens (the first of a window where there is no BOS, delimiters, line breaks) carry activations a hundred times as
long as the others: attention sinks. They say nothing about the text, and as errors are squared they dominate the loss.
A token is left out where

    ||x|| > norm_limit * median ||x|| over the calibration tokens

and where it is a special token of the model. It stays in the text that the model reads and that the pages show.
"""

from collections.abc import Sequence

import numpy as np

# The norms have a gap at the limit where the shortest above it is this many times the longest below it.
_GAP = 1.5


def limit_of(norms: np.ndarray, norm_limit: float) -> float:
    """The largest norm of a token that counts: norm_limit medians of these; infinity where norm_limit is 0.

    norms: float [T], infinite for special tokens.
    """
    usual = norms[np.isfinite(norms)]
    return norm_limit * float(np.median(usual)) if norm_limit and len(usual) else np.inf


def counting(norms: np.ndarray, longest: float) -> np.ndarray:
    """bool [T]: the tokens that count, neither special nor longer than `longest`."""
    return (norms <= longest) & np.isfinite(norms)


def in_words(norms: Sequence[np.ndarray], norm_limit: float, longest: float) -> str:
    """How many tokens are left out of the splits with these norms and why, and what to set where norms have no gap at
    the limit. "" where all count.
    """
    every = np.concatenate([np.empty(0, np.float32), *norms])
    usual = every[np.isfinite(every)]
    loud, lines = usual[usual > longest], []
    if len(loud):
        share = f"{100 * len(loud) / len(every):.2g}%"
        line = f"{len(loud):,} tokens ({share}) with activations longer than {norm_limit:g} times the median norm"
        if loud.min() < _GAP * usual[usual <= longest].max(initial=0.0):
            twice = 2 * norm_limit
            rest = f"{100 * float((usual > 2 * longest).mean()):.2g}%"
            line += f" (norms have no gap there: {rest} are above {twice:g} times; harvest.norm_limit={twice:g} leaves"
            line += " out fewer, 0 none)"
        lines.append(line)
    if special := len(every) - len(usual):
        lines.append(f"{special:,} special tokens inside documents")
    return " and ".join(lines)
