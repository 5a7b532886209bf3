"""How latents fire together, beside what chance and rates would give."""
