"""Flat buffers: all parameters (or gradients, or slots) of a model in one contiguous array, with named views.

The models define the names; ddl/parallel sums the buffers over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from ddl.arrays import aligned
from ddl.arrays.namespace import Array, namespace_of

ALIGNMENT = 16  # elements: a float32 view starts on a cache line of 64 bytes


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places in a flat buffer: a pure description, equal on all ranks.

    shapes: name -> shape, in the order in which forward uses them. Views begin at multiples of
    ALIGNMENT elements; the gaps between them are zero and stay zero."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: np.dtype

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype | str = "float32") -> Layout:
        return cls({name: tuple(shape) for name, shape in shapes.items()}, np.dtype(dtype))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """name -> its slice of the flat buffer."""
        slices, start = {}, 0
        for name, shape in self.shapes.items():
            slices[name] = slice(start, start + prod(shape))
            start = -(-slices[name].stop // ALIGNMENT) * ALIGNMENT
        return slices

    @cached_property
    def length(self) -> int:
        """Elements of the flat buffer, gaps included."""
        last = max((s.stop for s in self.slices.values()), default=0)
        return -(-last // ALIGNMENT) * ALIGNMENT

    @property
    def size(self) -> int:
        """Elements that carry a value: the number of parameters."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize

    def views(self, flat: Array) -> Views:
        """Named views of ``flat``: (length,), this layout's dtype, contiguous."""
        if flat.shape != (self.length,) or flat.dtype != self.dtype:
            raise ValueError(f"need {self.length} x {self.dtype}, got {flat.shape} x {flat.dtype}")
        return Views({name: flat[s].reshape(self.shapes[name]) for name, s in self.slices.items()})


class Views(Mapping[str, Array]):
    """Named arrays: ``views["conv1.weight"]``, and ``views.at("conv1")["weight"]`` for a layer.

    The result of ``at`` is cached, since every step asks for the same names.
    zero_outside: name -> (numbers,) the only rows of that array that may be nonzero, if that is known. The owner of
    the arrays maintains it (train/step.py); all scopes share it."""

    def __init__(self, arrays: Mapping[str, Array], zero_outside: dict[str, Array] | None = None, prefix: str = ""):
        self._arrays = dict(arrays)
        self._scopes: dict[str, Views] = {}
        self.zero_outside: dict[str, Array] = {} if zero_outside is None else zero_outside
        self._prefix = prefix

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def at(self, scope: str) -> Views:
        """The views below ``scope``, by the rest of their names; empty if there is none."""
        found = self._scopes.get(scope)
        if found is None:
            prefix = scope + "."
            arrays = {n[len(prefix) :]: a for n, a in self._arrays.items() if n.startswith(prefix)}
            found = self._scopes[scope] = Views(arrays, self.zero_outside, self._prefix + prefix)
        return found

    def clear(self, name: str) -> Array:
        """Zero the array ``name`` and return it; only rows that may be nonzero are written."""
        array, rows = self._arrays[name], self.zero_outside.pop(self._prefix + name, None)
        if rows is None:
            array[...] = 0
        else:
            array[namespace_of(array).asarray(rows)] = 0
        return array


class FlatBuffer:
    """One contiguous array and its named views. ``flat`` (length,) and ``views`` share memory."""

    def __init__(self, layout: Layout, flat: Array | None = None, xp=np):
        self.layout = layout
        self.flat: Array = aligned.zeros(layout.length, layout.dtype, xp) if flat is None else flat
        self.views = layout.views(self.flat)

    def __getitem__(self, name: str) -> Array:
        return self.views[name]

    def assign(self, arrays: Mapping[str, Array]) -> None:
        """Copy arrays in by name; the names must be all of the layout's, the shapes equal."""
        if set(arrays) != set(self.layout.shapes):
            missing, extra = set(self.layout.shapes) - set(arrays), set(arrays) - set(self.layout.shapes)
            raise ValueError(
                f"names differ: missing {', '.join(sorted(missing))}; unexpected {', '.join(sorted(extra))}"
            )
        for name, view in self.views.items():
            if view.shape != arrays[name].shape:
                raise ValueError(f"{name}: shape {arrays[name].shape} where {view.shape} is needed")
            view[...] = arrays[name]
