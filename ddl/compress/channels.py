"""Structured pruning: the least important channels of convolutions and units of dense layers are taken out.

What remains is an ordinary, smaller network. Fine-tuning it is ordinary training, with ``model.from``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ddl import nn
from ddl.arrays import Device, host
from ddl.errors import ConfigError
from ddl.models.layers import described_network
from ddl.models.model import Supervised
from ddl.nn.layer import Shape
from ddl.run.trained import Trained
from ddl.train.saved import OF_DATA, model_of, state_of

# Layers that treat each channel alone: they pass on that one was taken out.
BY_CHANNEL = (
    *(nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Scale, nn.BatchNorm),
    *(nn.MaxPool2D, nn.AvgPool2D, nn.GlobalAvgPool),
)
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cut:
    """A layer that can lose channels. between: the layers up to the one that reads them. copies: how many inputs of
    that one belong to a channel, which follow each other at a distance of the number of channels."""

    layer: str
    between: tuple[str, ...]
    reader: str
    copies: int


def cuts_of(network: nn.Sequential, shape: Shape) -> list[Cut]:
    """The layers of ``network`` that can lose channels, in their order; not the last one, which gives the outputs."""
    cuts: list[Cut] = []
    giver, between, copies = "", [], 1  # type: tuple[str, list[str], int]
    for name, layer in network.layers.items():
        output = layer.spec(shape).output
        is_reader = isinstance(layer, nn.Dense) and len(shape) == 1
        is_reader = is_reader or (isinstance(layer, nn.Conv2D) and layer.groups == 1)
        if is_reader:
            if giver:
                cuts.append(Cut(giver, tuple(between), name, copies))
            giver, between, copies = name, [], 1
        elif isinstance(layer, nn.Reshape) and len(output) == 1 and giver:  # a flattened image: channels come last
            copies *= prod(shape[:-1])
            between.append(name)
        elif type(layer) in BY_CHANNEL and giver:
            if isinstance(layer, nn.BatchNorm) and copies > 1:
                giver = ""
            between.append(name)
        else:
            giver = ""
        shape = output
    return cuts


def _importance(cut: Cut, network: nn.Sequential, arrays: Arrays) -> np.ndarray:
    """Of each channel: the norm of the weights that compute it, as batch normalisation scales them, times the norm of
    the weights that read it."""
    weight = arrays[f"{cut.layer}.weight"].astype(np.float64)
    sizes = np.sqrt((weight.reshape(-1, weight.shape[-1]) ** 2).sum(axis=0))
    for name in cut.between:
        layer = network.layers[name]
        if isinstance(layer, nn.BatchNorm):
            sizes *= np.abs(arrays[f"{name}.weight"]) / np.sqrt(arrays[f"{name}.variance"] + layer.eps)
    reader = _by_channel(arrays[f"{cut.reader}.weight"], cut, len(sizes)).astype(np.float64)
    return np.asarray(sizes * np.sqrt((reader**2).sum(axis=(0, 1, 3))))


def _by_channel(weight: np.ndarray, cut: Cut, channels: int) -> np.ndarray:
    """The weight of a reader as (window, copies, channels, outputs)."""
    return weight.reshape(-1, cut.copies, channels, weight.shape[-1])


def narrowed(
    network: nn.Sequential, shape: Shape, arrays: Arrays, share: float
) -> tuple[nn.Sequential, dict[str, Any]]:
    """``network`` with ``share`` of the channels of each layer that can lose some, and its parameters and averages.

    At least one channel of a layer remains. Raises ConfigError if no layer can lose any."""
    layers, values = dict(network.layers), {name: np.asarray(value) for name, value in arrays.items()}
    cuts = cuts_of(network, shape)
    if not cuts:
        raise ConfigError("no layer of this network can lose channels: only dense layers and convolutions in a row can")
    for cut in cuts:
        # By the values before any cut: which channels one layer loses does not depend on the others.
        important = _importance(cut, network, arrays)
        count = max(round(share * len(important)), 1)
        kept = np.sort(np.argsort(-important, kind="stable")[:count])
        layers[cut.layer] = replace(layers[cut.layer], units=count)  # type: ignore[type-var, call-arg]
        for name in (cut.layer, *(n for n in cut.between if isinstance(layers[n], nn.BatchNorm))):
            for array in [one for one in values if one.startswith(f"{name}.")]:
                values[array] = values[array][..., kept]
        name = f"{cut.reader}.weight"
        read = _by_channel(values[name], cut, len(important))[:, :, kept]
        window = values[name].shape[:-2]  # (height, width) of a convolution, () of a dense layer
        values[name] = read.reshape(*window, -1, read.shape[-1])
    for cut in cuts:
        for between in cut.between:
            if type(layers[between]) is nn.Reshape:
                layers[between] = nn.Flatten()
    return nn.Sequential(**layers), values


def narrow(trained: Trained, share: float, folder: Path) -> Trained:
    """The run with ``share`` of its channels, as one that ``save`` can write to ``folder``.

    Its job fine-tunes it: it starts from that folder. Raises ConfigError for a model that is not a row of layers of
    ddl.nn."""
    model, what = trained.model, f"model {trained.job.model.name!r}"
    if not isinstance(model, Supervised) or type(model.network) is not nn.Sequential:
        raise ConfigError(f"{what} cannot lose channels: it is not a row of layers of ddl.nn")
    named = {n: np.array(host(v)) for n, v in (*trained.state.params.views.items(), *trained.state.buffers.items())}
    network, values = narrowed(model.network, tuple(model.shape), named, share)
    tables = described_network(network)
    if tables is None:
        raise ConfigError(f"{what} cannot lose channels: it has layers that a job file cannot describe")
    known = trained.meta["knowledge"]
    options = {key: value for key, value in known["options"].items() if key in OF_DATA} | {"layers": tables}
    old = trained.job
    job = replace(
        old,
        run=replace(old.run, dir="", name=f"{folder.name}-tuned"),
        model=replace(
            old.model, name="layers", options=options, from_=str(folder.absolute()), name_map={}, strict=True
        ),
    )
    smaller = model_of(job, trained.known.fields, options, trained.known.target)
    arrays = {
        f"{kind}/{name}": values[name]
        for kind, names in (("params", smaller.params), ("averages", {**smaller.averages, **smaller.kept}))
        for name in names
    }
    state = state_of(smaller, job, arrays, Device(), what)
    state.progress.become(trained.state.progress)
    meta = {**trained.meta, "knowledge": {**known, "options": options}}
    return Trained(folder, job, smaller, state, meta, "smaller")
