"""A module's buffers during a step: forward writes to copies, and what it wrote is summed over the samples.

Committed buffers change only in the commit, so a step that is computed again starts from the same buffers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ddl.arrays import Views
from ddl.errors import ConfigError, UserError
from ddl.nn.layer import Average, Kept
from ddl.torch.device import upload
from ddl.wording import instead


@dataclass(frozen=True)
class Place:
    """Where a buffer is registered: ``owner``'s attribute ``key``."""

    owner: nn.Module
    key: str

    @property
    def tensor(self) -> Tensor:
        return self.owner.get_buffer(self.key)

    def put(self, tensor: Tensor) -> None:
        setattr(self.owner, self.key, tensor)


class Buffers:
    """The persistent buffers of a module, by their names in its state_dict.

    Running statistics of norms follow their momentum over the global batch; counters count updates. averaged: names of
    others that forward changes, whose new values are averaged over the samples. The rest must stay as they are."""

    def __init__(self, module: nn.Module, averaged: Iterable[str] = (), is_remote: bool = False):
        self.averages: dict[str, Average] = {}
        self.kept: dict[str, Kept] = {}
        self._norms: dict[str, _NormBase] = {}
        self._averaged, self._is_remote = tuple(averaged), is_remote
        persistent = set(module.state_dict(keep_vars=True))
        places: dict[str, Place] = {}
        for prefix, part in module.named_modules():
            for key, buffer in part.named_buffers(recurse=False):
                name = f"{prefix}.{key}" if prefix else key
                if name in persistent:
                    places[name] = Place(part, key)
                    self._classify(name, part, key, buffer)
        self._places = places
        unknown = sorted(set(self._averaged) - set(places))
        if unknown:
            raise ConfigError(
                f"averaged: the module has no buffer {unknown[0]!r}; {instead(unknown[0], places, 'it has')}"
            )
        self._scratch = {name: place.tensor.clone() for name, place in places.items()}
        self._committed_in: Views | None = None
        self._committed: dict[str, Tensor] = {}

    def _classify(self, name: str, part: nn.Module, key: str, buffer: Tensor) -> None:
        if buffer.dtype in (torch.bfloat16, torch.complex64, torch.complex128):
            raise ConfigError(f"buffer {name} is {buffer.dtype}, which ddl does not store")
        initial = buffer.detach().cpu().numpy().copy()
        if isinstance(part, _NormBase) and key in ("running_mean", "running_var"):
            self._norms[name] = part
            self.averages[name] = Average(initial.shape, initial, part.momentum)
        elif name in self._averaged:
            if not buffer.is_floating_point():
                raise ConfigError(f"averaged: {name} is {buffer.dtype}, which has no mean")
            self.averages[name] = Average(initial.shape, initial, 1.0)
        else:
            self.kept[name] = Kept(initial, isinstance(part, _NormBase) and key == "num_batches_tracked")

    def show(self, buffers: Views) -> None:
        """Put the committed buffers back into the module."""
        for name, tensor in self._tensors(buffers).items():
            self._places[name].put(tensor)

    def _tensors(self, views: Views) -> dict[str, Tensor]:
        if views is not self._committed_in:
            self._committed_in, self._committed = views, {n: torch.from_numpy(views[n]) for n in self._places}
            if self._is_remote:
                self._committed = {n: t.clone().to(self._scratch[n].device) for n, t in self._committed.items()}
        return self._committed

    def upload(self, views: Views) -> None:
        """Of a module on a GPU: its copies become equal to ``views``."""
        upload(self._tensors(views), views)

    @contextmanager
    def statistics_of(self, rows: int) -> Iterator[None]:
        """Inside, batch norm does not take the statistics of a single sample: it uses the running ones instead."""
        norms = {norm for norm in self._norms.values() if norm.training and rows == 1}
        for norm in norms:
            norm.training = False
        try:
            yield
        finally:
            for norm in norms:
                norm.training = True

    def begin(self, buffers: Views, training: bool) -> None:
        """Before forward on a piece of a batch."""
        committed = self._tensors(buffers)
        for name, place in self._places.items():
            scratch = self._scratch[name]
            if training and isinstance(place.owner, _NormBase) and place.owner.training:
                place.put(scratch.zero_())  # what forward adds to 0 is this piece's statistic alone
            elif training and name in self._averaged:
                place.put(scratch.copy_(committed[name]))
            else:
                place.put(committed[name])

    def watch(self) -> dict[str, tuple[int, int]]:
        """What changes when forward writes to a buffer that is neither a norm's nor averaged."""
        kept = ((n, self._places[n].tensor) for n in self.kept if not isinstance(self._places[n].owner, _NormBase))
        return {name: (tensor.data_ptr(), tensor._version) for name, tensor in kept}

    def add(self, totals: Mapping[str, Tensor], buffers: Views, rows: int) -> None:
        """After forward: add rows times this piece's value to the totals."""
        committed = self._tensors(buffers)
        for name in self.averages:
            place, scratch = self._places[name], self._scratch[name]
            norm = self._norms.get(name)
            if norm is None:
                totals[name].add_(place.tensor.detach().cpu(), alpha=rows)
            elif norm.training and norm.momentum != 0 and int(norm.num_batches_tracked):
                totals[name].add_(scratch.cpu(), alpha=rows / (norm.momentum or 1.0))
            else:  # forward did not use it, or only read it
                totals[name].add_(committed[name].cpu(), alpha=rows)


def refuse_changes(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> None:
    """Raises UserError for a buffer that forward has changed."""
    changed = [name for name, mark in before.items() if after[name] != mark]
    if changed:
        raise UserError(
            f"forward changes buffers, which would differ between ranks: ddl.torch.Model(..., averaged={changed}) "
            "averages them over the samples"
        )


def numbers(value: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A batch's array as PyTorch takes it: measurements in ``dtype``, whole numbers in int64."""
    if value.dtype.kind in "iu":
        value = value.astype(np.int64, copy=False)
    tensor = torch.from_numpy(value)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
