"""Sends training curves and measures of a run to TensorBoard or Weights & Biases.

The run folder is the record (metrics.jsonl, measures.json); `follow.py` reads what is new in it and sends it to a sink.
Training does not depend on it, so an error there cannot harm a run, and a finished or killed run can be sent too.
"""
