"""Scripted deaths of ranks that are threads (threads.py): which rank dies, and at which of its kill points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddl.comm.group import Probe


class Killed(BaseException):
    """This rank is dead. A BaseException, so that no handler for errors catches it."""


@dataclass(frozen=True)
class Death:
    """``rank`` (as launched) dies when it passes its ``count``-th kill point (from 1), of that name if one is given."""

    rank: int
    count: int
    point: str | None = None


class ScriptedDeaths:
    """Counts the kill points that one rank passes, and kills it at the scripted one."""

    def __init__(self, deaths: Sequence[Death], also: Probe):
        self.deaths, self.also, self.passed = deaths, also, 0
        self.named: dict[str, int] = {}

    def __call__(self, point: str) -> None:
        self.also(point)
        self.passed += 1
        self.named[point] = self.named.get(point, 0) + 1
        for death in self.deaths:
            if (self.passed if death.point is None else self.named.get(point, 0)) == death.count and (
                death.point in (None, point)
            ):
                raise Killed(point)
