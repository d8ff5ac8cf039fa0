"""A torch.nn.Module as a model of ddl: its parameters are views of ddl's flat buffer, and each gradient is copied into
ddl's as soon as autograd has finished it.

The loss and the metrics are in objective.py, buffers such as running statistics in buffers.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddl.arrays import Views, generator
from ddl.errors import ConfigError, UserError
from ddl.models.model import Batch, Measured, Sums
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Kept, Shape
from ddl.nn.metric import Metric
from ddl.nn.norm import LEAST_SAMPLES
from ddl.torch.buffers import Buffers, numbers, refuse_changes
from ddl.torch.gradients import Gradients
from ddl.torch.objective import Objective, metrics_of

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch after forward. loss: its sum over them."""

    batch: Mapping[str, Tensor]
    rows: int
    outputs: Any
    loss: Tensor
    weight: float
    is_last: bool


class Model(Measured):
    """module: its parameters and buffers are lent to ddl, and after training hold the trained values.

    loss: "cross_entropy" or another name of ``ddl.torch.objective.LOSSES``; a loss of PyTorch with reduction "mean"; or
    a function of outputs and targets that returns the mean over the samples, or (sum, weight). metrics: name ->
    function of outputs and targets that returns one value per sample, or the mean over the batch; or names of ddl's.
    inputs: the fields of a batch that forward takes, in the order of its arguments. target: the field that the loss and
    the metrics take as targets; None: they take only the outputs. averaged: buffers that forward changes.
    Raises ConfigError for a module that cannot be trained so."""

    def __init__(
        self,
        module: nn.Module,
        loss: str | Callable[..., Any],
        metrics: Mapping[str, Callable[[Any, Any], Any]] | Sequence[str | Metric] = (),
        *,
        inputs: Sequence[str] = ("x",),
        target: str | None = "y",
        averaged: Sequence[str] = (),
    ):
        if not isinstance(module, nn.Module):
            raise ConfigError(f"ddl.torch.Model takes a torch.nn.Module, not {module!r}")
        self.module, self.inputs, self.target = module, tuple(inputs), target
        self.objective, self.metrics = Objective(loss), metrics_of(metrics)
        every = dict(module.named_parameters())
        self._trained = {name: p for name, p in every.items() if p.requires_grad}
        if not self._trained:
            raise ConfigError("no parameter of the module requires a gradient")
        self._parameters = {**self._trained, **every}  # frozen ones last
        self._type = _type_of(self._parameters)
        _refuse_unknown(module)
        self._buffers = Buffers(module, averaged)
        self._was_training, self._is_set = module.training, False
        # Batch statistics and random draws belong to a shard: such modules compute one shard after another.
        self._by_shard = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
        self._known: dict[int, tuple[Views, dict[str, Tensor]]] = {}
        self._bound: dict[str, Tensor] = {}
        self._gradients = Gradients(self._trained, self.by_rows)

    # What it consists of.

    @cached_property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return {name: (tuple(p.shape), partial(_value_of, p)) for name, p in self._parameters.items()}

    @property
    def frozen(self) -> Sequence[str]:
        return [name for name in self._parameters if name not in self._trained]

    @property
    def dtype(self) -> str:
        return DTYPES[self._type]

    @property
    def averages(self) -> Mapping[str, Average]:
        return self._buffers.averages

    @property
    def kept(self) -> Mapping[str, Kept]:
        return self._buffers.kept

    @cached_property
    def by_rows(self) -> Sequence[str]:
        return [
            f"{prefix}.weight" if prefix else "weight"
            for prefix, part in self.module.named_modules()
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse and part.weight.requires_grad
        ]

    @property
    def samples_per_shard(self) -> int:
        norms = (part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
        return LEAST_SAMPLES if any(True for _ in norms) else 0

    @property
    def targets_are_values(self) -> bool:
        return self.objective.name == "binary_cross_entropy"

    # What it computes.

    def check(self, batch: Batch) -> None:
        tensors = self._tensors(batch)
        rows = len(next(iter(tensors.values())))
        missing = [name for name in (*self.inputs, self.target) if name is not None and name not in tensors]
        if missing:
            raise ConfigError(f"the data has fields {sorted(tensors)}, but the model takes {missing[0]!r}")
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self._mode(False):
                outputs = self.module(*(tensors[name] for name in self.inputs))
                self.objective.check(outputs, self._targets(tensors), rows)
                self.measured(outputs, self._targets(tensors), 0.0, False)
        except UserError as error:
            raise ConfigError(str(error)) from error
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"the module cannot compute {rows} of the samples ({shapes}): {first}") from error

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        self._bind(params)
        tensors = self._tensors(batch)
        if grads is not None:
            return self._train(buffers, tensors, grads, ctx)
        with torch.no_grad(), self._mode(False):
            self._buffers.begin(buffers, False)
            rows = len(next(iter(tensors.values())))
            outputs, loss, weight = self._forward(tensors, rows)
            return float(loss), weight, self.measured(outputs, self._targets(tensors), float(loss), False)

    def _train(self, buffers: Views, batch: dict[str, Tensor], grads: Views, ctx: Context) -> tuple[float, float, Sums]:
        totals = {name: torch.from_numpy(grads[name]).zero_() for name in self.averages}
        loss, weight, sums = 0.0, 0.0, dict.fromkeys(self.step_metrics, 0.0)
        with torch.random.fork_rng(devices=[]), self._mode(True), self._gradients.into(grads, ctx) as gradients:
            for piece in self._pieces(buffers, batch, ctx):
                self._buffers.add(totals, buffers, piece.rows)
                with ctx.span("backward"):
                    gradients.backward(piece.loss, piece.is_last)
                value = float(piece.loss.detach())
                loss, weight = loss + value, weight + piece.weight
                with torch.no_grad():
                    measured = self.measured(_detached(piece.outputs), self._targets(piece.batch), value, True)
                for name, one in measured.items():
                    sums[name] += one
        ctx.announce(list(totals))
        return loss, weight, sums

    def _pieces(self, buffers: Views, batch: dict[str, Tensor], ctx: Context) -> Iterator[Piece]:
        """Forward over the batch as a whole, or shard by shard where batch statistics or random draws ask for it."""
        segments = [(place, shard) for place, shard in zip(ctx.segments, ctx.shards) if place.stop > place.start]
        if len(segments) > 1 and not self._by_shard:
            before = torch.random.get_rng_state()
            whole = self._piece(buffers, batch, ctx, True)
            if torch.equal(before, torch.random.get_rng_state()):
                yield whole
                return
            self._by_shard = True  # what it drew depends on the plan: each shard must draw its own
        for place, shard in segments:
            torch.manual_seed(int(generator(ctx.seed, "torch", ctx.step, ctx.part, shard).integers(2**63)))
            part = {name: value[place] for name, value in batch.items()}
            with self._buffers.statistics_of(place.stop - place.start):
                yield self._piece(buffers, part, ctx, place is segments[-1][0])

    def _piece(self, buffers: Views, batch: dict[str, Tensor], ctx: Context, is_last: bool) -> Piece:
        self._buffers.begin(buffers, True)
        before, rows = self._buffers.watch(), len(next(iter(batch.values())))
        with ctx.span("forward"):
            outputs, loss, weight = self._forward(batch, rows)
        refuse_changes(before, self._buffers.watch())
        if weight and not loss.requires_grad:
            raise UserError("the loss depends on no parameter that requires a gradient")
        return Piece(batch, rows, outputs, loss, weight, is_last)

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, np.ndarray]:
        self._bind(params)
        tensors = self._tensors(batch)
        with torch.no_grad(), self._mode(False):
            self._buffers.begin(buffers, False)
            outputs = self.module(*(tensors[name] for name in self.inputs))
        if isinstance(outputs, Tensor):
            return {"output": outputs.numpy()}
        named = outputs.items() if isinstance(outputs, Mapping) else ((f"output{i}", o) for i, o in enumerate(outputs))
        return {str(name): value.numpy() for name, value in named if isinstance(value, Tensor)}

    def show(self, params: Views, buffers: Views) -> None:
        self._bind(params)
        self._buffers.show(buffers)
        self.module.train(self._was_training)
        self._is_set = False

    # Its parts.

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        return {name: numbers(value, self._type) for name, value in batch.items()}

    def _targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.target is None else batch[self.target]

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        if self.module.training != training or not self._is_set:
            self.module.train(training)
            self._is_set = True
        yield

    def _forward(self, batch: Mapping[str, Tensor], rows: int) -> tuple[Any, Tensor, float]:
        outputs = self.module(*(batch[name] for name in self.inputs))
        return outputs, *self.objective(outputs, self._targets(batch), rows)

    def _bind(self, params: Views) -> None:
        """The module's parameters are views of ``params``."""
        known = self._known.get(id(params))
        if known is None:
            if len(self._known) == 2:  # a shared replica has two places
                self._known.clear()
            known = self._known[id(params)] = (params, {n: torch.from_numpy(params[n]) for n in self._parameters})
        if known[1] is self._bound:
            self._refuse_moved()
            return
        for name, tensor in known[1].items():
            self._parameters[name].data = tensor
        self._bound = known[1]

    def _refuse_moved(self) -> None:
        for name, tensor in self._bound.items():
            if self._parameters[name].data_ptr() != tensor.data_ptr():
                raise UserError(
                    f"parameter {name!r} of the module was replaced during training (by .to(), .half() or "
                    "load_state_dict(assign=True)?): change its values in place"
                )


def _value_of(parameter: Tensor, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """The parameter's present value: an Initialiser that draws nothing."""
    return parameter.detach().cpu().numpy()


def _type_of(parameters: Mapping[str, Tensor]) -> torch.dtype:
    types = {p.dtype for p in parameters.values()}
    if len(types) != 1:
        raise ConfigError(f"a module needs parameters of one type, this one has {sorted(map(str, types)) or 'none'}")
    (found,) = types
    if found not in DTYPES:
        raise ConfigError(f"the module's parameters are {found}; ddl trains float32 and float64")
    return found


def _refuse_unknown(module: nn.Module) -> None:
    """Raises ConfigError for parts that would train wrongly."""
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise ConfigError(f"{name} is a SyncBatchNorm, which needs torch.distributed: use BatchNorm")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in part.parameters(recurse=False)):
            raise ConfigError(f"{name} is lazy and has no shape yet: compute one batch before")
    for name, p in module.named_parameters():
        if p.device.type != "cpu":
            raise ConfigError(f"parameter {name} is on {p.device}: ddl.torch trains modules on the CPU")


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detached(one) for name, one in outputs.items()}
    return type(outputs)(map(_detached, outputs)) if isinstance(outputs, (tuple, list)) else outputs
