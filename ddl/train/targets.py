"""Targets that are values: which models learn them standardised, by which numbers, and what the user reads about it.

How a model computes with the scale is in ddl/models/target_scale.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ddl.config import Job
from ddl.data import Field, Splits, as_dtype, target_moments
from ddl.models import Model, Supervised
from ddl.models.target_scale import Scale

FAR = 10  # deviations of 1 from 0, or times 1: where a network learns targets badly as they are
MOST_SHOWN = 4  # columns


def with_scaled_targets(job: Job, model: Model, splits: Splits) -> tuple[Model, Splits, list[str]]:
    """``model`` that starts with the scale of the training part's targets, if it can have one; the parts for it, since
    only such a model takes targets in float64; and lines for the banner."""
    y = splits.train.fields.get("y")
    if y is None or splits.target is None or splits.target.kind != "values":
        return model, splits, []
    if isinstance(model, Supervised) and model.scales_targets and job.data.scale_targets:
        scale = target_moments(splits.train)
        model = replace(model, target_scale=scale)
        return model, splits, [f"y: scaled to be learned ({_shown(scale)}): the loss is of scaled values, all else not"]
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
    return [f"y: not scaled ({_shown((mean, deviation))}), because {why}: scale it in the data if the loss stays high"]


def _reason(model: Model) -> str:
    if not isinstance(model, Supervised):
        return f"the model is a {type(model).__module__}.{type(model).__name__}"
    return "the loss is your own" if model.head is not None else "the network does not end with a linear Dense layer"


def _shown(scale: Scale) -> str:
    means, deviations = ([f"{value:.6g}" for value in values[:MOST_SHOWN]] for values in scale)
    more = ", ..." if len(scale[0]) > MOST_SHOWN else ""
    return f"mean {', '.join(means)}{more}; deviation {', '.join(deviations)}{more}"
