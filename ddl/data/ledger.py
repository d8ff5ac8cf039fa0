"""The ledger of committed steps and their plans, and the audit that proves from it how often each sample was used.

Sample numbers are never stored: the keyed permutation (order.py) gives the samples of an epoch to its steps, each of
them to one step. So the steps that count once prove how often each sample was used, in time and memory that do not
depend on the number of samples. ddl/audit.py prints the result.

A ledger is a JSONL file of two kinds of lines (the first is wrapped here), in the order of writing:

    {"start": 120, "launch": "a1", "generation": 0,
     "samples": 1437, "shards": 24, "global_batch": 64, "seed": 0, "shuffle": true}
    {"step": 120, "launch": "a1", "generation": 0, "plan": [0, 0, 1, 1], "skipped": false, "samples": 64}

A start line gives the first step of a launch (0, or that of the checkpoint it resumed from). Earlier lines from that
step on are no longer part of the job's history. Neither are lines that an earlier launch, which has not noticed yet,
still appends after it. ``plan`` is omitted if it equals that of the launch's previous line. ``samples`` is the sum of
the ranks' counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from ddl.data.order import Order
from ddl.errors import ConfigError, DataError
from ddl.jsonlines import Lines
from ddl.reading import parse_object, read_regular, take

COUNTS = ("expected", "used", "missing", "repeated", "skipped")
MOST_SAMPLES = 1 << 40  # a ledger with more is damaged
NAMED = 8  # how many samples or steps a problem names


@dataclass(frozen=True)
class Start:
    """A launch starts at ``step``, with this order of samples."""

    launch: str
    generation: int
    step: int
    order: Order


@dataclass(frozen=True)
class Record:
    """Step ``step`` (numbered from 0) was committed. samples: the sum of the ranks' counts; None if not counted."""

    launch: str
    generation: int
    step: int
    plan: tuple[int, ...]
    skipped: bool = False
    samples: int | None = None


class Ledger:
    """Appends to a ledger file; each line is written at once, so a killed process loses none unless the disk is full.

    say: called with a warning when a full disk makes lines wait, and again when they have been written."""

    def __init__(self, path: str | Path, say: Callable[[str], None] = lambda message: None):
        self.path, self._say = Path(path), say
        self._lines: Lines | None = None
        self._plan: tuple[int, ...] | None = None

    def catch_up(self) -> bool:
        """Write waiting lines if the disk has room again; returns whether the file is complete."""
        return self._lines is None or self._lines.catch_up()

    def forget(self) -> None:
        """Discard waiting lines: another launch owns the file now."""
        if self._lines is not None:
            self._lines.forget()

    def start(self, start: Start) -> None:
        o = start.order
        self._write(
            start=start.step,
            launch=start.launch,
            generation=start.generation,
            samples=o.samples,
            shards=o.shards,
            global_batch=o.global_batch,
            seed=o.seed,
            shuffle=o.shuffle,
        )
        self._plan = None

    def append(self, record: Record) -> None:
        line: dict[str, Any] = {"step": record.step, "launch": record.launch, "generation": record.generation}
        if record.plan != self._plan:
            line["plan"] = self._plan = record.plan
        self._write(**line, skipped=record.skipped, samples=record.samples)

    def _write(self, **line: Any) -> None:
        if self._lines is None:
            self._lines = Lines(self.path, self._say)
        self._lines.write(json.dumps(line))

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read(path: str | Path) -> list[Start | Record]:
    """The entries of a ledger. An incomplete last line, as a killed writer leaves it, is ignored.

    Raises DataError naming an invalid line."""
    try:
        lines = read_regular(path).split(b"\n")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error
    entries: list[Start | Record] = []
    plans: dict[str, tuple[int, ...]] = {}  # by launch: two may be writing for a while
    for number, text in enumerate(lines, 1):
        try:
            entries.append(_entry(parse_object(text.decode()), plans))
        except json.JSONDecodeError:
            continue
        except (ValueError, ConfigError) as error:
            raise DataError(f"not a line of a ledger: {error}", path, number, "line") from error
    return entries


def _entry(line: Mapping[str, Any], plans: dict[str, tuple[int, ...]]) -> Start | Record:
    """The entry that a line describes. Raises ValueError or ConfigError for an invalid line."""
    launch, generation = take(line, "launch", str), take(line, "generation", int)
    if "start" in line:
        numbers = {name: take(line, name, int) for name in ("samples", "shards", "global_batch", "seed")}
        if numbers["samples"] > MOST_SAMPLES:
            raise ValueError(f"samples is {numbers['samples']}")
        order = Order(**numbers, shuffle=take(line, "shuffle", bool))
        plans.pop(launch, None)
        return Start(launch, generation, take(line, "start", int), order)
    if "plan" in line:
        plan = take(line, "plan", list)
        if any(type(owner) is not int for owner in plan):
            raise ValueError(f"plan is {plan}")
        plans[launch] = tuple(plan)
    if launch not in plans:
        raise ValueError("plan is missing")
    samples = take(line, "samples", int, type(None))
    return Record(launch, generation, take(line, "step", int), plans[launch], take(line, "skipped", bool), samples)


@dataclass(frozen=True)
class Audit:
    """The result of an audit. It counts uses: each sample should be used once in each epoch.

    expected: uses up to the last step. used: in a committed update. missing: in no record. repeated: beyond the first
    within an epoch. skipped: in a skipped step. expected = used - repeated + missing + skipped.
    problems: one line each; a skipped step is not a problem."""

    steps: int
    epochs: float
    expected: int
    used: int
    missing: int
    repeated: int
    skipped: int
    launches: int
    generations: int
    problems: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return not self.problems

    @property
    def samples(self) -> dict[str, int]:
        """The five counts, as summary.json carries them."""
        return {name: getattr(self, name) for name in COUNTS}


def lineage(entries: Iterable[Start | Record]) -> tuple[dict[int, Record], Order | None, list[str]]:
    """The surviving history: step -> the record that counts, by ascending steps; the order of samples; contradictions.

    A record, like a start, replaces all earlier records of its step and of later steps. Records that a launch appends
    after the start of another one do not count, since it no longer owns the folder."""
    surviving: dict[int, Record] = {}
    order: Order | None = None
    problems: list[str] = []
    owner = ""
    for entry in entries:
        if isinstance(entry, Start):
            owner = entry.launch
        elif owner and entry.launch != owner:
            continue
        while surviving and next(reversed(surviving)) >= entry.step:
            surviving.popitem()
        if isinstance(entry, Record):
            surviving[entry.step] = entry
        elif order is None:
            order = entry.order
        elif order != entry.order:
            problems.append(f"launch {entry.launch} orders samples as {entry.order}, those before it as {order}")
    return surviving, order, problems


def audit(entries: Sequence[Start | Record], order: Order | None = None, steps: int | None = None) -> Audit:
    """Prove how often each sample was used, from the records only.

    order: used if the ledger has no start line. steps: how many the job says it committed; by default those
    up to the last record. Raises DataError if neither gives the order."""
    surviving, own_order, problems = lineage(entries)
    order = order or own_order
    if order is None:
        raise DataError("the ledger has no start line, so the order of samples is not known")
    total = max(surviving, default=-1) + 1 if steps is None else steps
    problems += _plan_problems(surviving, order)
    beyond = [step for step in surviving if step >= total]
    if beyond:
        problems.append(f"records of steps {_few(beyond)}, but the job ended after {total}")
    counts: Counter[str] = Counter()
    recorded = sorted({step // order.steps_per_epoch for step in surviving if step < total})
    for epoch in recorded:
        counts += _epoch(epoch, surviving, order, total, problems)
    # Skip epochs without a record: a damaged step number may be arbitrarily large.
    if unrecorded := -(-total // order.steps_per_epoch) - len(recorded):
        epochs, rest = divmod(total, order.steps_per_epoch)
        expected = epochs * order.samples + min(rest * order.global_batch, order.samples)
        lost = expected - counts["expected"]
        counts += Counter(expected=lost, missing=lost)
        known = set(recorded)
        first = list(islice((epoch for epoch in count() if epoch not in known), min(unrecorded, NAMED)))
        problems.append(f"no record of epochs {_few(first, unrecorded)}")
    return Audit(
        steps=total,
        epochs=total / order.steps_per_epoch,
        **{name: counts[name] for name in COUNTS},
        launches=len({entry.launch for entry in entries}),
        generations=len({(entry.launch, entry.generation) for entry in entries}),
        problems=problems,
    )


def _epoch(epoch: int, surviving: Mapping[int, Record], order: Order, total: int, problems: list[str]) -> Counter[str]:
    """The COUNTS of one epoch, of the first ``total`` steps; errors are appended to ``problems``."""
    counts: Counter[str] = Counter()
    first = epoch * order.steps_per_epoch
    lost: list[int] = []
    for step in range(first, min(first + order.steps_per_epoch, total)):
        samples, record = order.step_samples(step - first), surviving.get(step)
        counts["expected"] += samples
        if record is None:
            lost.append(step)
            counts["missing"] += samples
        elif record.skipped:
            counts["skipped"] += samples
        else:
            # No rank computed a shard without an owner, so the ranks' count may be lower than the step's samples.
            counted = samples if record.samples is None else record.samples
            counts["used"] += counted
            counts["missing"] += max(samples - counted, 0)
            counts["repeated"] += max(counted - samples, 0)
            if counted != samples:
                problems.append(f"step {step}: ranks counted {counted} samples, it has {samples}")
    if lost:
        places = [step - first for step in lost]
        named = _few(_lowest_samples(epoch, places, order), sum(map(order.step_samples, places)))
        problems.append(f"epoch {epoch}: no record of steps {_few(lost)} with samples {named}")
    return counts


def _lowest_samples(epoch: int, steps_in_epoch: Sequence[int], order: Order) -> list[int]:
    """The lowest sample numbers of these steps of an epoch, NAMED at most."""
    found: list[int] = []
    for shard in range(order.shards):  # whose numbers ascend with the shard's
        if len(found) >= NAMED:
            break
        try:
            shuffled = order.permutation(epoch, shard) + order.shard_range(shard).start
        except MemoryError as error:
            what = f"{order.samples} samples in {order.shards} shards"
            raise DataError(f"the ledger's order of {what} does not fit in memory") from error
        found += sorted(int(shuffled[place]) for step in steps_in_epoch for place in order.share(step, shard))
    return found[:NAMED]


def _plan_problems(surviving: dict[int, Record], order: Order) -> list[str]:
    """Plans that do not give every shard exactly one owner."""
    problems, seen = [], set()
    for step, record in surviving.items():
        if id(record.plan) in seen:  # steps of a generation share one object, and comparing long plans takes time
            continue
        seen.add(id(record.plan))
        if len(record.plan) != order.shards or any(owner < 0 for owner in record.plan):
            problems.append(f"step {step}: the plan gives owners to {len(record.plan)} of {order.shards} shards")
    return problems


def _few(numbers: Sequence[int], total: int | None = None) -> str:
    """The first of ``numbers``, and how many more there are in ``total`` (default: their count)."""
    rest = (len(numbers) if total is None else total) - NAMED
    return ", ".join(map(str, numbers[:NAMED])) + (f" and {rest} more" if rest > 0 else "")
