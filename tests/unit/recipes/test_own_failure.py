"""Recipe: a kind of failure. A new act of the fault script, from outside the package, strikes a rank in training."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.comm.deaths import Killed
from ddl.errors import ConfigError
from ddl.fault.inject import ACTS, Fault, parse


@pytest.fixture
def struck(monkeypatch):
    """Registers the act "unplug" and collects the faults that were performed."""
    monkeypatch.setitem(ACTS, "unplug", "the host loses its power")
    return []


@pytest.mark.parametrize("rank", [0, 2])
def test_survivors_of_the_own_failure_end_with_the_parameters_of_an_undisturbed_run(rank, struck, trained):
    script = parse(f"unplug rank {rank} at point step.commit:4", ranks=3)

    def unplug(fault):
        struck.append(fault)
        raise Killed(str(fault))  # of a process: os.kill, as ddl.fault.inject.perform does

    [(alone, _)] = trained(1)
    survivors = trained(3, {"probe": lambda rank: script.probe(rank, act=unplug)})
    assert struck == [Fault("unplug", rank, None, "step.commit", 4)]
    assert len(survivors) == 2
    for params, _ in survivors:
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


def test_a_script_with_an_act_that_is_not_registered_is_refused():
    with pytest.raises(ConfigError, match="unplug"):
        parse("unplug rank 1 at step 2")
