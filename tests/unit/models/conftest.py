"""Tiny data for every model of the zoo, and two checks of each: its gradient is right, and it learns."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from ddl import optim
from ddl.arrays import Arena, FlatBuffer, Layout, host
from ddl.kernels.backend import use_compiled
from ddl.models import build, gradient_layout, initial_values
from ddl.nn.context import Context


@dataclass(frozen=True)
class Field:
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int | None = None


def fields_of(batch: dict[str, np.ndarray], **sizes: int) -> dict[str, Field]:
    return {name: Field(a.shape[1:], a.dtype, sizes.get(name)) for name, a in batch.items()}


def images(rows: int, size: int = 8, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Images with a bright quarter; the class is which one."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, rows)
    x = rng.normal(0, 0.3, (rows, size, size, 1))
    for image, quarter in zip(x, y, strict=True):
        i, j = divmod(int(quarter), 2)
        image[i * size // 2 : (i + 1) * size // 2, j * size // 2 : (j + 1) * size // 2] += 1
    return {"x": x.astype(dtype), "y": y}


def stripes(rows: int) -> dict[str, np.ndarray]:
    """Images of stripes, lying or standing."""
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, rows)
    x = rng.normal(0, 0.2, (rows, 8, 8)) + np.tile([1.0, -1.0], 4)
    x[y == 1] = x[y == 1].swapaxes(1, 2)
    return {"x": x[..., None].astype("float32"), "y": y}


def texts(rows: int, length: int = 6) -> dict[str, np.ndarray]:
    """Rows of tokens 1 .. 9, filled with 0; the class is whether small or large ones prevail."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, rows)
    x = np.where(y[:, None] == 1, rng.integers(5, 10, (rows, length)), rng.integers(1, 6, (rows, length)))
    x[np.arange(length) >= rng.integers(2, length + 1, rows)[:, None]] = 0
    return {"x": x, "y": y}


def counting(rows: int, length: int = 6, tokens: int = 7) -> dict[str, np.ndarray]:
    """Rows that count upward; the target of each token is the next."""
    start = np.random.default_rng(2).integers(0, tokens, rows)
    both = (start[:, None] + np.arange(length + 1)) % tokens
    return {"x": both[:, :-1], "y": both[:, 1:]}


def values(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return {"x": x, "y": (x @ [3.0, -1, 0.5, 2] + 2).astype("float32")}


# name -> (model, its options, data for a number of rows, field sizes)
PROBLEMS = {
    "linear": ("linear", {}, values, {}),
    "logistic": ("linear", {}, images, {"y": 4}),
    "mlp": ("mlp", {"hidden": [9, 8], "activation": "tanh"}, images, {"y": 4}),
    "mlp-dropout": ("mlp", {"hidden": [12], "dropout": 0.3, "activation": "sigmoid"}, images, {"y": 4}),
    "cnn": ("cnn", {"channels": [3, 4], "dense": [8]}, images, {"y": 4}),
    "cnn-batch-norm": (
        "cnn",
        {"channels": [3], "dense": [], "batch_norm": "shard", "pool": "average", "global_pool": False},
        images,
        {"y": 4},
    ),
    "cnn-global": ("cnn", {"channels": [4], "dense": [6], "pool": "none", "global_pool": True}, stripes, {"y": 2}),
    "layers": (
        "layers",
        {
            "layers": [
                {"layer": "Flatten"},
                {"layer": "Dense", "units": 7, "activation": "tanh"},
                {"layer": "Dense", "units": 4},
            ]
        },
        images,
        {"y": 4},
    ),
    "rnn": ("rnn", {"units": 7}, images, {"y": 4}),
    "lstm": ("lstm", {"units": 5, "embedding": 4, "dense": [6]}, texts, {"x": 10, "y": 2}),
    "gru": ("gru", {"units": 5, "dense": []}, images, {"y": 4}),
    "text": ("text", {"embedding": 5, "dense": [6]}, texts, {"x": 10, "y": 2}),
    "decoder": ("transformer", {"layers": 2, "width": 8, "heads": 2}, counting, {"x": 7, "y": 7}),
    "decoder-untied": (
        "transformer",
        {"layers": 1, "width": 8, "heads": 2, "tied": False, "positions": "sinusoidal", "dropout": 0.1},
        counting,
        {"x": 7, "y": 7},
    ),
    "decoder-rotary": (
        "transformer",
        {"layers": 1, "width": 8, "heads": 2, "positions": "rotary"},
        counting,
        {"x": 7, "y": 7},
    ),
    "encoder": ("transformer", {"layers": 1, "width": 8, "heads": 2}, texts, {"x": 10, "y": 2}),
    "autoencoder": ("autoencoder", {"code": 4, "hidden": [12]}, images, {}),
    "autoencoder-conv": ("autoencoder", {"code": 4, "channels": [3, 4]}, images, {}),
}


class Bench:
    """A model with parameters, averages and gradients, and a batch in two segments, all of it in arrays of ``xp``."""

    def __init__(self, model, batch, dtype, xp=np):
        self.model, self.batch = model, {name: xp.asarray(values) for name, values in batch.items()}
        initial = FlatBuffer(Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype))
        initial.assign(initial_values(model, 5))
        self.params = FlatBuffer(initial.layout, xp.asarray(initial.flat))
        self.averages = FlatBuffer(Layout.of({name: a.shape for name, a in model.averages.items()}, dtype), xp=xp)
        for name, average in model.averages.items():
            self.averages[name][...] = average.initial
        self.grads = FlatBuffer(gradient_layout(model, dtype), xp=xp)
        rows = len(batch["x"])
        self.segments = [slice(0, rows // 2), slice(rows // 2, rows)]
        self.announced: list[str] = []
        self.ctx = Context(training=True, seed=9, arena=Arena(xp))
        # On a device, where each look costs more, one place of an array shows whether it does what the host does.
        self.places = 12 if xp is np else 1

    @classmethod
    def of(cls, name: str, rows: int, dtype: str, xp=np) -> Bench:
        model, options, data, sizes = PROBLEMS[name]
        batch = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in data(rows).items()}
        return cls(build(model, fields_of(batch, **sizes), options=options), batch, dtype, xp)

    def loss(self, grads: bool = False, step: int = 0):
        self.ctx.begin(self.segments, [0, 1], step, 0, lambda names: self.announced.extend(map(str, names)))
        return self.model.loss_and_gradients(
            self.params.views, self.averages.views, self.batch, self.grads.views if grads else None, self.ctx
        )

    def numeric(self, name: str, place: tuple[int, ...], of=lambda result: result[0], h: float = 1e-6) -> float:
        """Central difference of ``of(loss result)`` in one parameter."""
        view = self.params[name]
        kept = float(view[place])
        view[place] = kept + h
        above = of(self.loss())
        view[place] = kept - h
        below = of(self.loss())
        view[place] = kept
        return (above - below) / (2 * h)

    def gradients(self) -> dict[str, np.ndarray]:
        """Copies on the host, by name."""
        return {name: np.array(host(view)) for name, view in self.grads.views.items()}

    def some_places(self):
        rng = np.random.default_rng(8)
        for name, (shape, _) in self.model.params.items():
            for _ in range(min(self.places, int(np.prod(shape)))):
                yield name, tuple(int(rng.integers(0, n)) for n in shape)

    def train(self, optimizer, steps: int) -> list[float]:
        """Mean losses over some steps."""
        slots = {slot: np.zeros_like(self.params.flat) for slot in optimizer.slots}
        groups = optim.Groups(self.params.layout, optimizer)
        losses = []
        for step in range(steps):
            loss, weight, _ = self.loss(grads=True, step=step)
            gradient = self.grads.flat[: self.params.layout.length]
            groups.update(self.params.flat, gradient, slots, optimizer.lr, step, 1 / weight)
            losses.append(loss / weight)
        return losses


@pytest.fixture(params=PROBLEMS)
def name(request):
    """Each model of the zoo in turn."""
    return request.param


@pytest.fixture
def zoo():
    """Models on tiny data. Kernels are tested by their own rooms; without compiling, this one is quick."""
    use_compiled("off")
    yield SimpleNamespace(Bench=Bench, Field=Field, PROBLEMS=PROBLEMS, fields_of=fields_of, images=images)
    use_compiled("auto")
