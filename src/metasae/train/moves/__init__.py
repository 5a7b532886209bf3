"""What acts on the dictionary beside the gradient of one loss: nesting on a schedule, and latents that are split."""
