"""The search as a web service with a page: what it answers (engine, app), what it refuses (limits, uploads, gate, protocol),
its files.

Only `python -m jax_brcd.serve` and tests import what lies here: it needs the extra `search`.
"""

READERS = "index-files"  # what the names of threads that read files of the index begin with
