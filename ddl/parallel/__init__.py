"""Data parallelism: sum the gradients of all ranks in buckets, while backward is running or right after it."""

from ddl.parallel.buckets import Bucket, buckets
from ddl.parallel.reducer import Backward, GradientSum, SumOptions, Total

__all__ = ["Backward", "Bucket", "GradientSum", "SumOptions", "Total", "buckets"]
