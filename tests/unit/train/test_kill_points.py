"""The list of kill points holds exactly the points that a run passes."""

import pytest

from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.fault.inject import POINTS
from ddl.nn import BatchNorm, Dense, Sequential

RUNS = {
    "one node": {"size": 3},
    "two nodes": {"size": 4, "nodes": [0, 0, 1, 1]},
    "private memory": {"size": 3, "can_share": False},
    "a death, and a spare": {"size": 3, "spares": 1, "death": Death(1, 1, "step.compute")},
    "a spare that is not needed": {"size": 2, "spares": 1},
    "a straggler": {"size": 3, "death": Death(1, 9, "allreduce.barrier")},
    "a death in the set-up": {"size": 3, "death": Death(0, 1, "setup.claim.done")},
    "synchronised": {"size": 2, "network": [Dense(8), BatchNorm(sync=True), Dense(2)]},
    "ring": {"size": 3, "algorithm": "ring"},
    "one replica": {"size": 3, "sharded": "on"},
    "the last step is the best": {"size": 1, "keep_best": True},
    "the best state": {"size": 2, "restore_best": True},
}


OF_THE_TASK = ("network", "algorithm", "sharded", "keep_best", "restore_best")


@pytest.fixture
def seen(whole_job):
    """Points that ranks of the runs pass; a group of threads adds the messages that its collectives are made of."""
    found = set[str]()
    for name, options in RUNS.items():
        changes = {key: options[key] for key in OF_THE_TASK if key in options}
        if "network" in changes:
            changes["network"] = Sequential(*changes["network"])
        settings = {"run.dir": f"runs/{name}", "checkpoint.keep": 1}

        def job(group, settings=settings, changes=changes):
            return whole_job(group, settings, **changes)

        ways = {key: value for key, value in options.items() if key not in OF_THE_TASK}
        results = run_ranks(function=job, probe=lambda rank: found.add, **ways)
        ended = [result for result in results if not isinstance(result, Killed)]
        assert ended and all(failure is None for _, failure in ended), (name, results)
    return {point for point in found if not point.endswith(".message") or point == "allreduce.stream.message"}


def test_the_list_holds_every_point_that_is_passed_and_no_other(seen):
    assert seen == set(POINTS)
