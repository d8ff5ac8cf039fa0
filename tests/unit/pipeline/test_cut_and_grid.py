"""Where a network is cut, and which rank gets which stage."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from ddl.errors import ConfigError
from ddl.pipeline import cheapest_cut, first_grid, named_cut, regrid
from ddl.pipeline.grid import IDLE


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_no_cut_has_a_cheaper_slowest_stage(stages):
    random = np.random.default_rng(stages)
    for _ in range(20):
        costs = random.integers(1, 20, 8).tolist()
        allowed = sorted(random.choice(np.arange(1, 8), 5, replace=False).tolist())
        cut = cheapest_cut(costs, allowed, stages)
        assert [one.start for one in cut] == [0, *(one.stop for one in cut[:-1])] and cut[-1].stop == 8
        assert all(one.start in allowed for one in cut[1:])
        every = [
            max(sum(costs[a:b]) for a, b in pairwise([0, *chosen, 8])) for chosen in combinations(allowed, stages - 1)
        ]
        assert max(sum(costs[one]) for one in cut) == min(every)


def test_more_stages_than_cuts_are_refused():
    with pytest.raises(ConfigError, match=r"parallel\.stages is 4, but the network can be cut into 3 stages at most"):
        cheapest_cut([1, 1, 1, 1], [1, 3], 4)


def test_named_layers_begin_stages():
    names = ["a", "b", "c", "d"]
    assert named_cut(names, [1, 2, 3], ["b", "d"]) == (slice(0, 1), slice(1, 3), slice(3, 4))
    for given, message in (
        (["e"], "no layer 'e'"),
        (["a"], "no stage can begin with 'a'"),
        (["c", "b"], "c and b are not in the network's order"),
    ):
        with pytest.raises(ConfigError, match=message):
            named_cut(names, [1, 2, 3], given)


def test_the_first_grid_makes_a_replica_of_neighbours():
    grid = first_grid(6, 3)
    assert grid.ranks == ((0, 1, 2), (3, 4, 5)) and grid.standbys == ()
    assert grid.column(1) == [1, 4] and grid.heads == [0, 3] and grid.place(5) == (1, 2)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_new_grid_is_as_large_as_it_can_be_and_moves_as_few_ranks_as_possible(stages):
    random = np.random.default_rng(stages)
    for _ in range(50):
        held = [*range(stages), *random.integers(IDLE, stages, random.integers(0, 9)).tolist()]
        random.shuffle(held)
        grid = regrid(held, stages)
        used = [rank for chain in grid.ranks for rank in chain]
        assert len(set(used)) == len(used) == len(held) // stages * stages
        assert sorted([*used, *dict(grid.standbys)]) == list(range(len(held)))
        assert all(held[rank] in (IDLE, stage) for rank, stage in grid.standbys)
        kept = sum(held[rank] == stage for chain in grid.ranks for stage, rank in enumerate(chain))
        assert kept == sum(min(held.count(stage), grid.replicas) for stage in range(stages))
