"""Batches: many prompts, drawn in groups and stored in one folder."""

from xattn.batch.comparison import BatchComparison
from xattn.batch.index import Runs, StoredRun
from xattn.batch.items import Item
from xattn.batch.run import run

__all__ = ["BatchComparison", "Item", "Runs", "StoredRun", "run"]
