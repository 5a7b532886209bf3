"""Auto-interp: a judge explains a latent from windows of text, and scores say how well the explanation predicts its
firings.
"""
