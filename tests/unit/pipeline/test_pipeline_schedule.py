"""The schedule computes every micro-batch once each way, its messages meet, and its idle time is the least."""

from itertools import product

import pytest

from ddl.pipeline.schedule import Act, idle_share, in_flight, one_forward_one_backward

GRIDS = list(product([1, 2, 3, 4, 7], [1, 2, 3, 4, 5, 8, 20]))


def makespan(stages, micros, forward_s=1.0, backward_s=2.0):
    """Seconds of a step in which a message is sent only when its receiver has come to take it."""
    todo = [one_forward_one_backward(stage, stages, micros) for stage in range(stages)]
    at, clock = [0] * stages, [0.0] * stages
    partner = {  # act of a stage -> what its neighbour at +1 does meanwhile
        Act.SEND_ACTIVATION: Act.RECEIVE_ACTIVATION,
        Act.RECEIVE_GRADIENT: Act.SEND_GRADIENT,
        Act.SWAP_WITH_NEXT: Act.SWAP_WITH_PREVIOUS,
    }
    while any(at[stage] < len(todo[stage]) for stage in range(stages)):
        moved = False
        for stage in range(stages):
            if at[stage] == len(todo[stage]):
                continue
            act, number, other = todo[stage][at[stage]]
            if act in (Act.FORWARD, Act.BACKWARD):
                clock[stage] += forward_s if act is Act.FORWARD else backward_s
                at[stage], moved = at[stage] + 1, True
            elif act in partner and at[stage + 1] < len(todo[stage + 1]):
                theirs, sent, received = todo[stage + 1][at[stage + 1]]
                if theirs is partner[act]:
                    assert (sent, received) == (other, number)
                    clock[stage] = clock[stage + 1] = max(clock[stage], clock[stage + 1])
                    at[stage], at[stage + 1], moved = at[stage] + 1, at[stage + 1] + 1, True
        assert moved, f"{stages} stages wait for each other indefinitely"
    return max(clock)


@pytest.mark.parametrize(("stages", "micros"), GRIDS)
def test_no_stage_waits_for_ever_and_the_idle_share_is_the_least(stages, micros):
    busy = 3.0 * micros
    idle = 1 - busy / makespan(stages, micros)
    assert idle == pytest.approx(idle_share(stages, micros), abs=1e-12)


@pytest.mark.parametrize(("stages", "micros"), GRIDS)
def test_each_micro_batch_passes_once_each_way_and_few_are_kept(stages, micros):
    for stage in range(stages):
        steps = one_forward_one_backward(stage, stages, micros)
        for act in (Act.FORWARD, Act.BACKWARD):
            assert [number for one, number, _ in steps if one is act] == list(range(micros))
        kept = most = 0
        for act, *_ in steps:
            kept += (act is Act.FORWARD) - (act is Act.BACKWARD)
            most = max(most, kept)
        assert kept == 0 and most == in_flight(stage, stages, micros)
