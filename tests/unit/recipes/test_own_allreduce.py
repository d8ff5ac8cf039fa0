"""Recipe: an allreduce. A function from outside the package, entered in the registry, sums gradients in training."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.collectives.allreduce import TABLE, allreduce
from ddl.comm.threads import run_ranks

calls = []


def doubling(x, group):
    """Recursive doubling for a power of two of ranks: log2(n) exchanges of the whole array."""
    calls.append(x.nbytes)
    flat, received, distance = x.reshape(-1), np.empty(x.size, x.dtype), 1
    while distance < group.size:
        peer = group.rank ^ distance
        group.stream([flat.copy()], peer, [received], peer, lambda number: None, 1)
        # The lower rank's part is added first on both sides, so that both get the same bits.
        flat[...] = flat + received if group.rank < peer else received + flat
        distance *= 2


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TABLE, "doubling", doubling)
    calls.clear()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_own_allreduce_gives_every_rank_the_sum(size, rng):
    parts = rng.integers(-9, 9, (size, 17)).astype("float32")

    def sum_of(group):
        x = parts[group.rank].copy()
        allreduce(x, group, "doubling")
        return x

    for got in run_ranks(size, sum_of):
        assert np.array_equal(got, parts.sum(axis=0))


def test_training_sums_its_gradients_with_the_own_allreduce(trained):
    [(alone, _)] = trained(1)
    assert not calls
    for params, _ in trained(4, {"can_share": False}, algorithm="doubling"):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)
    assert calls
