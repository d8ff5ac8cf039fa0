"""Random generators keyed by purpose, never by rank.

The key is (seed, purpose, numbers such as epoch, step, shard): any rank that computes that piece of work draws the
same numbers."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator whose stream depends only on the arguments, on every machine and rank.

    Philox is counter-based (Salmon et al., SC 2011), so every 128-bit key gives an independent stream. The key is a
    hash of the arguments, which keeps the streams of neighbouring steps unrelated."""
    text = f"{seed}/{purpose}/" + "/".join(map(str, numbers))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
