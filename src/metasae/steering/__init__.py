"""What may be done to a latent while a model runs (`edits.py`, without torch), doing it (`steering.py`), and text
written with and without it (`writing.py`).
"""

from metasae.steering.edits import Ablate, Add, Scale, Set

__all__ = ["Ablate", "Add", "Scale", "Set"]
