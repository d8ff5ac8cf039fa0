"""Resident memory of the compiler: Numba keeps LLVM loaded, which a rank no longer needs once its kernels are there."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_MADV_DONTNEED = 4


def drop_compiler_pages() -> None:
    """Take LLVM's code, about 50 MiB, out of this process's resident memory; what is called again is mapped again."""
    maps = Path("/proc/self/maps")
    if "llvmlite" not in sys.modules or not maps.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    for line in maps.read_text().splitlines():
        # Code is never written, so the file still holds it; relocated data would be lost.
        if "/libllvmlite" in line and " r-xp " in line:
            addresses = line.split()[0]
            start, stop = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)
