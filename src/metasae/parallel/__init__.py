"""One job over several processes (ranks), as torchrun starts them: the primary's latents are spread over the ranks.

`ranks.py` says who is there and counts what is sent; `trainer.py` is a trainer whose latents are spread; with one rank nothing
here does anything, and the ordinary trainer runs.
"""
