"""Recipe: a metrics sink. A listener from outside the package receives the events of training on the leader."""

from __future__ import annotations

import pytest

from ddl.comm.deaths import Death
from ddl.metrics import StepDone


class Curve:
    """Keeps the loss of every committed step."""

    def __init__(self):
        self.losses, self.is_closed = {}, False

    def write(self, event):
        if isinstance(event, StepDone):
            self.losses[event.step] = event.loss

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_own_sink_receives_every_step_and_is_closed(ranks, trained):
    curve = Curve()
    trained(ranks, sinks=[curve])
    assert list(curve.losses) == list(range(1, 13)) and curve.losses[12] < curve.losses[1]
    assert curve.is_closed


def test_a_sink_that_cannot_write_does_not_end_training(trained):
    class Full(Curve):
        def write(self, event):
            raise OSError("no space left")

    full, curve = Full(), Curve()
    trained(1, sinks=[full, curve])
    assert full.is_closed and len(curve.losses) == 12


def test_the_next_leader_writes_to_its_own_sinks(trained):
    curve = Curve()
    trained(3, {"death": Death(0, 5, "step.commit")}, sinks=[curve])
    assert 12 in curve.losses
