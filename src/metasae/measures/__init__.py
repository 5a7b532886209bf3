"""Measures of a trained SAE on held-out tokens. Each file is one measure; `suite.py` runs them all."""
