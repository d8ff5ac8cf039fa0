"""Parameters of ddl's networks by the names and in the layouts of PyTorch's modules, and back.

A layer keeps its place in the network (``conv2d1.weight``); what is below it is named as PyTorch names it. PyTorch's
matrices are (outputs, inputs), its images (channels, height, width): where an image is flattened before a dense layer,
the order of that layer's inputs changes too. docs/export.md has the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ddl import nn
from ddl.errors import ConfigError
from ddl.models import Model
from ddl.models.transformer import Decoder
from ddl.nn.layer import Shape

Named = Mapping[str, np.ndarray]
COUNTER = "num_batches_tracked"  # of PyTorch's batch norm; ddl keeps no such counter


@dataclass
class Part:
    """A layer with parameters. path: its place in the network. inputs, outputs: if the vectors that it takes or gives
    are flattened images, PyTorch's i-th value is ours number ``inputs[i]``."""

    path: str
    layer: Any
    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None


def to_torch(model: Model, arrays: Named, updates: int = 0) -> dict[str, np.ndarray]:
    """``arrays``, parameters and averages of ``model`` by ddl's names, as the state_dict of a PyTorch module has them.

    updates: training steps so far. A head that learned scaled targets becomes one that gives values in the units of
    the data. Raises ConfigError for a layer that PyTorch does not have."""
    found: dict[str, np.ndarray] = {}
    if model.target_scale is not None:
        in_units = model.target_scale.folded(arrays)
        arrays = {name: value.astype(arrays[name].dtype, copy=False) for name, value in in_units.items()}
    for part in _parts(model):
        translation, own = _translation(part), _below(arrays, part.path)
        theirs = translation.to_torch(part, own)
        if isinstance(part.layer, nn.BatchNorm):
            theirs[COUNTER] = np.array(updates, np.int64)
        found.update({_joined(part.path, name): np.copy(value, order="C") for name, value in theirs.items()})
    return found


def from_torch(model: Model, arrays: Named) -> dict[str, np.ndarray]:
    """The inverse of ``to_torch``; names that the model does not have stay. Parts numbered from 0, as those of a
    ``torch.nn.Sequential``, are taken in their order."""
    parts = list(_parts(model))
    theirs = _placed(arrays, [part.path for part in parts])
    found = {name: value for name, value in theirs.items() if not name.endswith(COUNTER)}
    for part in parts:
        own = {name: found.pop(_joined(part.path, name)) for name in _below(found, part.path)}
        try:
            found.update(
                {_joined(part.path, name): value for name, value in _translation(part).to_ddl(part, own).items()}
            )
        except (IndexError, ValueError):  # of another shape: the caller says so
            found.update({_joined(part.path, name): value for name, value in own.items()})
    return found


def _placed(arrays: Named, paths: list[str]) -> dict[str, np.ndarray]:
    """``arrays`` with numbered parts renamed to ``paths``, if there are as many."""
    numbered = {name: name.partition(".") for name in arrays}
    if not arrays or not all(head.isdecimal() and rest for head, _, rest in numbered.values()):
        return dict(arrays)
    order = sorted(numbered, key=lambda name: int(numbered[name][0]))
    groups = [list(names) for _, names in groupby(order, key=lambda name: numbered[name][0])]
    if len(groups) != len(paths):
        return dict(arrays)
    return {_joined(path, numbered[name][2]): arrays[name] for path, names in zip(paths, groups) for name in names}


def _below(arrays: Named, path: str) -> dict[str, np.ndarray]:
    start = f"{path}." if path else ""
    return {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# Where flattened images meet dense layers.


def _parts(model: Model) -> list[Part]:
    """The layers with parameters, in their order."""
    if not model.networks:
        kind = type(model)
        raise ConfigError(f"{kind.__module__}.{kind.__name__} has no layers of ddl.nn to be laid out as PyTorch's")
    return [part for scope, (network, shape) in model.networks.items() for part in _walk(network, shape, scope)]


def _walk(network: Any, shape: Shape, scope: str) -> list[Part]:
    parts: list[Part] = []
    pending: np.ndarray | None = None  # the order of the current vector, if it is a flattened image
    giver: Part | None = None  # the dense layer that computed the current vector, up to elementwise layers
    between: list[Part] = []  # normalisations of that vector
    for path, layer, before in _leaves(network, shape, scope):
        if isinstance(layer, nn.Residual):  # its begin, and its end
            if pending is not None:
                raise ConfigError(f"{path}: PyTorch has no residual of a flattened image in our order")
            giver = None
            continue
        after = layer.spec(before).output
        if isinstance(layer, nn.Reshape):
            order = _order(before) if len(after) == 1 else _order(after) if len(before) == 1 else None
            if len(after) == 1 and order is not None:
                pending, giver = order, None
            elif len(before) == 1 and pending is not None:
                pending = None  # back to an image; what lies between keeps the order of values
            elif order is not None:
                if giver is None:
                    raise ConfigError(f"{path or 'the input'}: PyTorch cannot reshape it to the same image")
                for part in (giver, *between):
                    part.outputs = order
            continue
        if not layer.spec(before).params:
            if not isinstance(layer, _ELEMENTWISE):
                giver = None
            continue
        part = Part(path, layer, pending)
        parts.append(part)
        if isinstance(layer, nn.Dense):
            pending, giver, between = None, part if len(after) == 1 else None, []
        elif isinstance(layer, nn.BatchNorm | nn.LayerNorm):
            part.outputs = pending
            between.append(part)
        elif pending is not None:
            raise ConfigError(f"{path}: PyTorch has no such layer after a flattened image")
        else:
            giver = None
    return parts


def _order(image: Shape) -> np.ndarray | None:
    """Where the values of a flattened (channels, height, width) are in our (height, width, channels); None if they are
    in the same order."""
    if len(image) != 3 or image[2] == 1 or image[0] * image[1] == 1:
        return None
    return np.arange(int(np.prod(image))).reshape(image).transpose(2, 0, 1).reshape(-1)


def _leaves(network: Any, shape: Shape, path: str) -> Iterator[tuple[str, Any, Shape]]:
    """(path, layer, shape of its input) of the layers without parts; a Residual comes before and after its parts."""
    if isinstance(network, nn.Sequential):
        for name, layer in network.layers.items():
            yield from _leaves(layer, shape, _joined(path, name))
            shape = layer.spec(shape).output
    elif isinstance(network, nn.Residual):
        yield path, network, shape
        yield from _leaves(network.body, shape, path)
        yield path, network, shape
    elif isinstance(network, Decoder):
        yield _joined(path, "embedding"), network.embedding, shape
        yield from _leaves(network.trunk, (*shape, network.width), _joined(path, "trunk"))
        if not network.tied:
            yield _joined(path, "scores"), network.scores, (*shape, network.width)
    else:
        yield path, network, shape


_ELEMENTWISE = (nn.Dropout, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.Scale)


# The parameters of each layer.


@dataclass(frozen=True)
class Translation:
    """to_torch, to_ddl: (part, arrays by name) -> arrays by name."""

    to_torch: Callable[[Part, Named], dict[str, np.ndarray]]
    to_ddl: Callable[[Part, Named], dict[str, np.ndarray]]


def _translation(part: Part) -> Translation:
    found = RULES.get(type(part.layer))
    if found is None:
        raise ConfigError(f"{part.path}: layer {type(part.layer).__name__} has no counterpart in PyTorch")
    return found


def _take(values: np.ndarray, order: np.ndarray | None, axis: int) -> np.ndarray:
    return values if order is None else values.take(order, axis)


def _put(values: np.ndarray, order: np.ndarray | None, axis: int) -> np.ndarray:
    """The inverse of ``_take``."""
    return values if order is None else values.take(np.argsort(order), axis)


def _dense_out(part: Part, own: Named) -> dict[str, np.ndarray]:
    weight = _take(_take(own["weight"], part.inputs, 0), part.outputs, 1).T
    return {"weight": weight, **({"bias": _take(own["bias"], part.outputs, 0)} if "bias" in own else {})}


def _dense_in(part: Part, own: Named) -> dict[str, np.ndarray]:
    found = dict(own)
    if "weight" in own:
        found["weight"] = _put(_put(own["weight"].T, part.inputs, 0), part.outputs, 1)
    if "bias" in own:
        found["bias"] = _put(own["bias"], part.outputs, 0)
    return found


def _axes(forward: tuple[int, ...]) -> Translation:
    """A weight with its axes in another order."""
    back = tuple(int(place) for place in np.argsort(forward))

    def turned(axes: tuple[int, ...]) -> Callable[[Part, Named], dict[str, np.ndarray]]:
        return lambda part, own: {n: v.transpose(axes) if n == "weight" else v for n, v in own.items()}

    return Translation(turned(forward), turned(back))


def _names(ours: Mapping[str, str], turns: tuple[str, ...] = ()) -> Translation:
    """Other names, the same values along the order of a flattened image. turns: matrices to transpose."""
    theirs = {name: own for own, name in ours.items()}

    def renamed(names: Mapping[str, str], move: Any) -> Callable[[Part, Named], dict[str, np.ndarray]]:
        def rename(part: Part, own: Named) -> dict[str, np.ndarray]:
            return {
                names.get(n, n): v.T if n in turns else move(v, part.outputs, 0) if v.ndim == 1 else v
                for n, v in own.items()
            }

        return rename

    return Translation(renamed(ours, _take), renamed(theirs, _put))


_INPUT, _STATE = ("weight_ih_l0", "bias_ih_l0"), ("weight_hh_l0", "bias_hh_l0")


def _recurrent_out(part: Part, own: Named) -> dict[str, np.ndarray]:
    state_bias = np.zeros_like(own["bias"])
    for name in part.layer.extra:
        state_bias[-part.layer.units :] = own[name]
    biases = {_INPUT[1]: own["bias"], _STATE[1]: state_bias}
    return {_INPUT[0]: own["weight"].T, _STATE[0]: own["recurrent"].T, **biases}


def _recurrent_in(part: Part, own: Named) -> dict[str, np.ndarray]:
    names = {*_INPUT, *_STATE}
    found = {name: value for name, value in own.items() if name not in names}
    if not names <= set(own):
        return {**found, **own}
    bias, units = own[_INPUT[1]] + own[_STATE[1]], part.layer.units
    for name in part.layer.extra:  # the candidate of a GRU keeps both of its biases
        found[name] = own[_STATE[1]][-units:]
        bias[-units:] = own[_INPUT[1]][-units:]
    return {**found, "weight": own[_INPUT[0]].T, "recurrent": own[_STATE[0]].T, "bias": bias}


_ATTENTION = {
    "weight": "in_proj_weight",
    "bias": "in_proj_bias",
    "output_weight": "out_proj.weight",
    "output_bias": "out_proj.bias",
}
RULES: Mapping[type, Translation] = {
    nn.Dense: Translation(_dense_out, _dense_in),
    nn.Conv2D: _axes((3, 2, 0, 1)),
    nn.ConvTranspose2D: _axes((3, 2, 0, 1)),
    nn.BatchNorm: _names({"mean": "running_mean", "variance": "running_var"}),
    nn.LayerNorm: _names({}),
    nn.Embedding: _names({}),
    nn.PositionalEmbedding: _names({}),
    nn.MultiHeadAttention: _names(_ATTENTION, turns=("weight", "output_weight", "in_proj_weight", "out_proj.weight")),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), Translation(_recurrent_out, _recurrent_in)),
}
