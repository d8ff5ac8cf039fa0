"""Losses of PyTorch as a sum and its weight, and metrics as sums over samples.

ddl adds up shards of any size, so it needs the sum of a loss and what the mean divides by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.errors import ConfigError, UserError
from ddl.models.model import OutputKind
from ddl.nn.metric import METRICS, Metric
from ddl.registry import resolve

IGNORED = -100  # the default of ignore_index in PyTorch


def class_axis_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores (rows, classes, ...) for class numbers (rows, ...) as (rows, ..., classes), which they may be already."""
    if outputs.dim() == targets.dim() + 1 and outputs.shape[:-1] != targets.shape:
        return outputs.movedim(1, -1)
    return outputs


def _cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
    if targets.is_floating_point():
        return F.cross_entropy(_wide(outputs), targets, reduction="sum"), targets.numel() // targets.shape[1]
    scores = _wide(class_axis_last(outputs, targets))
    counted = targets >= 0
    wanted = torch.where(counted, targets, IGNORED).flatten()
    return F.cross_entropy(scores.flatten(0, -2), wanted, reduction="sum"), counted.sum()


def _wide(outputs: Tensor) -> Tensor:
    """Losses are computed in float32 at least."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _of_values(loss: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
    """A loss of each output and its target. Their shapes may differ by axes of length 1."""
    if outputs.numel() != targets.numel() or len(outputs) != len(targets):
        raise UserError(f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs.shape)}")
    outputs = _wide(outputs)
    return loss(outputs, targets.to(outputs.dtype).reshape(outputs.shape), reduction="sum"), outputs.numel()


LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Any]]] = {
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": partial(_of_values, F.binary_cross_entropy_with_logits),
    "mse": partial(_of_values, F.mse_loss),
    "mae": partial(_of_values, F.l1_loss),
    "huber": partial(_of_values, F.huber_loss),
}


class Objective:
    """loss(outputs, targets), or loss(outputs) without targets, as (sum, weight).

    loss: a name of LOSSES; a loss of PyTorch with reduction "mean"; a function that returns the mean over the samples,
    or (sum, weight). Raises ConfigError for one that sums, or returns one value for each sample."""

    def __init__(self, loss: str | Callable[..., Any]):
        self.name = loss if isinstance(loss, str) else ""
        self._function = resolve(loss, LOSSES, "model.loss") if isinstance(loss, str) else loss
        if not callable(self._function):
            raise ConfigError(f"a loss is a name or a function of outputs and targets, not {self._function!r}")
        if isinstance(self._function, type):
            raise ConfigError(f"the loss is a class: make one, {self._function.__name__}()")
        self._weigh = _weight_of_classes(self._function)
        reduction = _option(self._function, "reduction", "mean")
        if reduction != "mean":
            raise ConfigError(f'the loss has reduction = "{reduction}", which must be "mean"')
        if isinstance(self._function, nn.Module) and any(True for _ in self._function.parameters()):
            raise ConfigError("the loss has parameters: make it a part of the module, so that they are trained")

    @property
    def output_kind(self) -> OutputKind:
        """What the loss takes the outputs for; values, for a function."""
        if self.name == "cross_entropy" or isinstance(self._function, nn.CrossEntropyLoss):
            return "logits"
        is_binary = self.name == "binary_cross_entropy" or isinstance(self._function, nn.BCEWithLogitsLoss)
        return "binary_logits" if is_binary else "values"

    def __call__(self, outputs: Any, targets: Any, rows: int) -> tuple[Tensor, float]:
        """rows: samples in the batch. Raises UserError for a value of another kind."""
        if self.name and not isinstance(outputs, Tensor):
            raise UserError(
                f'loss "{self.name}" takes one tensor of outputs, and the module returns {_described(outputs)}: give a '
                "function of outputs and targets instead"
            )
        value = self._function(outputs) if targets is None else self._function(outputs, targets)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor) and value[0].dim() == 0:
            return value[0], float(value[1])
        if isinstance(value, Tensor) and value.dim() == 0:
            weight = self._weigh(targets) if self._weigh is not None else float(rows)
            return (value * weight if weight else torch.zeros(())), weight  # the mean over nothing is NaN
        raise UserError(f"a loss returns its mean, or (sum, weight), not {_described(value)}")

    def check(self, outputs: Any, targets: Any, rows: int) -> None:
        """Raises UserError if the loss of a few samples is not what those of the first and of the others make up."""
        if rows < 2:
            return
        loss, weight = self(outputs, targets, rows)
        parts = [self(rows_of(outputs, part), rows_of(targets, part), n) for part, n in _cut(rows)]
        total = sum(float(part) for part, _ in parts)
        rtol = max(1e-3, 4 * torch.finfo(loss.dtype).eps)
        found, expected = [float(loss), weight], [total, sum(weight for _, weight in parts)]
        if not np.allclose(found, expected, rtol=rtol, atol=1e-5, equal_nan=True):
            raise UserError(
                f"the loss of {rows} samples is {float(loss):.6g}, but that of its parts adds up to {total:.6g}: a "
                "loss must be a mean over the samples, or return (sum, weight)"
            )


def _cut(rows: int) -> list[tuple[slice, int]]:
    return [(slice(0, 1), 1), (slice(1, rows), rows - 1)]


def rows_of(value: Any, part: slice) -> Any:
    """Some rows of every tensor in ``value``."""
    if isinstance(value, Tensor):
        return value[part]
    if isinstance(value, Mapping):
        return {name: rows_of(one, part) for name, one in value.items()}
    return type(value)(rows_of(one, part) for one in value) if isinstance(value, (tuple, list)) else value


def are_near(value: Any, other: Any) -> bool:
    """Whether outputs of the same rows differ by no more than rounding explains."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return torch.equal(value, other)
        limit = torch.finfo(value.dtype).eps ** 0.5 * other.abs().max() if len(other) else 0
        return bool(((value - other).abs() <= limit).all()) or not bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(are_near(one, other[name]) for name, one in value.items())
    return all(map(are_near, value, other)) if isinstance(value, (tuple, list)) else True


def _option(loss: Any, name: str, default: Any) -> Any:
    """An option of a loss of PyTorch: an attribute of a module, an argument of a partial function."""
    if isinstance(loss, partial):
        return loss.keywords.get(name, default)
    return loss.__dict__.get(name, default) if isinstance(loss, nn.Module) else default


def _weight_of_classes(loss: Any) -> Callable[[Tensor], float] | None:
    """What the mean of a loss of class numbers divides by; None for other losses."""
    function = loss.func if isinstance(loss, partial) else loss
    is_of_classes = function in (F.cross_entropy, F.nll_loss) or isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss))
    if not is_of_classes:
        return None
    ignored = _option(loss, "ignore_index", IGNORED)
    weights = loss.weight if isinstance(loss, nn.Module) else _option(loss, "weight", None)

    def weigh(targets: Tensor) -> float:
        if targets.is_floating_point():
            return targets.numel() / targets.shape[1]
        counted = targets != ignored
        return float(counted.sum() if weights is None else weights[targets[counted]].sum())

    return weigh


def array_of(tensor: Tensor) -> np.ndarray:
    """The values of a tensor; NumPy has no bfloat16, which becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class OfTensors(Metric):
    """The mean of function(outputs, targets): a tensor of one value per sample or target, or a scalar, which is taken
    as the mean over the batch."""

    every_step: ClassVar[int] = 2

    def __init__(self, name: str, function: Callable[[Any, Any], Any]):
        self._name, self._function = name, function

    @property
    def name(self) -> str:
        return self._name

    def sums(self, outputs: Any, targets: Any, loss: float) -> np.ndarray:
        value = torch.as_tensor(self._function(outputs, targets), dtype=torch.float64)
        rows = len(outputs if targets is None else targets)
        return np.array([float(value) * rows, rows] if value.dim() == 0 else [float(value.sum()), value.numel()])

    def value(self, sums: Any, weight: float) -> float:
        return float(sums[0] / sums[1]) if sums[1] else 0.0


class OfArrays(Metric):
    """A metric of ddl, given outputs and targets as arrays."""

    def __init__(self, metric: Metric):
        self._metric = metric

    @property
    def name(self) -> str:
        return self._metric.name

    @property
    def every_step(self) -> int:
        return self._metric.every_step

    def sums(self, outputs: Any, targets: Any, loss: float) -> Any:
        if not isinstance(outputs, Tensor):
            raise UserError(f"metric {self.name!r} needs one tensor of outputs, got {_described(outputs)}")
        return self._metric.sums(array_of(class_axis_last(outputs, targets)), array_of(targets), loss)

    def value(self, sums: Any, weight: float) -> Any:
        return self._metric.value(sums, weight)


def metrics_of(given: Mapping[str, Callable[[Any, Any], Any]] | Sequence[str | Metric]) -> list[Metric]:
    """Metrics from functions by name, or from names and metrics of ddl."""
    if isinstance(given, Mapping):
        return [OfTensors(name, function) for name, function in given.items()]
    found = [resolve(one, METRICS, "model.metrics") if isinstance(one, str) else one for one in given]
    return [OfArrays(one() if callable(one) else one) for one in found]
