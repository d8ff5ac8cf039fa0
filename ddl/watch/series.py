"""Curves of any length in bounded memory: neighbouring steps share a point once there are too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_POINTS = 1024


class Point:
    """``stride`` steps: the last step and its time, and of each curve the sum, the count and the extremes."""

    __slots__ = ("curves", "first", "samples", "seconds", "step", "time")

    def __init__(self, step: int, time: float):
        self.first = self.step = step
        self.time, self.samples, self.seconds = time, 0, 0.0
        self.curves: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        known = self.curves.get(name)
        if known is None:
            self.curves[name] = [value, 1, value, value]
            return
        known[0] += value
        known[1] += 1
        if value < known[2]:
            known[2] = value
        elif value > known[3]:
            known[3] = value

    def merge(self, later: Point) -> None:
        self.step, self.time = later.step, later.time
        self.samples, self.seconds = self.samples + later.samples, self.seconds + later.seconds
        for name, (total, count, low, high) in later.curves.items():
            known = self.curves.setdefault(name, [0.0, 0, low, high])
            known[:] = [known[0] + total, known[1] + count, min(known[2], low), max(known[3], high)]


class Curves:
    """The metrics of a run's steps, as at most MOST_POINTS points of equal strides."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.stride = 1

    def add(self, step: int, time: float, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add a step; steps ascend, except after ``cut``."""
        points = self.points
        if points and step - points[-1].first < self.stride:
            point = points[-1]
            point.step, point.time = step, time
        else:
            if len(points) >= MOST_POINTS:
                self._halve()
            point = Point(step, time)
            points.append(point)
        point.samples += samples
        point.seconds += seconds
        for name, value in values.items():
            point.add(name, value)

    def cut(self, step: int) -> None:
        """Forget what comes after ``step``: training resumed from there."""
        while self.points and self.points[-1].step > step:
            self.points.pop()

    def _halve(self) -> None:
        self.stride *= 2
        for even, odd in zip(self.points[::2], self.points[1::2]):
            even.merge(odd)
        self.points = self.points[::2]

    def to_json(self) -> dict[str, Any]:
        """Arrays of equal length: step, time, samples_per_s, and of each curve its mean, least and largest values."""
        names = dict.fromkeys(name for point in self.points for name in point.curves)
        curves = {name: [point.curves.get(name) for point in self.points] for name in names}
        return {
            "step": [point.step for point in self.points],
            "time": [round(point.time, 3) for point in self.points],
            "samples_per_s": [short(p.samples / p.seconds) if p.seconds else None for p in self.points],
            "curves": {
                name: {
                    "mean": [short(one[0] / one[1]) if one else None for one in found],
                    "least": [short(one[2]) if one else None for one in found],
                    "largest": [short(one[3]) if one else None for one in found],
                }
                for name, found in curves.items()
            },
        }


def short(value: float) -> float:
    """``value`` with the digits that a picture can show."""
    return float(f"{value:.6g}")
