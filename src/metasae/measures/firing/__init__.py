"""Which latents fire on which tokens, by which rule, and where that is kept."""
