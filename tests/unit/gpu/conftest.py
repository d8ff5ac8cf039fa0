"""A stand-in for cupy where there is no GPU: arrays on the host that mix with NumPy's as little as cupy's do.

It says that the paths of a GPU rank are walked and give the right numbers; not what a GPU would say to them."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ddl.optim.elementwise import _cuda_kernel


def plain(x):
    """What a function of NumPy's takes; an array of the host's is refused, as by cupy."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x))
    if isinstance(x, DeviceArray):
        return x.view(np.ndarray)
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def wrapped(x):
    """Results lie on the device, single numbers as well."""
    if isinstance(x, tuple):
        return tuple(map(wrapped, x))
    if isinstance(x, DeviceArray) or not isinstance(x, (np.ndarray, np.generic)):
        return x
    return np.asarray(x).view(DeviceArray)


class DeviceArray(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        if out is not None:
            named["out"] = out
        found = getattr(ufunc, method)(*plain(inputs), **{name: plain(value) for name, value in named.items()})
        return wrapped(found) if out is None else out[0] if len(out) == 1 else out

    def __array_function__(self, function, types, args, kwargs):
        return call(function, args, kwargs)

    def __getitem__(self, index):
        plain(index)
        return wrapped(super().__getitem__(index))

    def __setitem__(self, index, value):
        plain(index), plain(value)
        super().__setitem__(index, value)

    def dot(self, other):
        return wrapped(plain(self).dot(plain(other)))

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is None:
            return np.array(self.view(np.ndarray))
        assert type(out) is np.ndarray and out.dtype == self.dtype
        out[...] = self.view(np.ndarray)
        return out

    def set(self, source, stream=None):
        assert type(source) is np.ndarray and source.dtype == self.dtype and source.shape == self.shape
        self.view(np.ndarray)[...] = source


def call(function, args, named):
    out = named.get("out")
    found = function(*map(plain, args), **{name: plain(value) for name, value in named.items()})
    return wrapped(found) if out is None else out


class Function:
    """A function of NumPy's, or a ufunc with its methods, on device arrays."""

    def __init__(self, of):
        self.of = of

    def __call__(self, *args, **named):
        return call(self.of, args, named)

    def __getattr__(self, name):
        return Function(getattr(self.of, name))


class Kernel:
    """Straight lines of C that are Python as well but for a declaration's type."""

    def __init__(self, inputs, outputs, code, name):
        self.inputs, self.outputs = ([word.split()[1] for word in text.split(",")] for text in (inputs, outputs))
        lines = [re.sub(r"^T (?=\w)", "", line.strip()) for line in code.split(";")]
        lines = [re.sub(r"^if \((.*?)\) ", r"if \1: ", line) for line in lines]
        lines = [re.sub(r"= (.*) \? (.*) : (.*)$", r"= where(\1, \2, \3)", line) for line in lines]
        self.code = "\n".join(re.sub(r"^else ", "else: ", line) for line in lines)

    def __call__(self, *args):
        arrays = args[len(self.inputs) :]
        names = dict(zip([*self.inputs, *self.outputs], map(plain, args), strict=True))
        known = {"sqrt": np.sqrt, "tanh": np.tanh, "where": np.where, "T": plain(arrays[-1]).dtype.type}
        with np.errstate(all="ignore"):
            exec(self.code, known, names)
        for name, array in zip(self.outputs, arrays, strict=True):
            plain(array)[...] = names[name]


class Waits:
    """A stream or an event: everything is done at once."""

    def __init__(self, **how):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass

    def wait_event(self, event):
        pass


class Device:
    compute_capability = "90"

    def __init__(self, index):
        self.index = index
        self._context = nullcontext()

    def __enter__(self):
        return self

    def __exit__(self, *why):
        pass

    def synchronize(self):
        pass


class CUDARuntimeError(RuntimeError):
    pass


class Module(ModuleType):
    """gpus, memory_bytes: what the machine is said to have. limits: those set on the pool. pinned: addresses."""

    def __init__(self, gpus=1, memory_bytes=1000):
        super().__init__("cupy")
        self.ndarray, self.ElementwiseKernel = DeviceArray, Kernel
        self.limits, self.pinned = [], []
        pool = SimpleNamespace(set_limit=lambda size: self.limits.append(size))
        self.get_default_memory_pool = lambda: pool
        runtime = SimpleNamespace(
            getDeviceCount=lambda: gpus,
            memGetInfo=lambda: (memory_bytes // 2, memory_bytes),
            hostRegister=lambda address, nbytes, flags: self.pinned.append(address),
            hostUnregister=self.pinned.remove,
            CUDARuntimeError=CUDARuntimeError,
        )
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=Waits,
            Event=Waits,
            runtime=runtime,
            is_available=lambda: gpus > 0,
            get_current_stream=Waits,
        )

    def asarray(self, x, dtype=None):
        if isinstance(x, DeviceArray) and dtype in (None, x.dtype):
            return x
        return np.array(x, dtype).view(DeviceArray)

    array = asarray

    def __getattr__(self, name):
        found = getattr(np, name)
        return Function(found) if callable(found) and not isinstance(found, type) else found


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, under cupy's name; skips where the real one has a GPU."""
    try:
        import cupy as real

        if real.cuda.is_available():
            pytest.skip("there is a GPU")
    except ImportError:
        pass
    module = Module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    _cuda_kernel.cache_clear()
    yield module
    _cuda_kernel.cache_clear()
