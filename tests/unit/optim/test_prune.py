"""Pruned weights are the smallest ones, as many as the schedule says, and exactly zero after every update."""

import numpy as np
import pytest

from ddl import optim
from ddl.arrays import Layout, host
from ddl.errors import ConfigError

LAYOUT = Layout.of({"a.weight": (6, 5), "a.bias": (5,), "b.weight": (5, 4)})
WEIGHTS = [LAYOUT.slices["a.weight"], LAYOUT.slices["b.weight"]]


def of(by_layer=False):
    return optim.Pruning(0.8, WEIGHTS, begin=2, end=10, every=3, by_layer=by_layer)


def test_the_share_rises_along_the_cubic_of_zhu_and_gupta():
    shares = [of().share(update) for update in range(14)]
    wanted = [0.8 + (0 - 0.8) * (1 - min(max(t - 2, 0) / 8, 1)) ** 3 for t in range(14)]
    assert shares == pytest.approx(wanted) and shares[:3] == [0, 0, 0] and shares[10:] == [0.8] * 4


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_smallest_weights_are_zero_after_every_update(by_layer, xp, rng):
    pruning = of(by_layer)
    groups = optim.Groups(LAYOUT, optim.Adam(lr=0.1), pruning=pruning)
    start = np.zeros(LAYOUT.length, np.float32)
    for place in LAYOUT.slices.values():
        start[place] = rng.normal(size=place.stop - place.start)
    params, slots = xp.asarray(start), {name: xp.zeros(LAYOUT.length, np.float32) for name in groups.slots}
    wanted = np.zeros(LAYOUT.length, bool)
    for update in range(14):
        before = np.array(host(params))
        groups.update(params, xp.asarray(rng.normal(size=LAYOUT.length).astype(np.float32)), slots, 0.1, update, 1.0)
        if update in (2, 5, 8, 11, 10):
            for places in [[place] for place in WEIGHTS] if by_layer else [WEIGHTS]:
                numbers = np.concatenate([np.arange(place.start, place.stop) for place in places])
                order = numbers[np.argsort(np.abs(before[numbers]), kind="stable")]
                wanted[order[: int(pruning.share(update) * len(order))]] = True
        now = np.array(host(params))
        assert np.array_equal(host(slots["pruned"]) != 0, wanted)
        assert not now[wanted].any() and now[LAYOUT.slices["a.bias"]].all()
    assert wanted.sum() == (24 + 16 if by_layer else 40)


def test_an_optimizer_that_looks_at_whole_layers_cannot_prune():
    with pytest.raises(ConfigError, match="LARS"):
        optim.Groups(LAYOUT, optim.LARS(lr=0.1), pruning=of())
