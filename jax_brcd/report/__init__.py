"""What a run shows: one table in the terminal, plots, and a page that holds them all."""

from jax_brcd.report.grid import RetrievalGrid
from jax_brcd.report.page import Report, write_report
from jax_brcd.report.table import SKIPPED, pair_table, results_table

__all__ = ["SKIPPED", "Report", "RetrievalGrid", "pair_table", "results_table", "write_report"]
