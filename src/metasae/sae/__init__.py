"""The sparse autoencoder, its exact selection, its kernels and its folder on disk. Imports nothing of the other
rooms.
"""
