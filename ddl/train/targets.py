"""Targets that are values: which models learn them standardised, with which numbers, and what the user reads about it.

How a model computes with the scale is in ddl/models/target_scale.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ddl.config import Job
from ddl.data import Field, Splits, as_dtype, target_moments
from ddl.models import Model

FAR = 10  # deviations of 1 from 0, or times 1: where a network learns targets badly as they are
MOST_SHOWN = 4  # columns


def with_scaled_targets(job: Job, model: Model, splits: Splits) -> tuple[Model, Splits, list[str]]:
    """``model`` that starts with the scale of the training part's targets, if it can have one; the parts for it, since
    only such a model takes targets in float64; and lines for the banner."""
    y = splits.train.fields.get("y")
    if y is None or splits.target is None or splits.target.kind != "values":
        return model, splits, []
    if model.target_scale is not None and job.data.scale_targets:
        mean, deviation = target_moments(splits.train)
        shown = _shown(mean, deviation)
        line = f"y: learned as (y - mean) / deviation ({shown}); the loss is of these, all else in the data's units"
        return model.with_target_scale(mean, deviation), splits, [line]
    dtypes = {name: f.dtype for name, f in splits.train.fields.items()}
    if dtypes["y"] == np.float64 and job.train.dtype != "float64":
        keep = {"x"} if dtypes["x"] == np.float64 else set()
        parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
        cast = {name: part and as_dtype(part, job.train.dtype, keep=keep) for name, part in parts.items()}
        splits = replace(splits, **cast)
    return model, splits, _warning(job, model, splits, y)


def _warning(job: Job, model: Model, splits: Splits, y: Field) -> list[str]:
    """A line where targets are far from standardised and nothing scales them."""
    if math.prod(y.shape) > MOST_SHOWN or splits.train.targets() is None:
        return []
    mean, deviation = target_moments(splits.train)
    if (np.abs(mean) < FAR).all() and ((deviation > 1 / FAR) & (deviation < FAR)).all():
        return []
    why = "data.scale_targets is false" if not job.data.scale_targets else _reason(model)
    return [f"y: not scaled ({_shown(mean, deviation)}), because {why}: scale it in the data if the loss stays high"]


def _reason(model: Model) -> str:
    if not model.networks:
        return f"{type(model).__module__}.{type(model).__name__} computes its loss itself"
    return "the network does not end with a linear Dense layer, or the loss is your own"


def _shown(mean: np.ndarray, deviation: np.ndarray) -> str:
    parts = [", ".join(f"{value:.6g}" for value in values[:MOST_SHOWN]) for values in (mean, deviation)]
    more = ", ..." if len(mean) > MOST_SHOWN else ""
    return f"mean {parts[0]}{more}; deviation {parts[1]}{more}"
