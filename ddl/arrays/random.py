"""Random generators keyed by what they are for, never by who draws.

A draw belongs to (seed, purpose, numbers such as epoch, step, shard): any rank that computes that
piece of work draws the same numbers."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator whose stream depends on its arguments alone, on every machine and rank.

    Philox is counter based (Salmon et al., SC 2011), so any 128-bit key is a stream of its own;
    the key is a hash of the arguments, which keeps streams of neighbouring steps unrelated."""
    text = f"{seed}/{purpose}/" + "/".join(map(str, numbers))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
