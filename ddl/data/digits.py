"""The bundled handwritten digits (digits.npz; source and licence in digits.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddl.data.memory import Arrays


def digits() -> Arrays:
    """1,797 images: x (8, 8, 1) uint8 with values 0 .. 16, y the digit shown."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        return Arrays(file["images"][..., None], file["labels"].astype(np.int64), names=[str(d) for d in range(10)])
