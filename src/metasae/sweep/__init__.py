"""Sweeps: many settings of one recipe, each trained and measured once, by any number of workers on one folder."""

from metasae.sweep.launch import sweep

__all__ = ["sweep"]
