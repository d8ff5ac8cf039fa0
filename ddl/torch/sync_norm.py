"""SyncBatchNorm over ddl's sums: in training the statistics are those of the global batch, on any number of ranks.

Ranks exchange three vectors for each layer and pass, two forward and one backward, so all of them compute in step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SumOverRanks = Callable[[np.ndarray], np.ndarray]


class _InStep(threading.local):
    sum_over_ranks: SumOverRanks | None = None


_in_step = _InStep()
_forward = nn.SyncBatchNorm.forward


@contextmanager
def in_step(sum_over_ranks: SumOverRanks) -> Iterator[None]:
    """Inside, on this thread, SyncBatchNorm in training sums over the ranks that do the same."""
    nn.SyncBatchNorm.forward = forward
    _in_step.sum_over_ranks = sum_over_ranks
    try:
        yield
    finally:
        _in_step.sum_over_ranks = None


def forward(self: Any, input: Tensor) -> Tensor:
    """``SyncBatchNorm.forward``, over the sums of this thread's ``in_step`` block, if it is in one."""
    if _in_step.sum_over_ranks is None or not self.training:
        return _forward(self, input)
    output, mean, variance = _Normalised.apply(input, self.weight, self.bias, self.eps, _in_step.sum_over_ranks)
    if self.track_running_stats:
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)
    return output


class _Normalised(torch.autograd.Function):
    """(output, mean, unbiased variance) of a batch whose rows are spread over the ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, sum_over_ranks: SumOverRanks
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        places = x.numel() // x.shape[1] if x.numel() else 0
        sums = np.append(wide.sum(axes, dtype=torch.float64).numpy(), float(places))
        *total, count = sum_over_ranks(sums)
        mean = torch.tensor(total) / max(count, 1.0)
        normal = wide - mean.to(wide.dtype).view(shape)
        # In two passes, since the difference of the mean square and the squared mean cancels.
        squares = sum_over_ranks(normal.square().sum(axes, dtype=torch.float64).numpy())
        variance = torch.from_numpy(squares) / max(count, 1.0)
        inverse = (variance + eps).rsqrt().to(wide.dtype).view(shape)
        normal = normal * inverse
        ctx.save_for_backward(normal, weight, inverse)
        ctx.count, ctx.sum_over_ranks, ctx.axes, ctx.shape = max(count, 1.0), sum_over_ranks, axes, shape
        output = normal if weight is None else normal * weight.view(shape)
        output = output if bias is None else output + bias.view(shape)
        unbiased = variance * (count / max(count - 1, 1.0))
        ctx.mark_non_differentiable(mean, unbiased)
        return output.to(x.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse = ctx.saved_tensors
        dy = slopes[0].to(normal.dtype)
        of_bias, of_weight = (part.sum(ctx.axes, dtype=torch.float64) for part in (dy, dy * normal))
        both = ctx.sum_over_ranks(torch.cat([of_bias, of_weight]).numpy()) / ctx.count
        mean, dot = (part.to(dy.dtype).view(ctx.shape) for part in torch.from_numpy(both).chunk(2))
        dx = (dy - mean - normal * dot) * inverse
        if weight is None:
            return dx.to(slopes[0].dtype), None, None, None, None
        dx = (dx * weight.view(ctx.shape)).to(slopes[0].dtype)
        return dx, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None
