"""What an SAE loses: of the activations, and in the model's output; and the side effects of steering."""
