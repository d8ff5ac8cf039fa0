"""Data: sources and formats, shards and their plan, sample order, batches, augmentation, the ledger's format."""

from ddl.data.digits import digits
from ddl.data.loader import Loader
from ddl.data.memory import Arrays, Shared, Subset, as_dtype, labels_of
from ddl.data.order import Order
from ddl.data.shards import Plan, assign, auto_shards, reassign
from ddl.data.source import Batch, Field, Source

__all__ = [
    "Arrays",
    "Batch",
    "Field",
    "Loader",
    "Order",
    "Plan",
    "Shared",
    "Source",
    "Subset",
    "as_dtype",
    "assign",
    "auto_shards",
    "digits",
    "labels_of",
    "reassign",
]
