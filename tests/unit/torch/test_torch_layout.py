"""Weights that ddl exports in PyTorch's layout load into PyTorch's modules, which compute the same; and back."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn as theirs

from ddl import nn
from ddl.arrays import Views
from ddl.data import Field
from ddl.errors import ConfigError
from ddl.export.torch_layout import from_torch, to_torch
from ddl.kernels.backend import use_compiled
from ddl.models import build, initial_values
from ddl.nn.context import Context


@pytest.fixture(autouse=True)
def plain():
    use_compiled("off")
    yield
    use_compiled("auto")


def made(network, shape, rng, dtype="float32", targets=((), "int64", 3)):
    of_x = Field(shape, np.dtype(dtype), 11 if dtype == "int64" else None)
    model = build(network, {"x": of_x, "y": Field(targets[0], np.dtype(targets[1]), targets[2])})
    arrays = {name: rng.normal(0, 0.5, v.shape).astype("float32") for name, v in initial_values(model, 1).items()}
    averages = {name: rng.uniform(0.5, 2, one.shape).astype("float32") for name, one in model.averages.items()}
    return model, {**arrays, **averages}


def ours(model, arrays, x):
    context = Context(segments=[slice(0, len(x))], shards=[0])
    return model.predict(Views(arrays), Views({}), {"x": x}, context)["output"]


def agree(model, arrays, module, x, of_theirs):
    """The module takes the exported weights, computes the same, and gives them back. of_theirs: its output for x."""
    state = to_torch(model, arrays, updates=7)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    with torch.no_grad():
        np.testing.assert_allclose(of_theirs(module.eval()), ours(model, arrays, x), rtol=1e-4, atol=1e-5)
    back = from_torch(model, {name: value.numpy() for name, value in module.state_dict().items()})
    assert set(back) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_images_are_flattened_in_pytorchs_order(rng):
    network = nn.Sequential(
        nn.Conv2D(6, 3, padding=1, bias=False),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.BatchNorm(),
        nn.Dense(5, "relu"),
        nn.Dense(3),
    )
    model, arrays = made(network, (8, 6, 3), rng)
    module = theirs.Sequential(
        OrderedDict(
            conv2d1=theirs.Conv2d(3, 6, 3, padding=1, bias=False),
            batchnorm1=theirs.BatchNorm2d(6),
            relu=theirs.ReLU(),
            pool=theirs.MaxPool2d(2),
            flatten=theirs.Flatten(),
            batchnorm2=theirs.BatchNorm1d(6 * 4 * 3),
            dense1=theirs.Linear(6 * 4 * 3, 5),
            again=theirs.ReLU(),
            dense2=theirs.Linear(5, 3),
        )
    )
    x = rng.normal(size=(4, 8, 6, 3)).astype("float32")
    agree(model, arrays, module, x, lambda m: m(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy())


def test_a_vector_becomes_an_image_in_pytorchs_order(rng):
    network = nn.Sequential(
        nn.Dense(4 * 3 * 5),
        nn.ReLU(),
        nn.Reshape((4, 3, 5)),
        nn.ConvTranspose2D(2, 4, stride=2, padding=1),
        nn.Flatten(),
    )
    model, arrays = made(network, (6,), rng, targets=((48 * 2,), "float32", None))
    module = theirs.Sequential(
        OrderedDict(
            dense1=theirs.Linear(6, 60),
            relu=theirs.ReLU(),
            image=theirs.Unflatten(1, (5, 4, 3)),
            convtranspose2d1=theirs.ConvTranspose2d(5, 2, 4, stride=2, padding=1),
        )
    )
    x = rng.normal(size=(4, 6)).astype("float32")
    agree(model, arrays, module, x, lambda m: m(torch.from_numpy(x)).permute(0, 2, 3, 1).reshape(4, -1).numpy())


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers_keep_their_gates(kind, rng):
    model, arrays = made(nn.Sequential(rec=getattr(nn, kind)(4), out=nn.Dense(3)), (5, 3), rng)

    class Module(theirs.Module):
        def __init__(self):
            super().__init__()
            self.rec, self.out = getattr(theirs, kind)(3, 4, batch_first=True), theirs.Linear(4, 3)

        def forward(self, x):
            return self.out(self.rec(x)[0][:, -1])

    x = rng.normal(size=(4, 5, 3)).astype("float32")
    agree(model, arrays, Module(), x, lambda m: m(torch.from_numpy(x)).numpy())


def test_attention_and_embeddings(rng):
    network = nn.Sequential(
        embed=nn.Embedding(11, 8),
        places=nn.PositionalEmbedding(),
        norm=nn.LayerNorm(),
        attend=nn.MultiHeadAttention(2),
        mean=nn.TokenMean(),
        out=nn.Dense(3),
    )
    model, arrays = made(network, (6,), rng, "int64")

    class Module(theirs.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.places, self.norm = theirs.Embedding(11, 8), theirs.Embedding(6, 8), theirs.LayerNorm(8)
            self.attend = theirs.MultiheadAttention(8, 2, batch_first=True)
            self.out = theirs.Linear(8, 3)

        def forward(self, x):
            y = self.norm(self.embed(x) + self.places.weight)
            return self.out(self.attend(y, y, y, need_weights=False)[0].mean(dim=1))

    x = rng.integers(0, 11, (4, 6))
    agree(model, arrays, Module(), x, lambda m: m(torch.from_numpy(x)).numpy())


def test_the_numbered_parts_of_a_sequential_are_taken_in_their_order(rng):
    model, arrays = made(nn.Sequential(nn.Flatten(), nn.Dense(5, "relu"), nn.Dense(3)), (2, 3), rng)
    module = theirs.Sequential(theirs.Flatten(), theirs.Linear(6, 5), theirs.ReLU(), theirs.Linear(5, 3))
    found = from_torch(model, {name: value.detach().numpy() for name, value in module.state_dict().items()})
    assert set(found) == set(arrays)
    x = rng.normal(size=(4, 2, 3)).astype("float32")
    with torch.no_grad():
        np.testing.assert_allclose(ours(model, found, x), module(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_residual_of_a_flattened_image_is_refused(rng):
    network = nn.Sequential(nn.Flatten(), nn.Residual(nn.Dense(12)), nn.Dense(3))
    model, arrays = made(network, (2, 2, 3), rng)
    with pytest.raises(ConfigError, match="residual1: PyTorch has no residual of a flattened image"):
        to_torch(model, arrays)
