"""Sweeps: many settings of one recipe, trained and measured once each, by any number of workers on one folder."""

from metasae.sweep.launch import sweep

__all__ = ["sweep"]
