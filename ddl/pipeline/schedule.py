"""The 1F1B schedule: in which order a stage computes micro-batches and exchanges messages with its neighbours.

Pure arithmetic; flow.py performs it. Source: Narayanan and others, PipeDream, 2019, with a flush after every step."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum


class Act(Enum):
    """One action of a stage. A swap sends and receives at once: two stages that both sent first would never return."""

    FORWARD = "forward"
    BACKWARD = "backward"
    RECEIVE_ACTIVATION = "receive activation"
    SEND_ACTIVATION = "send activation"
    RECEIVE_GRADIENT = "receive gradient"
    SEND_GRADIENT = "send gradient"
    SWAP_WITH_NEXT = "send activation, receive gradient"
    SWAP_WITH_PREVIOUS = "send gradient, receive activation"


Step = tuple[Act, int, int]  # the action; the micro-batch computed or sent; the one received (-1: none)

_OF_PREVIOUS = (Act.RECEIVE_ACTIVATION, Act.SEND_GRADIENT, Act.SWAP_WITH_PREVIOUS)
_OF_NEXT = (Act.SEND_ACTIVATION, Act.RECEIVE_GRADIENT, Act.SWAP_WITH_NEXT)


def in_flight(stage: int, stages: int, micros: int) -> int:
    """The most micro-batches whose activations a stage keeps at once."""
    return min(stages - stage, micros)


def one_forward_one_backward(stage: int, stages: int, micros: int) -> list[Step]:
    """What ``stage`` of ``stages`` does in a step of ``micros`` micro-batches, in order.

    It first computes as many forward passes as there are stages behind it, then alternates, so that it keeps the
    activations of at most ``in_flight`` micro-batches. One micro-batch passes layer by layer."""
    skipped = (*(_OF_PREVIOUS if stage == 0 else ()), *(_OF_NEXT if stage == stages - 1 else ()))
    return [step for step in _steps(min(stages - 1 - stage, micros), micros) if step[0] not in skipped]


def _steps(ahead: int, micros: int) -> Iterator[Step]:
    """The actions of a stage with neighbours on both sides. ahead: forward passes before the first backward pass."""
    for micro in range(ahead):
        yield Act.RECEIVE_ACTIVATION, -1, micro
        yield Act.FORWARD, micro, -1
        yield Act.SEND_ACTIVATION, micro, -1
    if ahead < micros:
        yield Act.RECEIVE_ACTIVATION, -1, ahead
    for micro in range(ahead, micros):
        back = micro - ahead
        yield Act.FORWARD, micro, -1
        yield Act.SWAP_WITH_NEXT, micro, back
        yield Act.BACKWARD, back, -1
        if micro + 1 < micros:
            yield Act.SWAP_WITH_PREVIOUS, back, micro + 1
        else:
            yield Act.SEND_GRADIENT, back, -1
    for back in range(micros - ahead, micros):
        yield Act.RECEIVE_GRADIENT, -1, back
        yield Act.BACKWARD, back, -1
        yield Act.SEND_GRADIENT, back, -1


def idle_share(stages: int, micros: int) -> float:
    """The share of a step in which a stage has nothing to compute, if all stages take equally long."""
    return (stages - 1) / (micros + stages - 1)
