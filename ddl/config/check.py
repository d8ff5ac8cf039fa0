"""Rejects invalid values and incompatible settings before MPI starts.

Each error is one line that names the setting. The contents of data files are checked by the data room, and the names
of models, optimizers, losses and sources by their own rooms, when train builds the job."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddl.config.sections import SECTIONS, DataSettings, Job, ModelSettings, OptimSettings
from ddl.environment import job_size, ranks_on_node
from ddl.errors import ConfigError
from ddl.reading import braces
from ddl.registry import QUALIFIED
from ddl.wording import counted

FRACTIONS = ("data.validation", "data.test")
TABLE_SETTINGS = ("columns", "drop", "types", "max_categories", "encoding", "missing", "missing_targets")
LAYERWISE = ("lars", "lamb")  # optimizers
FILES = ("data.path", "data.validation", "data.test", "comm.tuning")


def check(job: Job, ranks: int | None = None) -> Job:
    """Return ``job`` unchanged, or raise ConfigError with the first error.

    ranks: number of processes started, including spares; default: from the launch environment."""
    ranks = job_size() if ranks is None else ranks
    for error in _errors(job, ranks):
        raise ConfigError(error)
    return job


def check_values(job: Job) -> Job:
    """``check``, but only that each number is within its limits: files and locale may have changed since training."""
    for error in _limits(job):
        raise ConfigError(error)
    return job


def _get(job: Job, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(job, section), key)


def _label(name: str) -> str:
    section, key = name.split(".")
    return f"[{section}] {key}"


def _errors(job: Job, ranks: int) -> Iterator[str]:
    yield from _single_values(job)
    yield from _missing_files(job)
    yield from _contradictions(job)
    yield from _smaller(job)
    yield from _stages(job, ranks)
    yield from _ranks(job, ranks)


def _limits(job: Job) -> Iterator[str]:
    for section, kind in SECTIONS.items():
        for field in fields(kind):
            value, limits = getattr(getattr(job, section), field.name), field.metadata["limits"]
            name = f"[{section}] {field.name} is {value}"
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{name}: it must be a finite number"
            if isinstance(value, str):
                continue
            if limits.least is not None and value < limits.least:
                yield f"{name}: it must be at least {limits.least:g}"
            if limits.above is not None and value <= limits.above:
                yield f"{name}: it must be above {limits.above:g}"
            if limits.below is not None and value >= limits.below:
                yield f"{name}: it must be below {limits.below:g}"
    for name in ("shards", "batch_eval"):
        value = getattr(job.data, name)
        if value != "auto" and value < 1:
            yield f"[data] {name} is {value}: it must be at least 1, or auto"
    if job.train.epochs != "auto" and job.train.epochs < 0:
        yield f"[train] epochs is {job.train.epochs}: it must be at least 0, or auto"


def _single_values(job: Job) -> Iterator[str]:
    yield from _limits(job)
    for name in FRACTIONS:
        value = _get(job, name)
        if isinstance(value, float) and not 0 <= value < 1:
            yield f"{_label(name)} is {value}: a fraction of the samples is at least 0 and below 1"
    if job.data.oversample > 1:
        yield f"[data] oversample is {job.data.oversample}: it must be from 0 to 1"
    if job.run.name in ("", "..") or Path(job.run.name).name != job.run.name:
        yield f'[run] name is "{job.run.name}": it must be a plain file name; run.dir names a folder'
    for name in ("run.name", "run.dir"):
        if not _is_path(_get(job, name)):
            yield f"{_label(name)} has characters that the locale lacks: set PYTHONUTF8=1"
    for one in job.train.callbacks:
        if not QUALIFIED.fullmatch(one):
            yield f'[train] callbacks has "{one}": a callback is named as "package.module:Name"'


def _is_path(text: str) -> bool:
    """Whether ``text`` can name a file and be stored as UTF-8: arguments that the locale cannot decode cannot."""
    try:
        os.fsencode(text), text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _missing_files(job: Job) -> Iterator[str]:
    for name in FILES:
        value = _get(job, name)
        if isinstance(value, str) and value and not os.path.exists(value):
            absent = [one for one in braces(value) if not glob.glob(one) and not os.path.exists(one)]
            if absent:
                yield f"{_label(name)}: there is no {absent[0]}"
    for key, path in (("from", job.model.from_), ("teacher", job.model.teacher)):
        if path and not os.path.exists(path):
            yield f"[model] {key}: there is no {path}"
    if job.checkpoint.resume not in ("auto", "none") and not os.path.exists(job.checkpoint.resume):
        yield f"[checkpoint] resume: there is no {job.checkpoint.resume}; it is auto, none or a checkpoint's path"
    if job.train.dtype == "float16" and job.optim.name not in ("sgd", "momentum"):
        yield (
            f"[train] dtype float16 does not go with [optim] name {job.optim.name}: its squared gradients are 0 in "
            "float16; use sgd or momentum, or float32"
        )
    for name in ("metrics.trace", "metrics.prometheus"):
        file = Path(_get(job, name))
        if _get(job, name) and file.is_dir():
            yield f"{_label(name)}: {file} is a folder; it must be a file"
        if _get(job, name) and not file.absolute().parent.is_dir():
            yield f"{_label(name)}: there is no folder {file.absolute().parent}"
    if job.metrics.prometheus and not job.metrics.prometheus.endswith(".prom"):
        yield f"[metrics] prometheus: {job.metrics.prometheus}: the node exporter reads only files that end in .prom"
    if job.run.dir and os.path.exists(job.run.dir) and not os.path.isdir(job.run.dir):
        yield f"[run] dir: {job.run.dir} is not a folder"


def _contradictions(job: Job) -> Iterator[str]:
    data, optim, train = job.data, job.optim, job.train
    if train.epochs != "auto" and train.epochs < 1 and train.steps < 1:
        yield "[train] epochs is 0 and steps is 0: there is nothing to train"
    if data.source != "files" and (data.targets or data.format != "auto"):
        name, value = ("targets", data.targets) if data.targets else ("format", data.format)
        yield f"[data] {name} is {value}, but source is {data.source}: it belongs to files, which data.path names"
    for name in TABLE_SETTINGS:
        if data.source != "files" and getattr(data, name) != getattr(DataSettings(), name):
            yield f"[data] {name} is set, but source is {data.source}: it belongs to tables, which data.path names"
    held_out = sum(v for v in (data.validation, data.test) if isinstance(v, float))
    if held_out >= 1:
        yield f"[data] validation and test take {held_out:g} of the samples: nothing is left to train on"
    if train.patience and data.validation == 0.0:
        yield f"[train] patience is {train.patience}, but data.validation is 0: there is no loss to compare"
    if train.patience and train.evaluate_every == 0:
        yield f"[train] patience is {train.patience}, but evaluate_every is 0: there is no loss to compare"
    if data.image_size != "auto" and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", str(data.image_size)):
        yield f'[data] image_size is {data.image_size}: it must be auto, a number of pixels or "HEIGHTxWIDTH"'
    if data.channels not in ("auto", 1, 3, 4):
        yield f"[data] channels is {data.channels}: it must be auto, 1, 3 or 4"
    if train.restore_best == "on":
        lacking = {"data.validation": data.validation == 0.0, "checkpoint.keep_best": not job.checkpoint.keep_best}
        for name in (name for name, lacks in lacking.items() if lacks):
            yield f"[train] restore_best is on, but {name} is {_get(job, name)}: there is no best state to restore"
    if data.shards != "auto" and data.shards > train.global_batch:
        yield (
            f"[data] shards is {data.shards}, [train] global_batch is {train.global_batch}: each step takes at "
            "least one sample from every shard"
        )
    share = train.global_batch // (data.shards if data.shards != "auto" else 1)
    if job.comm.sync == "local":
        yield from _local(job)
    elif train.accumulate > share:
        yield f"[train] accumulate is {train.accumulate}, but a shard's share of a step is {counted(share, 'sample')}"
    if job.comm.gpu_memory > 1:
        yield f"[comm] gpu_memory is {job.comm.gpu_memory}, more than all of it"
    if job.comm.wire != "float32":
        yield from _wire(job)
    if job.fault.respawn and job.fault.spares:
        yield f"[fault] respawn is true and spares is {job.fault.spares}: use one or the other to replace lost ranks"
    if optim.lr != "auto" and optim.min_lr > optim.lr:
        yield f"[optim] min_lr is {optim.min_lr}, above lr, which is {optim.lr}"
    if optim.schedule == "step" and optim.step_every < 1:
        yield "[optim] schedule is step, but step_every is 0"
    if train.steps and optim.warmup_steps > train.steps:
        yield f"[optim] warmup_steps is {optim.warmup_steps}, more than [train] steps, which is {train.steps}"
    if optim.nesterov and optim.name != "momentum":
        yield f'[optim] nesterov is true, but the optimizer is "{optim.name}"; it belongs to momentum'


def _local(job: Job) -> Iterator[str]:
    if job.train.accumulate > 1:
        yield f"[comm] sync is local, but [train] accumulate is {job.train.accumulate}: use inner_steps"
    if job.optim.sharded == "on":
        yield "[comm] sync is local, but [optim] sharded is on: ranks that update apart cannot share a replica"
    if job.optim.prune:
        yield f"[comm] sync is local, but [optim] prune is {job.optim.prune}: ranks would prune their own copies apart"


def _wire(job: Job) -> Iterator[str]:
    comm, named = job.comm, f"[comm] wire is {job.comm.wire}"
    if job.train.dtype != "float32":
        yield f"{named}, but [train] dtype is {job.train.dtype}: only float32 gradients are compressed"
    if comm.algorithm not in ("auto", "hierarchical"):
        yield f"{named}, but algorithm is {comm.algorithm}: gradients are compressed between nodes by hierarchical"
    if comm.gpu == "direct":
        yield f"{named}, but gpu is direct: MPI itself then sums, in float32; use staged"


def _smaller(job: Job) -> Iterator[str]:
    """Settings that make models smaller, or start from another model."""
    model, defaults = job.model, ModelSettings()
    if model.teacher_alpha > 1:
        yield f"[model] teacher_alpha is {model.teacher_alpha}: the teacher's share of the loss is from 0 to 1"
    for key in ("teacher_temperature", "teacher_alpha"):
        if not model.teacher and getattr(model, key) != getattr(defaults, key):
            yield f"[model] {key} is set, but teacher is not: it says how much is learned from that run"
    if model.name_map and not model.from_:
        yield "[model] name_map is set, but from is not: it renames the parameters that training starts from"
    for name, own in model.name_map.items():
        if not isinstance(own, str):
            yield f"[model] name_map: {name} = {own!r} must be a name"
    for pattern, epoch in job.optim.unfreeze.items():
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 2:
            yield f"[optim] unfreeze: {pattern} = {epoch!r} must be an epoch from 2 on"
    if job.optim.unfreeze and job.comm.sync == "local":
        yield "[optim] unfreeze does not go with [comm] sync = local (yet)"
    if job.train.precision == "mixed":
        yield from _mixed(job)
    optim, unpruned = job.optim, OptimSettings()
    if optim.prune:
        names = [optim.name, *(str(group.get("name", "")) for group in optim.groups)]
        for name in (name for name in names if name in LAYERWISE):
            yield f"[optim] prune is {optim.prune}, but name is {name}, which scales its steps by the norms of layers"
        if not optim.prune_begin < optim.prune_end <= 1:
            begin, end = optim.prune_begin, optim.prune_end
            yield f"[optim] prune_end is {end}: it must be above prune_begin, which is {begin}, and at most 1"
    for key in ("scope", "match", "begin", "end", "every"):
        if not optim.prune and getattr(optim, f"prune_{key}") != getattr(unpruned, f"prune_{key}"):
            yield f"[optim] prune_{key} is set, but prune is 0: nothing is pruned"


def _mixed(job: Job) -> Iterator[str]:
    named = "[train] precision is mixed"
    if job.train.dtype != "float32":
        yield f"{named}, but dtype is {job.train.dtype}: parameters and sums stay in float32"
    if job.comm.device == "auto":
        yield (
            f"{named}, which on a CPU is slower than full: set [comm] device to gpu, or to cpu if you want it there "
            "nevertheless"
        )
    if job.comm.sync == "local":
        yield f"{named}, which does not go with [comm] sync = local (yet)"


def _stages(job: Job, ranks: int) -> Iterator[str]:
    """What does not go with a network in stages."""
    stages, cut = job.parallel.stages, job.parallel.cut
    workers = ranks - job.fault.spares
    if cut and len(cut) != stages - 1:
        yield (
            f"[parallel] cut names {counted(len(cut), 'layer')}, but stages is {stages}: it names the first layer of "
            "every stage after the first"
        )
    if stages == 1:
        return
    if workers % stages or not workers:
        spare = f", or keep fault.spares = {ranks % stages}" if ranks > stages and ranks % stages else ""
        yield (
            f"[parallel] stages is {stages}, but {counted(workers, 'rank')} can train: start a multiple of "
            f"{stages}{spare}"
        )
    for name, value in (
        ("optim.sharded", "on"),
        ("comm.overlap", "on"),
        ("comm.gpu", "direct"),
        ("comm.device", "gpu"),
        ("comm.sync", "local"),
        ("train.balance", "auto"),
        ("train.precision", "mixed"),
    ):
        if _get(job, name) == value:
            yield f"[parallel] stages is {stages}, which does not go with {_label(name)} = {value} (yet)"
    for name in ("optim.prune", "model.teacher", "comm.wire"):
        value = _get(job, name)
        if value and value != "float32":
            yield f"[parallel] stages is {stages}, which does not go with {_label(name)} = {value} (yet)"


def _started(ranks: int) -> str:
    return f"{counted(ranks, 'rank')} {'was' if ranks == 1 else 'were'} started"


def _ranks(job: Job, ranks: int) -> Iterator[str]:
    fault, shards = job.fault, job.data.shards
    workers = ranks - fault.spares
    if fault.spares and workers < 1:
        yield f"[fault] spares is {fault.spares}, but only {_started(ranks)}: there are no ranks left to train"
    if fault.min_ranks > max(workers, 1):
        yield f"[fault] min_ranks is {fault.min_ranks}, but only {counted(workers, 'rank')} can train"
    if job.comm.wire != "float32" and ranks == ranks_on_node() and not _resumes(job):
        yield (
            f"[comm] wire is {job.comm.wire}, but {_started(ranks)} on one node: it compresses what travels between "
            "nodes; leave it out"
        )
    if shards != "auto" and shards < workers and not _resumes(job):
        yield f"[data] shards is {shards}, but {_started(workers)}: every rank needs a shard"


def _resumes(job: Job) -> bool:
    """Whether the job resumes from a checkpoint, which then determines the number of shards."""
    if job.checkpoint.resume == "auto":
        folder = Path(job.run.dir or os.devnull) / "checkpoints"
        return folder.is_dir() and any(folder.iterdir())
    return job.checkpoint.resume != "none"
