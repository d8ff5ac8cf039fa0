"""One value of a setting: from text or TOML to its type, and how a type is told to people.

Which settings there are is sections.py's."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from ddl.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def choices(kind: Any) -> list[Any]:
    """The members of a union; the type itself where it is none."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def spell(kind: Any) -> str:
    """A type as people read it in ``--help`` and in errors."""
    if len(choices(kind)) > 1:
        return " or ".join(spell(k) for k in choices(kind))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "list of tables" if get_args(kind)[0] is not str else "list of strings"
    if get_origin(kind) is dict:
        return "table"
    return {int: "whole number", float: "number", bool: "true|false", str: "string"}[kind]


def literal(text: str) -> Any:
    """``text`` as a TOML value, or as the string it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fits(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``; raises TypeError where it is not one."""
    origin = get_origin(kind)
    if origin is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
    elif origin is tuple:
        inner = get_args(kind)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_fits(v, inner) for v in value)
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, kind):
        return value
    raise TypeError


def _read(text: str, kind: Any) -> Any:
    """A word of the command line as ``kind``; raises TypeError or ValueError where it is not one."""
    origin = get_origin(kind)
    if kind is str or origin is Literal:
        return _fits(text, kind)
    if kind is bool:
        if text.lower() in _YES + _NO:
            return text.lower() in _YES
        raise TypeError
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    value = literal(text)
    if origin is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return _fits(value, kind)


def convert(value: Any, kind: Any, name: str, from_text: bool = False) -> Any:
    """``value`` as the type of the setting ``name``. Raises ConfigError naming both.

    from_text: the value is a word of the command line, to be read as the type says."""
    # A union tries its narrower types first: a string takes everything.
    for one in sorted(choices(kind), key=lambda k: k is str):
        try:
            return _read(value, one) if from_text else _fits(value, one)
        except (TypeError, ValueError):
            continue
    shown = value if from_text or not isinstance(value, str) else f'"{value}"'
    article = "one of" if "|" in spell(kind) else "a"
    raise ConfigError(f"{name} is {shown}: it must be {article} {spell(kind)}")


def types_of(section: type) -> dict[str, Any]:
    """Field -> its type, resolved."""
    return typing.get_type_hints(section)
