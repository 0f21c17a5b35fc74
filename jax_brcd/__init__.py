"""BRCD in JAX: distil a ViT hashing teacher into a small student that searches almost as well."""

__version__ = "0.1.0"
