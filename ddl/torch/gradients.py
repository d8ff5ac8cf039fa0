"""Gradients on their way from autograd to ddl: copied into the flat buffer and announced as each becomes final."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ddl.arrays import Views
from ddl.errors import UserError
from ddl.kernels.sparse_rows import TouchedRows
from ddl.nn.context import Context
from ddl.torch.device import Staging


class Gradients:
    """Hooks on parameters that take their gradients during ``into``; at any other time they do nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], by_rows: Sequence[str], staging: Staging | None = None):
        self.parameters, self.by_rows, self.staging = parameters, by_rows, staging
        self._pass: Pass | None = None
        self._views: Views | None = None
        self._tensors: dict[str, Tensor] = {}
        # Reentrant checkpointing accumulates a shared parameter's gradient in several parts. Whether it does is seen
        # in the first step; until then gradients are announced at the end.
        self.in_one_part: bool | None = None
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(self._take, name))

    def _take(self, name: str, parameter: Tensor) -> None:
        if self._pass is not None:
            self._pass.take(name, parameter)

    def tensors_of(self, grads: Views) -> dict[str, Tensor]:
        """``grads`` as tensors on the same memory, by the names of the parameters."""
        if grads is not self._views:
            self._views, self._tensors = grads, {name: torch.from_numpy(grads[name]) for name in self.parameters}
        return self._tensors

    @contextmanager
    def into(self, grads: Views, ctx: Context) -> Iterator[Pass]:
        """Inside, gradients are written to ``grads``; at the end all have been announced."""
        for parameter in self.parameters.values():
            parameter.grad = None
        if self.staging is not None:
            self.staging.forget()  # of a step that failed
        self._pass = Pass(self, grads, ctx)
        try:
            yield self._pass
            self._pass.finish()
        finally:
            self._pass = None


class Pass:
    """The gradients of one batch, which is computed in one or more pieces."""

    def __init__(self, owner: Gradients, grads: Views, ctx: Context):
        self._owner, self._grads, self._ctx = owner, grads, ctx
        self._tensors = owner.tensors_of(grads)
        self._written: set[str] = set()
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in owner.by_rows}
        self._announced: set[str] = set()
        self._piece: set[str] = set()
        self._is_last = False

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a piece. last: no piece follows, so gradients are final when autograd is done."""
        self._piece, self._is_last = set(), last
        if loss.requires_grad:
            loss.backward()
        if self._owner.staging is not None:
            self._owner.staging.finish()

    def take(self, name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if name in self._piece:
            self._owner.in_one_part = False
            if name in self._announced:
                raise UserError(
                    f"the gradient of {name!r} came in several parts, which it did not in the first step: use "
                    "torch.utils.checkpoint with use_reentrant=False"
                )
        self._piece.add(name)
        if gradient.is_sparse and name in self._rows:
            self._add_rows(name, gradient.coalesce())
            return
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self._owner.staging is None:
            self._add(name, gradient)
        else:  # for a module on a GPU this is a thread of autograd's, and the main thread waits in backward
            self._owner.staging.take(gradient, partial(self._add, name))

    def _add(self, name: str, gradient: Tensor) -> None:
        """gradient: in host memory."""
        self._rows.pop(name, None)  # a dense gradient, or a dense part: all rows may be written
        if name in self._written:
            self._tensors[name].add_(gradient)
        else:
            self._grads.zero_outside.pop(name, None)
            self._tensors[name].copy_(gradient)
            self._written.add(name)
        if self._is_last and self._owner.in_one_part:
            self._announced.add(name)
            self._ctx.announce((name,))

    def _add_rows(self, name: str, gradient: Tensor) -> None:
        rows = gradient.indices()[0].cpu().numpy()
        if name not in self._written:
            self._grads.clear(name)
            self._written.add(name)
        self._grads[name][rows] += gradient.values().cpu().numpy()
        self._rows[name].append(rows)

    def finish(self) -> None:
        """Zero the gradients that no piece has written, and announce what is left."""
        for name in self._tensors.keys() - self._written:
            self._grads.clear(name)
        if self._owner.in_one_part is None:
            self._owner.in_one_part = True
        rows = {name: np.concatenate([*parts, np.empty(0, np.int64)]) for name, parts in self._rows.items()}
        rest = [name for name in self._owner.parameters if name not in self._announced]
        self._ctx.announce([TouchedRows(name, rows[name]) if name in rows else name for name in rest])
