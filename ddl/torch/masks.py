"""Dropout masks that belong to shards: the rows of a shard get the same mask alone in a batch and among others.

While a step is computed, ``F.dropout`` and the dropout of ``F.scaled_dot_product_attention`` draw from here. Each call
takes a key from PyTorch's default generator, which gradient checkpointing puts back before it computes a part again, so
that it gets the same masks. Other random draws come from the default generator itself, and depend on the batch."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_KEYS = 1 << 62
_SPREAD = 0x9E3779B97F4A7C15  # odd, so that neighbouring shards get seeds far apart


class Masks:
    """The masks of one batch, or part of one. segments: the rows of each shard; calls: how many masks were drawn."""

    def __init__(self, segments: Sequence[slice], shards: Sequence[int]):
        self.segments, self.shards, self.calls = segments, shards, 0
        self.rows = segments[-1].stop if segments else 0
        self._generator = torch.Generator()

    def scales(self, like: Tensor, p: float) -> Tensor | None:
        """0, or 1 / (1 - p), for each element; None if no axis of ``like`` is that of the rows."""
        axis = next((axis for axis, length in enumerate(like.shape[:2]) if self.rows and length % self.rows == 0), None)
        if axis is None:
            return None
        self.calls += 1
        key, times = int(torch.randint(_KEYS, ())), like.shape[axis] // self.rows
        scales = torch.empty(like.shape, dtype=like.dtype)
        for segment, shard in zip(self.segments, self.shards, strict=True):
            if count := (segment.stop - segment.start) * times:
                # What a generator draws depends on the layout of memory: each shard's part is drawn by itself.
                shape = [count if i == axis else length for i, length in enumerate(like.shape)]
                drawn = torch.empty(shape, dtype=like.dtype)
                drawn.bernoulli_(1 - p, generator=self._generator.manual_seed((key + shard * _SPREAD) % _KEYS))
                scales.narrow(axis, segment.start * times, count).copy_(drawn)
        return scales.mul_(1 / (1 - p)).to(like.device)

    def are_all(self, seed: int) -> bool:
        """Whether the default generator, which began with ``seed``, has given keys of masks and nothing else."""
        reference = torch.Generator().manual_seed(seed)
        for _ in range(self.calls):
            torch.randint(_KEYS, (), generator=reference)
        return torch.equal(reference.get_state(), torch.random.get_rng_state())


class _Current(threading.local):
    masks: Masks | None = None


_current = _Current()
_dropout, _attention = F.dropout, F.scaled_dot_product_attention


@contextmanager
def masked(masks: Masks) -> Iterator[Masks]:
    """Inside, on this thread, dropout takes its masks from ``masks``."""
    _current.masks = masks
    F.dropout, F.scaled_dot_product_attention = dropout, scaled_dot_product_attention
    try:
        yield masks
    finally:
        _current.masks = None


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """``F.dropout``, by the masks of this thread's ``masked`` block, if it is in one."""
    masks = _current.masks
    scales = masks.scales(input, p) if masks is not None and training and 0 < p < 1 else None
    if scales is None:
        return _dropout(input, p, training, inplace)
    return input.mul_(scales) if inplace else input * scales


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """``F.scaled_dot_product_attention``; with dropout inside a ``masked`` block by its formula."""
    if _current.masks is None or not 0 < dropout_p < 1:
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if options.get("enable_gqa"):
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    scale = options.get("scale")
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return dropout(scores.softmax(-1), dropout_p) @ value
