"""A network described by plain values, layer by layer: in a job file, or in the record of a run made by a script.

    [[model.options.layers]]
    layer = "Dense"      # a class of ddl.nn, and its arguments
    units = 64
    activation = "relu"

The layers themselves are in ddl.nn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from ddl import nn
from ddl.errors import ConfigError
from ddl.models.blueprint import Problem
from ddl.nn import Layer, Residual, Sequential
from ddl.nn.losses import LOSSES
from ddl.registry import instantiate


def layers(problem: Problem, *, layers: Sequence[dict[str, Any]]) -> Layer:
    """A network of layers one after another, each a table: ``layer`` names a class of ddl.nn, ``as`` the layer itself;
    all else are the class's arguments. The last one's outputs are what the loss compares with the targets."""
    return Sequential(**_named(layers))


def _named(tables: Sequence[Mapping[str, Any]]) -> dict[str, Layer]:
    named: dict[str, Layer] = {}
    for number, table in enumerate(tables, 1):
        name = str(table.get("as", f"layer{number}"))
        if name in named:
            raise ConfigError(f"model.options.layers: two layers are called {name!r}")
        named[name] = _layer(table)
    return named


def _layer(table: Any) -> Layer:
    if not isinstance(table, Mapping) or not isinstance(table.get("layer"), str):
        raise ConfigError(f"model.options.layers: {table!r} does not say which layer it is")
    kind, given = table["layer"], {key: _made(value) for key, value in table.items() if key not in ("layer", "as")}
    if kind in ("Sequential", "Residual"):
        inner = _named(table.get("layers", ()))
        return Sequential(**inner) if kind == "Sequential" else Residual(**inner)
    found = getattr(nn, kind, None)
    if not (isinstance(found, type) and is_dataclass(found) and isinstance(found, Layer)):
        raise ConfigError(f"model.options.layers: ddl.nn has no layer called {kind!r}")
    made: Layer = instantiate(found, given, f"layer {kind!r}")
    return made


def _made(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _layer(value)
    return tuple(_made(one) for one in value) if isinstance(value, list) else value


def described_network(network: Any) -> list[dict[str, Any]] | None:
    """Tables from which ``layers`` makes an equal network; None if plain values cannot describe a part of it."""
    try:
        return _tables(network) if type(network) is Sequential else None
    except _NotPlain:
        return None


def described_loss(loss: Any) -> tuple[str, dict[str, Any]] | None:
    """The name and options of a loss; None if they cannot describe it."""
    name = next((name for name, made in LOSSES.items() if type(loss) is made), None)
    try:
        return None if name is None else (name, _arguments(loss))
    except _NotPlain:
        return None


class _NotPlain(Exception):
    pass


def _tables(network: Sequential) -> list[dict[str, Any]]:
    return [{"as": name, **_table(layer)} for name, layer in network.layers.items()]


def _table(layer: Any) -> dict[str, Any]:
    kind = type(layer)
    if kind in (Sequential, Residual):
        return {"layer": kind.__name__, "layers": _tables(layer if kind is Sequential else layer.body)}
    if getattr(nn, kind.__name__, None) is not kind or not is_dataclass(kind):
        raise _NotPlain
    return {"layer": kind.__name__, **_arguments(layer)}


def _arguments(thing: Any) -> dict[str, Any]:
    """The arguments of a dataclass that are not its defaults."""
    found = {f.name: getattr(thing, f.name) for f in fields(thing) if f.init}
    return {f.name: _plain(found[f.name]) for f in fields(thing) if f.init and not _is_default(f, found[f.name])}


def _is_default(field: Field[Any], value: Any) -> bool:
    return field.default is not MISSING and type(field.default) is type(value) and bool(field.default == value)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Layer):
        return _table(value)
    raise _NotPlain
