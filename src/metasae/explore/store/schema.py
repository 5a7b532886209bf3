"""The tables of RUN/explore.sqlite, and the keys of their rows.

A latent's key is the number of its SAE x 2^24 + latent: one integer, so that its rows lie together and are found at
once. Arrays of a latent (windows, tokens, neighbours) are packed little-endian into one blob each, as a row for each
entry would take ten times the space.
"""

import sqlite3
import zlib
from pathlib import Path

from metasae.errors import UserError

STORE = "explore.sqlite"
# Raised whenever a table changes; a store of another format is built anew.
FORMAT = 6
LATENTS_OF_SAE = 1 << 24
# Columns of the table `latents` that can be sorted by, with what they are called.
SCALARS = {
    "rate": "firing rate",
    "firings": "firings",
    "threshold": "threshold",
    "max": "largest activation",
    "nearest_phi": "nearest phi",
    "nearest_cosine": "nearest decoder cosine",
    "encoder_cosine": "encoder-decoder cosine",
    "match_cosine": "cosine with its match",
    "meta_e": "meta SAE's error",
    "split_score": "split score",
}
MEANINGS = {
    "rate": "share of the held-out tokens on which the latent fires",
    "firings": "number of held-out tokens on which the latent fires",
    "threshold": "the latent fires where its pre-activation is above this",
    "max": "its largest activation on the held-out tokens",
    "nearest_phi": "phi (correlation of firing) with the latent of the same SAE for which it is highest",
    "nearest_cosine": "cosine of its decoder row with the most similar decoder row of the same SAE",
    "encoder_cosine": "cosine of its encoder column with its own decoder row",
    "match_cosine": (
        "cosine of its decoder row with that of its match in the other arm of the same seed (solo for joint, joint for "
        "solo); latents are matched one to one, so a low cosine means that training changed the latent"
    ),
    "meta_e": (
        "share of its decoder row that the run's own meta SAE does not explain; only arms with a meta SAE have it"
    ),
    "split_score": (
        "score of its best split into latents of another SAE, on held-out documents: coverage x (1 - overlap) x "
        "smallest share, lowered where the latent itself is also in that SAE, or a child is also in this one"
    ),
}
# Kinds of pairs of SAEs: latents of the baseline in another arm; the other way round; and the base rate of each,
# latents of the baseline in its own next seed, and the other way round.
SPLITS, MERGES, BASE, MERGES_BASE = "splits", "merges", "base", "merges_base"
BASE_OF = {SPLITS: BASE, MERGES: MERGES_BASE, BASE: BASE, MERGES_BASE: MERGES_BASE}
KINDS = tuple(BASE_OF)

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE saes (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, arm TEXT NOT NULL, seed INTEGER NOT NULL, n INTEGER NOT NULL,
    live INTEGER, text INTEGER, n_tokens INTEGER, weights TEXT NOT NULL, has_firings INTEGER NOT NULL,
    has_meta INTEGER NOT NULL);
CREATE TABLE texts (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, n_tokens INTEGER NOT NULL, stretches BLOB NOT NULL);
CREATE TABLE text_chunks (
    text INTEGER, chunk INTEGER, entries BLOB NOT NULL, strings BLOB, PRIMARY KEY (text, chunk)) WITHOUT ROWID;
CREATE TABLE vocabulary (
    text INTEGER, entry INTEGER, token INTEGER NOT NULL, count INTEGER NOT NULL, string TEXT NOT NULL,
    folded TEXT NOT NULL, PRIMARY KEY (text, entry)) WITHOUT ROWID;
CREATE INDEX vocabulary_folded ON vocabulary (text, folded);
CREATE TABLE latents (
    key INTEGER PRIMARY KEY, sae INTEGER NOT NULL, latent INTEGER NOT NULL, firings INTEGER, rate REAL, threshold REAL,
    max REAL, nearest_phi REAL, nearest_cosine REAL, encoder_cosine REAL, match_cosine REAL, meta_e REAL,
    split_score REAL,
    top_tokens TEXT NOT NULL);
CREATE TABLE windows (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE tokens (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE histograms (key INTEGER PRIMARY KEY, low REAL NOT NULL, high REAL NOT NULL, counts BLOB NOT NULL);
CREATE TABLE top_tokens (
    text INTEGER, entry INTEGER, sae INTEGER, data BLOB NOT NULL, PRIMARY KEY (text, entry, sae)) WITHOUT ROWID;
CREATE TABLE explanations (key INTEGER PRIMARY KEY, text TEXT NOT NULL, judge TEXT);
CREATE TABLE replies (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE VIRTUAL TABLE explanation_words USING fts5 (
    text, content='explanations', content_rowid='key', tokenize="unicode61 remove_diacritics 2", prefix='1 2 3');
CREATE TABLE scores (
    sae INTEGER, score TEXT, part TEXT, latent INTEGER, value REAL, chance REAL,
    PRIMARY KEY (sae, latent, score, part)) WITHOUT ROWID;
CREATE TABLE edges (
    key INTEGER, kind TEXT, other INTEGER, data BLOB NOT NULL, PRIMARY KEY (key, kind, other)) WITHOUT ROWID;
CREATE TABLE meta_latents (
    sae INTEGER, meta_latent INTEGER, data BLOB NOT NULL, PRIMARY KEY (sae, meta_latent)) WITHOUT ROWID;
CREATE TABLE senses (
    key INTEGER, word TEXT, sense TEXT, recall REAL, share REAL, f1 REAL, PRIMARY KEY (key, word, sense)) WITHOUT ROWID;
CREATE TABLE logits (key INTEGER PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE pairs (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, parent INTEGER NOT NULL, child INTEGER NOT NULL,
    summary TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE splits (
    id TEXT PRIMARY KEY, pair TEXT NOT NULL, parent INTEGER NOT NULL, score REAL NOT NULL, coverage REAL, overlap REAL,
    firings INTEGER, children TEXT NOT NULL, lives_on TEXT NOT NULL, kept INTEGER NOT NULL);
CREATE INDEX splits_parent ON splits (parent, score);
CREATE INDEX splits_pair ON splits (pair, kept, score DESC);
CREATE TABLE split_members (key INTEGER, split TEXT, PRIMARY KEY (key, split)) WITHOUT ROWID;
"""


def key_of(sae: int, latent: int) -> int:
    return sae * LATENTS_OF_SAE + latent


def keys_of(sae: int) -> tuple[int, int]:
    """The first and the last key that a latent of an SAE can have, for BETWEEN."""
    return key_of(sae, 0), key_of(sae + 1, 0) - 1


def pair_name(parent: str, child: str) -> str:
    return f"{parent} -> {child}"


def create(path: Path) -> sqlite3.Connection:
    """A new store, open for writing."""
    connection = sqlite3.connect(path, isolation_level="IMMEDIATE")
    connection.executescript(TABLES)
    for column in SCALARS:
        connection.execute(f"CREATE INDEX latents_{column} ON latents (sae, {column})")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    return connection


def damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"{path} is damaged ({error}); delete it and build it again with `metasae explore`")


def unzipped(blob: bytes) -> bytes:
    """The unpacked bytes. Raises UserError where a packed value of the store is damaged."""
    try:
        return zlib.decompress(blob)
    except zlib.error as error:
        raise damaged(Path(STORE), error) from None
