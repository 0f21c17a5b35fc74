"""Search over one's own images: stores that keep codes, named by a URL."""

from jax_brcd.search.stores import STORES, Hit, Item, Store, open_store

__all__ = ["STORES", "Hit", "Item", "Store", "open_store"]
