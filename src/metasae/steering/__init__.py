"""What may be done to a latent while a model runs (`edits.py`, without torch), and doing it (`steering.py`)."""

from metasae.steering.edits import Ablate, Add, Scale, Set

__all__ = ["Ablate", "Add", "Scale", "Set"]
