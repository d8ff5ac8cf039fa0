"""A torch.nn.Module as a model of ddl: its parameters are views of ddl's flat buffer, and each gradient is copied into
ddl's as soon as autograd has finished it.

The loss and the metrics are in objective.py, buffers such as running statistics in buffers.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddl.arrays import Views, generator
from ddl.errors import ConfigError, UserError
from ddl.models.model import Batch, Measured, OutputKind, Sums
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Kept, Shape
from ddl.nn.metric import Metric
from ddl.nn.norm import LEAST_SAMPLES
from ddl.torch.allocator import keep_freed_memory
from ddl.torch.buffers import Buffers, numbers, refuse_changes
from ddl.torch.device import Staging, device_of, has_drawn, is_remote, seed_generators, upload
from ddl.torch.gradients import Gradients
from ddl.torch.masks import Masks, masked
from ddl.torch.objective import Objective, are_near, array_of, metrics_of, rows_of
from ddl.torch.sync_norm import in_step
from ddl.wording import listed

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
    """module: its parameters and buffers are lent to ddl, and after training hold the trained values. Those of a module
    on a GPU are copies of ddl's.

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
        keep_freed_memory()
        self.module, self.inputs, self.target = module, tuple(inputs), target
        self.objective, self.metrics = Objective(loss), metrics_of(metrics)
        every = dict(module.named_parameters())
        self._trained = {name: p for name, p in every.items() if p.requires_grad}
        if not self._trained:
            raise ConfigError("no parameter of the module requires a gradient")
        self._parameters = {**self._trained, **every}  # frozen ones last
        parts = ((name.rpartition(".")[0], name.rpartition(".")[2]) for name in self._parameters)
        self._places = [(module.get_submodule(part)._parameters, key) for part, key in parts]
        self._type = _type_of(self._parameters)
        _refuse_unknown(module)
        self._device = device_of(module.state_dict(keep_vars=True))
        self._is_remote = is_remote(self._device)
        self._buffers = Buffers(module, averaged, self._is_remote)
        self._was_training, self._is_set = module.training, False
        # Batch statistics and most random draws belong to a shard: such modules compute one shard after another.
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self._is_synchronised = any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        self._by_shard = bool(norms) and not self._is_synchronised
        if self._is_synchronised and not all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
            raise ConfigError("the module has BatchNorm beside SyncBatchNorm: convert_sync_batchnorm converts all")
        if self._is_synchronised and self._is_remote:
            raise ConfigError("ddl sums SyncBatchNorm in host memory, and the module is on a GPU: use BatchNorm there")
        self._has_norms = self._by_shard
        self._draws = False  # whether forward draws random numbers that are no masks of dropout
        self._compared: set[int] = set()  # numbers of rows for which a shard was found to come out the same in a batch
        self._bound_to: Views | None = None
        self._bound: dict[str, Tensor] = {}
        self._uploaded = -1  # the step whose parameters the GPU has
        staging = Staging(max(p.numel() for p in every.values()), self._type, self._device) if self._is_remote else None
        self._gradients = Gradients(self._trained, self.by_rows, staging)

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
    def on_host(self) -> bool:
        return True

    @property
    def averages(self) -> Mapping[str, Average]:
        return self._buffers.averages

    @property
    def kept(self) -> Mapping[str, Kept]:
        return self._buffers.kept

    @cached_property
    def by_rows(self) -> Sequence[str]:
        tables = {
            part.weight
            for part in self.module.modules()
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse
        }
        return [name for name, parameter in self._trained.items() if parameter in tables]

    @property
    def samples_per_shard(self) -> int:
        return LEAST_SAMPLES if self._has_norms else 0

    @property
    def synchronised(self) -> bool:
        return self._is_synchronised

    @property
    def synchronised_by(self) -> str:
        return "torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)"

    @property
    def targets_are_values(self) -> bool:
        return self.objective.name == "binary_cross_entropy"

    @property
    def output_kind(self) -> OutputKind:
        return self.objective.output_kind

    # What it computes.

    def check(self, batch: Batch) -> None:
        tensors = self._tensors(batch)
        try:
            self._refuse_converted()
        except UserError as error:
            raise ConfigError(str(error)) from error
        rows = len(next(iter(tensors.values())))
        missing = [name for name in (*self.inputs, self.target) if name is not None and name not in tensors]
        if missing:
            raise ConfigError(
                f"the fields of the data are {listed(sorted(tensors), 'and')}, but the model takes {missing[0]!r}"
            )
        try:
            with torch.no_grad(), self._forked(), self._mode(False):
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
        self._bind(params, buffers, ctx.step if grads is not None else -1)
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
        with self._forked(), self._mode(True), self._gradients.into(grads, ctx) as gradients:
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
        """Forward over the batch as a whole, or shard by shard where the rows of a shard would not come out alike."""
        segments = [(place, shard) for place, shard in zip(ctx.segments, ctx.shards) if place.stop > place.start]
        seed = _seed(ctx)
        if self._is_synchronised:
            with in_step(ctx.sum_over_ranks), masked(Masks(ctx.segments, ctx.shards)) as masks:
                self._seed(seed)
                piece = self._piece(buffers, batch, ctx, True)
                if not self._are_all(masks, seed):
                    raise UserError("SyncBatchNorm goes with no random draws but dropout, which do not depend on ranks")
                # A rank without samples takes part in the sums of backward as well.
                yield piece if piece.rows else replace(piece, loss=_sum_of(piece.outputs) * 0)
            return
        if len(segments) > 1 and not self._by_shard:
            last, rows = segments[-1][0], segments[-1][0].stop
            alone = None if rows in self._compared else self._alone(buffers, batch, segments[-1], ctx)
            with masked(Masks(*zip(*segments))) as masks:
                self._seed(seed)
                whole = self._piece(buffers, batch, ctx, True)
                self._draws = not self._are_all(masks, seed)
                if not self._draws and (alone is None or are_near(alone, rows_of(whole.outputs, last))):
                    self._compared.add(rows)
                    yield whole
                    return
            self._by_shard = True
        for place, shard in segments:
            part, count = rows_of(batch, place), place.stop - place.start
            with self._buffers.statistics_of(count), masked(Masks([slice(0, count)], [shard])) as masks:
                self._seed(_seed(ctx, shard) if self._draws else seed)
                piece = self._piece(buffers, part, ctx, place is segments[-1][0])
                if not self._draws and not self._are_all(masks, seed):
                    self._draws = True  # not only for masks: each shard needs its own generator
                    self._seed(_seed(ctx, shard))
                    piece = self._piece(buffers, part, ctx, piece.is_last)
                yield piece

    def _alone(self, buffers: Views, batch: dict[str, Tensor], segment: tuple[slice, int], ctx: Context) -> Any:
        """The outputs for one shard's rows, computed without the others."""
        place, shard = segment
        with torch.no_grad(), masked(Masks([slice(0, place.stop - place.start)], [shard])):
            self._seed(_seed(ctx))
            self._buffers.begin(buffers, True)
            return self.module(*(batch[name][place] for name in self.inputs))

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
        self._bind(params, buffers)
        tensors = self._tensors(batch)
        with torch.no_grad(), self._mode(False):
            self._buffers.begin(buffers, False)
            outputs = self.module(*(tensors[name] for name in self.inputs))
        if isinstance(outputs, Tensor):
            return {"output": array_of(outputs)}
        named = outputs.items() if isinstance(outputs, Mapping) else ((f"output{i}", o) for i, o in enumerate(outputs))
        return {str(name): array_of(value) for name, value in named if isinstance(value, Tensor)}

    def show(self, params: Views, buffers: Views) -> None:
        self._bind(params, buffers)
        self._buffers.show(buffers)
        self.module.train(self._was_training)
        self._is_set = False

    # Its parts.

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        return {name: numbers(value, self._type).to(self._device) for name, value in batch.items()}

    def _seed(self, seed: int) -> None:
        seed_generators(seed, self._device)

    def _are_all(self, masks: Masks, seed: int) -> bool:
        """Whether all draws since ``_seed`` were masks of dropout."""
        return masks.are_all(seed) and not has_drawn(seed, self._device)

    def _forked(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else [])

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

    def _refuse_converted(self) -> None:
        """Raises UserError if the module is no longer of the type and on the device that it was made with."""
        for name, parameter in self.module.named_parameters():
            if parameter.dtype != self._type or parameter.device != self._device:
                raise UserError(
                    f"parameter {name!r} of the module is now {parameter.dtype} on {parameter.device} (by .to() or "
                    ".half()?): change the module before ddl.torch.Model is made of it"
                )

    def _bind(self, params: Views, buffers: Views, step: int = -1) -> None:
        """The module's parameters are views of ``params``, or on a GPU equal to them. Raises UserError if they no
        longer are what they were. step: in which both are the same as before, if that was the last one."""
        if self._is_remote:
            self._refuse_converted()
            if params is not self._bound_to or step < 0 or step != self._uploaded:
                upload(self._parameters, params)
                self._buffers.upload(buffers)
                self._bound_to, self._uploaded = params, step
            return
        if params is not self._bound_to:
            self._bound = {name: torch.from_numpy(params[name]) for name in self._parameters}
            self._refuse_converted()
            for name, tensor in self._bound.items():
                self._parameters[name].data = tensor
            self._bound_to = params
        for (owner, key), (name, tensor) in zip(self._places, self._bound.items()):
            parameter = owner[key]
            if parameter is not self._parameters[name] or parameter.data_ptr() != tensor.data_ptr():
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
        hint = ""
        if found in (torch.bfloat16, torch.float16):
            hint = ": keep them in float32, and compute in bfloat16 by torch.autocast inside forward"
        raise ConfigError(f"the module's parameters are {found}; ddl trains float32 and float64{hint}")
    return found


def _refuse_unknown(module: nn.Module) -> None:
    """Raises ConfigError for parts that would train wrongly."""
    for name, part in module.named_modules():
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in part.parameters(recurse=False)):
            raise ConfigError(f"{name} is lazy and has no shape yet: compute one batch before")


def _seed(ctx: Context, *shard: int) -> int:
    return int(generator(ctx.seed, "torch", ctx.step, ctx.part, *shard).integers(2**62))


def _sum_of(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.sum()
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return sum(map(_sum_of, parts)) if isinstance(outputs, (Mapping, tuple, list)) else 0


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detached(one) for name, one in outputs.items()}
    return type(outputs)(map(_detached, outputs)) if isinstance(outputs, (tuple, list)) else outputs
