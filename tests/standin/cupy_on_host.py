"""A stand-in for cupy where there is no GPU: arrays on the host that mix with NumPy's as little as cupy's do.

It knows what CuPy 14 knows of the functions, methods and arguments that ddl asks for, and nothing else: a name that is
missing here is to be looked up in CuPy's reference before it is added. It says that the paths of a GPU rank are walked
and give the right numbers; not what a GPU would say to them."""

from __future__ import annotations

import re
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ddl.arrays.namespace import gpu_count

# The backend of tests beside NumPy, as a parameter of fixtures.
DEVICE = pytest.param("cupy", marks=pytest.mark.gpu) if gpu_count() else "stand-in"

UNARY = ("abs", "exp", "invert", "isfinite", "log", "log1p", "negative", "sign", "sqrt", "square", "tanh")
BINARY = (
    "add", "bitwise_and", "bitwise_or", "divide", "equal", "greater", "greater_equal", "less", "less_equal",
    "logaddexp", "maximum", "minimum", "multiply", "not_equal", "subtract",
)  # fmt: skip
SCATTERED = ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or")  # ufuncs with the method ``at``
_REDUCED = "a axis dtype out keepdims"
FUNCTIONS = {  # name -> its arguments, in CuPy's order: of ufuncs without ``where``
    **dict.fromkeys(UNARY, "x out dtype casting"),
    **dict.fromkeys(BINARY, "x y out dtype casting"),
    "all": "a axis out keepdims",
    "any": "a axis out keepdims",
    "arange": "start stop step dtype",
    "argmax": _REDUCED,
    "ascontiguousarray": "a dtype",
    "bincount": "x weights minlength",
    "clip": "a a_min a_max out",
    "concatenate": "tup axis out",
    "partition": "a kth axis",
    "copyto": "dst src casting where",
    "dot": "a b out",
    "empty": "shape dtype order",
    "empty_like": "prototype dtype",
    "full": "shape fill_value dtype",
    "isneginf": "x out",
    "matmul": "x1 x2 out",
    "max": "a axis out keepdims",
    "mean": _REDUCED,
    "min": "a axis out keepdims",
    "ones": "shape dtype",
    "sum": _REDUCED,
    "take": "a indices axis out",
    "tril": "m k",
    "where": "condition x y",
    "zeros": "shape dtype order",
    "zeros_like": "a dtype",
}
METHODS = {name: FUNCTIONS[name] for name in ("all", "any", "argmax", "dot", "max", "mean", "min", "sum", "take")} | {
    "astype": "a dtype order casting subok copy",
    "copy": "a order",
    "fill": "a value",
    "ravel": "a order",
    "swapaxes": "a axis1 axis2",
    "view": "a dtype",
}
OF_ANY_LENGTH = {"reshape", "transpose"}  # methods
ATTRIBUTES = {"dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides"}
WAITS = {"bincount"}  # functions that read a result on the host


def plain(x):
    """What a function of NumPy's takes; an array of the host's is refused, as by cupy."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x))
    if isinstance(x, DeviceArray):
        if x.lies_on != current():
            raise ValueError(f"the array lies on device {x.lies_on}, the current device is {current()}")
        return x.on_host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def wrapped(x):
    """Results lie on the current device, single numbers as well."""
    return DeviceArray(np.asarray(x), current()) if isinstance(x, (np.ndarray, np.generic, bool)) else x


def call(function, args, named, knows):
    """``function`` of NumPy's with device arrays; ``knows`` are the names of the arguments that cupy's takes."""
    strange = set(named) - set(knows)
    if strange or len(args) > len(knows):
        raise TypeError(f"{function}: got {len(args)} arguments and {sorted(named)}, cupy's takes {knows}")
    out = named.get("out")
    if out is not None and not isinstance(out, DeviceArray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    found = function(*map(plain, args), **{name: plain(value) for name, value in named.items()})
    return wrapped(found) if out is None else out


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that the host cannot read. ``waited`` counts how often it was fetched nevertheless: each time the host
    stands still until the device has done all it was given."""

    waited = 0

    def __init__(self, on_host, lies_on):
        self.on_host, self.lies_on = on_host, lies_on

    def _view(self, on_host):
        return DeviceArray(on_host, self.lies_on)

    def __array__(self, *how, **named):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        if out is not None:
            (named["out"],) = out
        of = ufunc if method == "__call__" else getattr(ufunc, method)
        return call(of, inputs, named, Function.of(ufunc.__name__, method).knows)

    def __array_function__(self, function, types, args, named):
        return Function.of(function.__name__)(*args, **named)

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            return getattr(self.on_host, name)
        if name in METHODS:
            return lambda *args, **named: call(getattr(np.ndarray, name), (self, *args), named, METHODS[name].split())
        if name in OF_ANY_LENGTH:
            return lambda *args: self._view(getattr(self.on_host, name)(*args))
        raise AttributeError(f"cupy.ndarray.{name}: is it CuPy's? then say so here")

    @property
    def T(self):
        return self._view(self.on_host.T)

    def __len__(self):
        return len(self.on_host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        _wait_for_masks(index)
        at = plain(index)
        found = self.on_host[at]
        # A single element is a view as well.
        return self._view(found if isinstance(found, np.ndarray) else self.on_host[(*_tuple(at), ...)])

    def __setitem__(self, index, value):
        _wait_for_masks(index)
        if isinstance(value, (list, tuple)):
            raise TypeError("only arrays of the device and single numbers can be assigned")
        plain(self)[plain(index)] = value.item() if isinstance(value, np.ndarray) and not value.ndim else plain(value)

    def _fetched(self):
        DeviceArray.waited += 1
        return self.on_host

    def __float__(self):
        return float(self._fetched())

    def __int__(self):
        return int(self._fetched())

    def __bool__(self):
        return bool(self._fetched())

    def item(self):
        return self._fetched().item()

    def tolist(self):
        return self._fetched().tolist()

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is None:
            return np.array(self._fetched())
        assert type(out) is np.ndarray and out.dtype == self.dtype
        out[...] = self.on_host
        return out

    def set(self, source, stream=None):
        if type(source) is not np.ndarray or source.dtype != self.dtype or source.shape != self.shape:
            raise TypeError(f"{type(source)} cannot be set to an array of {self.shape} x {self.dtype}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self.on_host[...] = source


def _tuple(index):
    return index if isinstance(index, tuple) else (index,)


def _wait_for_masks(index):
    """How many elements a mask picks is counted on the device, and read by the host."""
    DeviceArray.waited += sum(isinstance(part, DeviceArray) and part.dtype == bool for part in _tuple(index))


class Function:
    """A function that cupy has as well, or a ufunc with some of its methods, on device arrays."""

    def __init__(self, name, of, knows):
        self.name, self._of, self.knows = name, of, knows

    @classmethod
    def of(cls, name, method="__call__"):
        name = {"absolute": "abs"}.get(name, name)
        if method == "at" and name in SCATTERED:
            return cls(name, getattr(np, name).at, ["a", "indices", "b"])
        if method == "__call__" and name in FUNCTIONS:
            return cls(name, getattr(np, name), FUNCTIONS[name].split())
        raise AttributeError(f"cupy.{name} ({method}): is it CuPy's? then say so here")

    def __call__(self, *args, **named):
        DeviceArray.waited += self.name in WAITS
        if self.name == "take" and "out" in named and named["out"].dtype != args[0].dtype:
            raise TypeError("Output dtype mismatch")
        return call(self._of, args, named, self.knows)

    @property
    def at(self):
        return Function.of(self.name, "at")


class Kernel:
    """Straight-line C that is also valid Python once the types of declarations are removed."""

    def __init__(self, inputs, outputs, code, name):
        self.inputs, self.outputs = ([word.split()[1] for word in text.split(",")] for text in (inputs, outputs))
        lines = [re.sub(r"^T (?=\w)", "", line.strip()) for line in code.split(";")]
        lines = [re.sub(r"^if \((.*?)\) ", r"if \1: ", line) for line in lines]
        lines = [re.sub(r"= (.*) \? (.*) : (.*)$", r"= where(\1, \2, \3)", line) for line in lines]
        self.code = compile("\n".join(re.sub(r"^else ", "else: ", line) for line in lines), name, "exec")

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


_of_thread = threading.local()


def current():
    """The number of the device on which this thread computes."""
    return getattr(_of_thread, "device", 0)


class Device:
    compute_capability = "90"

    def __init__(self, index):
        self.index = index

    def use(self):
        _of_thread.device = self.index

    def __enter__(self):
        self._before = current()
        self.use()
        return self

    def __exit__(self, *why):
        _of_thread.device = self._before

    def synchronize(self):
        pass


class CUDARuntimeError(RuntimeError):
    pass


class Module(ModuleType):
    """gpus, memory_bytes: what the machine is said to have. limits: those set on the pool. pinned: addresses."""

    def __init__(self, gpus=1, memory_bytes=1000):
        super().__init__("cupy")
        self.ndarray, self.ElementwiseKernel = DeviceArray, Kernel
        self.inf, self.nan, self.float32, self.float64 = np.inf, np.nan, np.float32, np.float64
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
        """The one way onto the device: what lies on the host is copied."""
        if isinstance(x, DeviceArray):
            return x if dtype in (None, x.dtype) else x.astype(dtype)
        return wrapped(np.array(x, dtype))

    def array(self, x, dtype=None):
        return self.asarray(x.copy() if isinstance(x, DeviceArray) else x, dtype)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Function.of(name)
