"""What may not be, or not go together: every mistake of a job that can be told before MPI starts.

Each check is one line that names the setting. What a file holds is the data room's to check; which models,
optimizers, losses and sources there are is known to the rooms that have them, when train builds the job."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddl.config.sections import SECTIONS, Job
from ddl.environment import job_size
from ddl.errors import ConfigError

# setting -> smallest value that makes sense
AT_LEAST: Mapping[str, float] = {
    "run.seed": 0,
    "data.prefetch": 0,
    "data.batch_eval": 1,
    "optim.lr": 0,
    "optim.weight_decay": 0,
    "optim.warmup_steps": 0,
    "optim.min_lr": 0,
    "optim.step_every": 0,
    "optim.scale_lr_by_batch": 0,
    "optim.clip_norm": 0,
    "train.global_batch": 1,
    "train.epochs": 0,
    "train.steps": 0,
    "train.accumulate": 1,
    "train.evaluate_every": 0,
    "train.patience": 0,
    "fault.min_ranks": 1,
    "fault.spares": 0,
    "fault.skip_limit": 1,
    "fault.check_every": 0,
    "checkpoint.every_s": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.every_epochs": 0,
    "checkpoint.keep": 1,
    "metrics.console_every_s": 0,
}
POSITIVE = (
    "optim.eps",
    "optim.step_factor",
    "comm.bucket_mib",
    "comm.gpu_memory",
    "fault.hang_timeout_s",
    "fault.recovery_timeout_s",
)
BELOW_ONE = ("optim.momentum", "optim.beta1", "optim.beta2", "optim.decay")  # from 0 on
FRACTIONS = ("data.validation", "data.test")
FILES = ("data.path", "data.validation", "data.test", "comm.tuning")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # "package.module:Name"


def check(job: Job, ranks: int | None = None) -> Job:
    """``job`` itself when it can be run; raises ConfigError with the first mistake otherwise.

    ranks: processes that were started, spares included; default: as the launcher's environment says."""
    ranks = job_size() if ranks is None else ranks
    for mistake in _mistakes(job, ranks):
        raise ConfigError(mistake)
    return job


def _get(job: Job, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(job, section), key)


def _label(name: str) -> str:
    section, key = name.split(".")
    return f"[{section}] {key}"


def _mistakes(job: Job, ranks: int) -> Iterator[str]:
    yield from _single_values(job)
    yield from _missing_files(job)
    yield from _contradictions(job)
    yield from _ranks(job, ranks)


def _single_values(job: Job) -> Iterator[str]:
    for section, kind in SECTIONS.items():
        for field in fields(kind):
            value = getattr(getattr(job, section), field.name)
            if isinstance(value, float) and not math.isfinite(value):
                yield f"[{section}] {field.name} is {value}: it must be a finite number"
    for name, least in AT_LEAST.items():
        if _get(job, name) < least:
            yield f"{_label(name)} is {_get(job, name)}: it must be at least {least}"
    for name in POSITIVE:
        if _get(job, name) <= 0:
            yield f"{_label(name)} is {_get(job, name)}: it must be above 0"
    for name in BELOW_ONE:
        if not 0 <= _get(job, name) < 1:
            yield f"{_label(name)} is {_get(job, name)}: it must be at least 0 and below 1"
    for name in FRACTIONS:
        value = _get(job, name)
        if isinstance(value, float) and not 0 <= value < 1:
            yield f"{_label(name)} is {value}: a fraction of the samples is at least 0 and below 1"
    if not 0 <= job.data.oversample <= 1:
        yield f"[data] oversample is {job.data.oversample}: it must be from 0 to 1"
    if job.data.shards != "auto" and job.data.shards < 1:
        yield f"[data] shards is {job.data.shards}: it must be at least 1, or auto"
    if not job.run.name or Path(job.run.name).name != job.run.name:
        yield f'[run] name is "{job.run.name}": it must be a plain file name; run.dir names a folder'
    for one in job.train.callbacks:
        if not _OWN.fullmatch(one):
            yield f'[train] callbacks has "{one}": a callback is named as "package.module:Name"'


def _missing_files(job: Job) -> Iterator[str]:
    for name in FILES:
        value = _get(job, name)
        if isinstance(value, str) and value and not glob.glob(value) and not os.path.exists(value):
            yield f"{_label(name)}: there is no {value}"
    if job.model.from_ and not os.path.exists(job.model.from_):
        yield f"[model] from: there is no {job.model.from_}"
    if job.checkpoint.resume not in ("auto", "none") and not os.path.exists(job.checkpoint.resume):
        yield f"[checkpoint] resume: there is no {job.checkpoint.resume}; it is auto, none or a checkpoint's path"
    if job.train.dtype == "float16" and job.optim.name not in ("sgd", "momentum"):
        yield (
            f"[train] dtype float16 does not go with [optim] name {job.optim.name}: its squared gradients are 0 in "
            "float16; use sgd or momentum, or float32"
        )
    if job.metrics.trace:
        trace = Path(job.metrics.trace)
        if trace.is_dir():
            yield f"[metrics] trace: {trace} is a folder; it must be a file"
        if not trace.absolute().parent.is_dir():
            yield f"[metrics] trace: there is no folder {trace.absolute().parent}"
    if job.run.dir and os.path.exists(job.run.dir) and not os.path.isdir(job.run.dir):
        yield f"[run] dir: {job.run.dir} is not a folder"


def _contradictions(job: Job) -> Iterator[str]:
    data, optim, train = job.data, job.optim, job.train
    if train.epochs < 1 and train.steps < 1:
        yield "[train] epochs is 0 and steps is 0: there is nothing to train"
    held_out = sum(v for v in (data.validation, data.test) if isinstance(v, float))
    if held_out >= 1:
        yield f"[data] validation and test take {held_out:g} of the samples: nothing is left to train on"
    if train.patience and data.validation == 0.0:
        yield f"[train] patience is {train.patience}, but without data.validation there is nothing to wait for"
    if train.patience and train.evaluate_every == 0:
        yield f"[train] patience is {train.patience}, but evaluate_every is 0: there is nothing to wait for"
    if data.shards != "auto" and data.shards > train.global_batch:
        yield (
            f"[data] shards is {data.shards}, [train] global_batch is {train.global_batch}: every shard gives at "
            "least one sample to a step"
        )
    share = train.global_batch // (data.shards if data.shards != "auto" else 1)
    if train.accumulate > share:
        yield f"[train] accumulate is {train.accumulate}, but a shard's share of a step is only {share} samples"
    if job.comm.gpu_memory > 1:
        yield f"[comm] gpu_memory is {job.comm.gpu_memory}, more than all of it"
    if job.fault.respawn and job.fault.spares:
        yield f"[fault] respawn is true and spares is {job.fault.spares}: the dead are replaced by the one or the other"
    if optim.min_lr > optim.lr:
        yield f"[optim] min_lr is {optim.min_lr}, above lr, which is {optim.lr}"
    if optim.schedule == "step" and optim.step_every < 1:
        yield "[optim] schedule is step, but step_every is 0"
    if train.steps and optim.warmup_steps > train.steps:
        yield f"[optim] warmup_steps is {optim.warmup_steps}, more than [train] steps, which is {train.steps}"
    if optim.nesterov and optim.name != "momentum":
        yield f'[optim] nesterov is true, but the optimizer is "{optim.name}"; it belongs to momentum'


def _ranks(job: Job, ranks: int) -> Iterator[str]:
    fault, shards = job.fault, job.data.shards
    workers = ranks - fault.spares
    if fault.spares and workers < 1:
        yield f"[fault] spares is {fault.spares}, but only {ranks} ranks were started: none is left to train"
    if fault.min_ranks > max(workers, 1):
        yield f"[fault] min_ranks is {fault.min_ranks}, but only {workers} ranks train"
    if shards != "auto" and shards < workers and not _resumes(job):
        yield f"[data] shards is {shards}, but {workers} ranks were started: every rank needs a shard"


def _resumes(job: Job) -> bool:
    """Does the job go on from a checkpoint, whose shards then count?"""
    if job.checkpoint.resume == "auto":
        folder = Path(job.run.dir or os.devnull) / "checkpoints"
        return folder.is_dir() and any(folder.iterdir())
    return job.checkpoint.resume != "none"
