"""Steering: the edits of a latent (`edits.py`, without torch), a model that runs with them (`steering.py`), and text
written with and without them (`writing.py`).
"""

from metasae.steering.edits import Ablate, Add, Scale, Set

__all__ = ["Ablate", "Add", "Scale", "Set"]
