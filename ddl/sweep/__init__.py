"""Sweeps: runs of one job with many settings, side by side on disjoint cores; halving stops the hopeless ones early."""

from ddl.sweep.sweep import Result, Sweep

__all__ = ["Result", "Sweep"]
