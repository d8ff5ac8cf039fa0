"""Asynchronous successive halving: which trials stop early, decided from their metric after 1, 3, 9, ... epochs.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, in the form that stops trials. A trial
is compared only with trials of smaller numbers: decisions depend neither on time nor on how many run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Seen:
    """What is known of a trial. by_epoch: the metric, smaller is better. is_over: nothing more will come."""

    by_epoch: Mapping[int, float]
    is_over: bool = False

    def at(self, rung: int) -> float | None:
        """The metric at the first evaluation after ``rung`` epochs."""
        epoch = min((epoch for epoch in self.by_epoch if epoch >= rung), default=None)
        return None if epoch is None else self.by_epoch[epoch]


def rungs(first: int, factor: int, epochs: int) -> list[int]:
    """The epochs after which trials are compared: first, first * factor, ... below ``epochs``."""
    found = []
    while first < epochs:
        found.append(first)
        first *= factor
    return found


def stops(trials: Sequence[Seen], at: Sequence[int], factor: int) -> list[int | None]:
    """Per trial, in the order of their numbers, the rung at which it stops; None: at none so far.

    At a rung a trial continues if it is among the best 1/factor of the trials there, rounded up. The decision
    waits until every earlier trial has reached the rung, has stopped below it or is over."""
    decided: list[int | None] = []
    reached: list[list[float | None]] = []  # per earlier trial its metric at each rung that it reached; None: not yet
    for trial in trials:
        own: list[float | None] = []
        stop = None
        for place, rung in enumerate(at):
            value = trial.at(rung)
            if value is None:
                if not trial.is_over:
                    own.append(None)
                break
            own.append(value)
            others = [other[place] for other in reached if len(other) > place]
            if None in others or any(other[-1:] == [None] for other in reached if len(other) <= place):
                # Whether an earlier trial gets here is not known yet, nor therefore whether this one continues.
                own.append(None)
                break
            known = sorted([*(other for other in others if other is not None), value])
            if known.index(value) >= ceil(len(known) / factor):
                stop = rung
                break
        decided.append(stop)
        reached.append(own)
    return decided
