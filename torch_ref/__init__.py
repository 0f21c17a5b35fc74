"""The same pipeline in plain PyTorch: the reference that jax_brcd is held against."""
