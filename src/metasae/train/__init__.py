"""Training: the objective, its closed-form gradients, the optimiser and the loop."""
