"""The sparse autoencoder, its gradients, its architectures, its kernels and its folder on disk."""
