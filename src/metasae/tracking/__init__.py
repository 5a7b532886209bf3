"""Training curves and measures of a run, sent on to TensorBoard or Weights & Biases.

The run folder is the record (metrics.jsonl, measures.json); `follow.py` reads what is new in it and gives it to a sink.
Training knows nothing of it, so nothing that goes wrong there can touch a run, and a finished or killed run can be sent
as well.
"""
