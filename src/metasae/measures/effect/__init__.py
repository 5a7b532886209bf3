"""What is lost: of the activations, and of what the model makes of them."""
