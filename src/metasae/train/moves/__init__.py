"""What the arm `atomic` does beside the gradient step: a nesting and a margin on a schedule, and splits of latents."""
