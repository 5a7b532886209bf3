"""Differences with intervals; the unit is a trained SAE."""
