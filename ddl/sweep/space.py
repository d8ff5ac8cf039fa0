"""The search space of a sweep, and the settings of each trial: pure functions of space, seed and the trial's number.

sweep.py runs the trials."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ddl.errors import ConfigError
from ddl.wording import instead, listed

Settings = dict[str, Any]
RANGES = ("uniform", "log", "int")
SAMPLERS = ("grid", "random")


def check_space(space: Mapping[str, Any], sampler: str) -> None:
    """Raises ConfigError in one line that names everything wrong. Names of settings are checked with the job."""
    problems = [problem for name, values in space.items() for problem in _problems(name, values, sampler)]
    if sampler not in SAMPLERS:
        problems.insert(0, f"sampler = {sampler!r} is unknown: {instead(sampler, SAMPLERS, 'there are')}")
    if not space:
        problems.append("[space] is empty: it names the settings to vary")
    if problems:
        raise ConfigError("; ".join(problems))


def _problems(name: str, values: Any, sampler: str) -> list[str]:
    where = f"[space] {name}"
    if isinstance(values, list):
        return [] if values else [f"{where} is an empty list"]
    if not isinstance(values, Mapping):
        return [f"{where} = {values!r} is one value: write a list, or a table such as {{log = [1e-4, 1e-1]}}"]
    kinds = [kind for kind in values if kind in RANGES]
    unknown = [key for key in values if key not in (*RANGES, "points")]
    if unknown or len(kinds) != 1:
        return [
            f"{where} is a table with one of {listed(RANGES)}, and for a grid points"
            + f"; not {unknown}" * bool(unknown)
        ]
    (kind,) = kinds
    ends = values[kind]
    numbers = (int,) if kind == "int" else (int, float)
    is_pair = isinstance(ends, list) and len(ends) == 2 and all(type(end) in numbers for end in ends)
    if (
        not is_pair
        or not all(math.isfinite(end) for end in ends)
        or ends[0] >= ends[1]
        or (kind == "log" and ends[0] <= 0)
    ):
        above = " above 0" if kind == "log" else ""
        return [f"{where} {kind} = {ends!r} must be [LEAST, MOST], two {'whole ' * (kind == 'int')}numbers{above}"]
    points = values.get("points")
    if sampler == "grid" and (type(points) is not int or points < 2):
        return [f"{where}: a grid needs points = 2 or more in a range, or a list"]
    return []


def trials_of(space: Mapping[str, Any], sampler: str, seed: int, count: int) -> list[Settings]:
    """The settings of every trial. count: of random ones; a grid has all combinations, the last name fastest."""
    if sampler == "grid":
        return [dict(zip(space, values, strict=True)) for values in itertools.product(*map(_points, space.values()))]
    # A generator for each trial and name: more trials, or another setting, leave the other draws as they are.
    return [
        {name: _draw(values, random.Random(f"{seed}/{number}/{name}")) for name, values in space.items()}
        for number in range(count)
    ]


def _points(values: Any) -> list[Any]:
    """The values of one setting in a grid, both ends included."""
    if isinstance(values, list):
        return values
    (kind,) = (kind for kind in values if kind in RANGES)
    return list(
        dict.fromkeys(_at(kind, values[kind], place / (values["points"] - 1)) for place in range(values["points"]))
    )


def _draw(values: Any, generator: random.Random) -> Any:
    if isinstance(values, list):
        return values[int(generator.random() * len(values))]
    (kind,) = (kind for kind in values if kind in RANGES)
    if kind == "int":
        least, most = values[kind]
        return least + int(generator.random() * (most - least + 1))
    return _at(kind, values[kind], generator.random())


def _at(kind: str, ends: Sequence[float], share: float) -> float:
    least, most = ends
    if kind == "log":
        return float(f"{least * (most / least) ** share:.6g}")
    return round(least + (most - least) * share) if kind == "int" else float(f"{least + (most - least) * share:.6g}")


def shuffled(trials: Sequence[Settings], seed: int) -> list[Settings]:
    """``trials`` in an order drawn by ``seed``. Halving needs it of a grid: where each trial is a little better than
    the one before, none would stop."""
    generator = random.Random(f"{seed}/order")
    return sorted(trials, key=lambda _: generator.random())


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def flattened(tables: Mapping[str, Any], above: Sequence[str] = ()) -> Settings:
    """Nested tables as "section.key" -> value."""
    flat: Settings = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, (*above, key))
        else:
            flat[".".join((*above, key))] = value
    return flat
