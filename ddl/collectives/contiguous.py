"""The one demand on an array that is summed: its elements lie one after another."""

from __future__ import annotations

from ddl.arrays import Array


def check_contiguous(x: Array) -> None:
    """Raises ValueError for a strided array: its sum would land in a copy."""
    if not x.flags.c_contiguous:
        raise ValueError(f"an array that is summed in place must be contiguous; this one has strides {x.strides}")
