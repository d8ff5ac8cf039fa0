"""Evaluation spread over ranks: every sample once, nothing padded, exact at any number of ranks.

loop.py decides when to evaluate; ``python -m ddl.evaluate`` is in ddl/evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass
class EvaluationSums:
    """Sums over samples: of the loss, of the weights that it is divided by, and of the metrics by name."""

    loss: float = 0.0
    weight: float = 0.0
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, loss: float, weight: float, sums: Mapping[str, Any]) -> None:
        self.loss, self.weight = self.loss + float(loss), self.weight + float(weight)
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def over_ranks(self, group: Group, model: Model, samples: int, problem: UserError | None) -> dict[str, Any]:
        """The loss and metrics of all ranks' ``samples``, on every rank. problem: why this rank could not measure its
        part; every rank raises that of the first rank with one. Raises PeerLost."""
        total = EvaluationSums()
        parts = group.gather_objects((self, problem))
        for _, wrong in parts:
            if wrong is not None:
                raise wrong
        for part, _ in parts:  # in the order of ranks: the same bits everywhere
            total.add(part.loss, part.weight, part.sums)
        if total.weight == 0:
            return {"loss": float("nan"), "samples": samples}
        metrics = model.metric_values(total.sums, total.weight)
        return {"loss": total.loss / total.weight, **metrics, "samples": samples}


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
    found, problem = EvaluationSums(), None
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
            found.add(got_loss, got_weight, got)
    except UserError as error:
        problem = error
    return found.over_ranks(group, model, len(source), problem)
