"""What a checkpoint holds, understood: its model, and the state of its parameters.

Which checkpoint to use is chosen in initial.py; a run to answer with is opened in ddl/run/trained.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddl.arrays import Device
from ddl.config import Job
from ddl.data import Field, Known, Normalise, Target, compare
from ddl.errors import CheckpointError, ConfigError
from ddl.models import Model
from ddl.models import build as build_model
from ddl.reading import take
from ddl.train.state import Progress, TrainingState

OF_DATA = ("classes", "vocabulary", "loss")  # options that do not belong to the network


def understand(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Raises CheckpointError if ``meta`` is not what training saves. Every reader of a checkpoint calls it."""
    try:
        progress = Progress.from_json(take(meta, "progress", dict))
        if progress.normalise is not None:
            known = Normalise.from_json(progress.normalise)
            if not np.isfinite(np.array([known.mean, known.scale], np.float64)).all():
                raise ValueError("normalise is not finite")
        for name in ("shards", "samples", "global_batch", "seed"):
            take({name: 0, **meta}, name, int)
        take({"shuffle": True, **meta}, "shuffle", bool)
        if "knowledge" in meta:
            knowledge = take(meta, "knowledge", dict)
            data = take(knowledge, "data", dict)
            most = max(sum(array.size for array in arrays.values()), 1 << 24)
            for name, field in Known.from_json(data).fields.items():
                if (field.size or 0) > most:
                    raise ValueError(f"{name} has {field.size} classes")
            compare(data, data)  # it reads the other fields
            take(knowledge, "options", dict), take(knowledge, "samples", dict)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"its meta data cannot be understood: {reason}") from error


def model_of(
    job: Job, fields: Mapping[str, Field], options: Mapping[str, Any], target: Target | None, network: Any = None
) -> Model:
    """The job's model for data with these fields and this target. options: from ``knowledge_of``. network: instead of
    the one that the job names."""
    return build_model(
        job.model.name if network is None else network,
        fields,
        loss=None if job.model.loss == "auto" else job.model.loss,
        metrics=None if tuple(job.model.metrics) == ("auto",) else list(job.model.metrics),
        options=options if network is None else {k: v for k, v in options.items() if k in OF_DATA},
        seed=job.run.seed,
        suggested=None if target is None else target.loss,
    )


def check_shapes(model: Model, arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raises ConfigError, which names ``what``, if a parameter of ``model`` is missing or of another shape."""
    for name, (shape, _) in model.params.items():
        saved = arrays.get(f"params/{name}")
        if saved is None or saved.shape != tuple(shape):
            was = "missing" if saved is None else f"of shape {saved.shape}"
            raise ConfigError(f"{what}: {name} was saved as {was}, its model needs {tuple(shape)}")


def state_of(model: Model, job: Job, arrays: Mapping[str, np.ndarray], device: Device, what: str) -> TrainingState:
    """The parameters and averages of a checkpoint. Raises ConfigError if they are not those of ``model``."""
    wanted = {name: value for name, value in arrays.items() if name.startswith(("params/", "averages/"))}
    check_shapes(model, wanted, what)  # before memory is allocated, which may be any amount
    try:
        state = TrainingState(model, (), job.train.dtype, job.run.seed, device)
        state.load_named(wanted)
    except (ValueError, MemoryError) as error:
        raise ConfigError(f"{what}: {error}") from error
    return state
