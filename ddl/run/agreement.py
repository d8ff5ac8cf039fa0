"""Before training, ranks compare what must be equal on all of them: settings, data and model layout.

Ranks that disagree would sum gradients of different jobs and finish with status 0. Each rank sends a digest along with
the gather that any job starts with; only where digests differ are the values themselves exchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ddl.collectives import Call, check_same_call
from ddl.comm import Group
from ddl.config import Job
from ddl.errors import ConfigError, DdlError, UserError
from ddl.train.task import Task

# Sections whose settings decide what ranks compute or when they wait for each other, and their settings that may
# differ: paths on local disks, where and how fast a rank computes, and what only the leader does or reads.
_SECTIONS = ("data", "model", "optim", "train", "comm", "parallel", "fault", "checkpoint")
_FREE = (
    *("path", "targets", "prefetch", "batch_eval", "from_", "teacher", "compiled", "callbacks", "device", "tuning"),
    *("chaos", "resume"),
)
SHOWN = 80  # characters of a value in an error


def essentials(job: Job, task: Task) -> dict[str, Any]:
    """What must be equal on all ranks, by the name that an error shows."""
    values: dict[str, Any] = {"[run] seed": job.run.seed}
    for section in _SECTIONS:
        settings = getattr(job, section)
        for field in fields(settings):
            value = getattr(settings, field.name)
            is_file = field.name in ("validation", "test") and isinstance(value, str)
            if not is_file and field.name not in _FREE:
                values[f"[{section}] {field.name}"] = value
    values["[metrics] trace"] = job.metrics.trace
    values["the number of steps"] = total = task.total_steps
    for step in sorted({0, 1, total // 4, total // 2, total - 1} & set(range(total))):  # a schedule may be a function
        values[f"the learning rate at step {step}"] = task.lr(step)
    values["the digest of the given initial values"] = task.initial_digest
    values["the digest of the teacher's parameters"] = task.teacher_digest
    values["the table of comm.tuning"] = repr(task.tuning)
    knowledge = task.settings.get("knowledge", {})
    values |= {f"the number of {name} samples": count for name, count in knowledge.get("samples", {}).items()}
    data = dict(knowledge.get("data", {}))
    hashes = data.pop("fingerprint", {})
    values |= {f"the data's {name}": value for name, value in data.items()}
    values["the hash of the training data"] = hashes.get("all", "")
    values["the hash of sampled training data"] = hashes.get("hashes", {})
    return values | {f"the shape of parameter {name}": shape for name, (shape, _) in task.model.params.items()}


def disagreement(group: Group, problem: DdlError | None, mine: Mapping[str, Any]) -> DdlError | None:
    """On all workers: the first rank's problem, or a ConfigError if their essentials differ, or None.

    problem: why this rank cannot begin, if so. mine: this rank's essentials. Raises PeerLost, and UserError if
    another rank's script does something else."""
    try:
        check_same_call(group, Call("starts to train"))
    except ValueError as error:
        raise UserError(str(error)) from None
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in mine.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    gathered = group.gather_objects((problem, digest))
    if problems := [error for error, _ in gathered if error is not None]:
        return problems[0]
    digests = [digest for _, digest in gathered]
    if len(set(digests)) == 1:
        return None
    every = group.gather_objects(texts)
    rank = next(rank for rank, other in enumerate(digests) if other != digests[0])
    first, second = every[0], every[rank]
    name = next(name for name in {**first, **second} if first.get(name) != second.get(name))
    values = _from_difference(*(texts.get(name, "missing") for texts in (first, second)))
    return ConfigError(f"ranks disagree: {name} is {values[0]} on rank 0 and {values[1]} on rank {rank}")


def _from_difference(one: str, other: str) -> list[str]:
    """Both texts, cut to what surrounds their first difference where they are long."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    begin = 0 if max(len(one), len(other)) <= SHOWN else max(place - SHOWN // 2, 0)
    return [
        ("..." if begin else "") + text[begin : begin + SHOWN] + ("..." if begin + SHOWN < len(text) else "")
        for text in (one, other)
    ]
