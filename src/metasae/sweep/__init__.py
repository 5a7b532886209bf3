"""Sweeps: many settings of one recipe, trained and measured once each, by any number of workers on one folder."""

from metasae.sweep.launch import run_sweep, sweep

__all__ = ["run_sweep", "sweep"]
