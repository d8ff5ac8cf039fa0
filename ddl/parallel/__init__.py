"""Data parallelism: gradients of all ranks, summed in buckets while backward still runs or right after it."""

from ddl.parallel.buckets import Bucket, buckets
from ddl.parallel.reducer import GradientSum, Total

__all__ = ["Bucket", "GradientSum", "Total", "buckets"]
