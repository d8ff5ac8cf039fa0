"""Evaluation spread over ranks: every sample once, nothing padded, exact at any number of ranks.

loop.py decides when to evaluate; ``python -m ddl.evaluate`` is in ddl/evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from ddl.arrays import Arena, partition
from ddl.comm import Group
from ddl.data import Source, Transform
from ddl.errors import UserError
from ddl.models.model import Model
from ddl.nn.context import Context
from ddl.train.state import TrainingState


def own_samples(source: Source, group: Group) -> range:
    """The run of sample numbers that this rank evaluates."""
    part = partition(len(source), group.size)[group.rank]
    return range(part.start, part.stop)


MOST_ROWS, MOST_NUMBERS = 256, 2**22  # samples of a forward pass, and the numbers in their x


def rows_of(source: Source, rows: int | str) -> int:
    """The setting data.batch_eval for samples like those of ``source``."""
    return (
        int(rows) if rows != "auto" else max(min(MOST_NUMBERS // max(prod(source.fields["x"].shape), 1), MOST_ROWS), 1)
    )


def batches(source: Source, own: range, rows: int | str, transforms: Sequence[Transform]):
    """Batches of at most ``rows`` samples of ``own``, transformed as in training but without augmentation."""
    rows = rows_of(source, rows)
    for start in range(own.start, own.stop, rows):
        indices = np.arange(start, min(start + rows, own.stop), dtype=np.int64)
        batch: dict[str, np.ndarray] = source.gather(indices)
        for transform in transforms:
            batch = transform(batch, [slice(0, len(indices))], [])
        yield batch


def evaluate(
    model: Model,
    state: TrainingState,
    source: Source,
    group: Group,
    *,
    rows: int | str,
    transforms: Sequence[Transform] = (),
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Loss and metrics over all of ``source``: the same values on every rank. Raises PeerLost, and on every rank
    alike the UserError of a rank with invalid samples.

    rows: samples per forward pass, or "auto". transforms: normalisation and the like; they draw nothing."""
    loss, weight = 0.0, 0.0
    sums: dict[str, Any] = {}
    problem: UserError | None = None
    try:
        own = own_samples(source, group)
        source.hold([own])
        for batch in batches(source, own, rows, transforms):
            beat()
            group.probe("evaluate.batch")
            count = len(next(iter(batch.values())))
            context = Context(segments=[slice(0, count)], shards=[0], arena=Arena(state.device.xp))
            batch = {name: state.device.array(value) for name, value in batch.items()}
            got_loss, got_weight, got = model.loss_and_gradients(
                state.params.views, state.buffers, batch, None, context
            )
            loss, weight = loss + float(got_loss), weight + float(got_weight)
            for name, value in got.items():
                sums[name] = sums.get(name, 0) + value
    except UserError as error:
        problem = error
    parts = group.gather_objects((loss, weight, sums, problem))  # summed by rank order: the same bits everywhere
    for *_, wrong in parts:
        if wrong is not None:
            raise wrong
    loss, weight = sum(p[0] for p in parts), sum(p[1] for p in parts)
    total: dict[str, Any] = {}
    for _, _, part, _ in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    if weight == 0:
        return {"loss": float("nan"), "samples": len(source)}
    return {"loss": loss / weight, **model.metric_values(total, weight), "samples": len(source)}
