"""PyTorch's memory on the host: what a step frees stays with the process, and the next step uses it again.

By default glibc returns it to the system after each backward pass. The kernel then clears the same pages again in
every step, which took 3 to 5 % of a small Transformer's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 512 << 20  # free memory beyond this is returned
MAPPED_BYTES = 32 << 20  # a larger tensor has its own mapping; the most that glibc accepts


# What a user sets to decide this, in part or in whole; see mallopt(3).
OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> None:
    """For this process, from now on. No effect without glibc's malloc, or where the user has set its thresholds."""
    if any(name in environment for name in OF_THE_USER) or "glibc.malloc." in environment.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
