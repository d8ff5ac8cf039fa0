"""Algorithms by name: the registry's, the user's own, and errors that suggest the closest name."""

from dataclasses import replace

import numpy as np
import pytest

from ddl.collectives import TABLE, PersistentAllreduce, allreduce
from ddl.collectives.allreduce import resolve_algorithm
from ddl.comm.threads import run_ranks
from ddl.config import Job
from ddl.errors import ConfigError
from ddl.train.build import assemble

OWN = f"{__name__}:double_then_native"


def double_then_native(x, group):
    """An algorithm outside the package, recognisable by its result."""
    x *= 2
    TABLE["native"](x, group)


def test_the_registry_is_the_only_list():
    assert resolve_algorithm("auto") is None
    assert all(resolve_algorithm(name) is algorithm for name, algorithm in TABLE.items())


def test_an_unknown_name_raises_with_the_closest_one():
    with pytest.raises(ConfigError, match=r"comm\.algorithm = 'rings' is unknown; did you mean 'ring'"):
        resolve_algorithm("rings")


@pytest.mark.parametrize(
    "use", [lambda x, g: allreduce(x, g, "rings"), lambda x, g: PersistentAllreduce(g, 4, "f", "rings")]
)
def test_every_entry_point_raises_for_an_unknown_name(use):
    for error in run_ranks(2, lambda group: use(np.zeros(4), group)):
        assert isinstance(error, ConfigError)


def test_a_function_of_the_user_sums_by_its_import_name():
    def work(group):
        x = np.ones(4)
        allreduce(x, group, OWN)
        kept = PersistentAllreduce(group, 4, algorithm=OWN)
        kept.local[:] = 1
        kept.run()
        return x.tolist(), kept.result.tolist()

    assert run_ranks(2, work) == [([4.0] * 4, [4.0] * 4)] * 2


def test_a_job_with_an_unknown_algorithm_stops_before_training():
    job = Job()
    job = replace(job, comm=replace(job.comm, algorithm="rings"))
    with pytest.raises(ConfigError, match="did you mean 'ring'"):
        assemble(job, None, order=None, knowledge={}, optimizer=None)
