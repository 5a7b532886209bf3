"""Auto-interp: what a reader of windows of text can say about a latent, and how well that foretells where it fires."""
