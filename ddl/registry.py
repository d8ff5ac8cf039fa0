"""Things named in a job: an entry of a table, or a user's own as "package.module:Name", made with checked options.

What the things are is their own file's."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any

from ddl.errors import ConfigError

UNNAMED = "(python) "


def described(thing: Any) -> str:
    """What stands in the record of a run for an object that its script made: class and repr. ``find`` refuses it."""
    text = " ".join(repr(thing).split())
    kind = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    if " at 0x" in text or not text.startswith(kind.__name__):
        text = f"{kind.__module__}.{kind.__qualname__}"
    return UNNAMED + (text if len(text) <= 500 else text[:497] + "...")


def find(name: str, table: Mapping[str, Any], setting: str) -> Any:
    """The entry of ``table``, or the user's object; modules are found as by ``python -m``, this folder included.

    Raises ConfigError that names the setting and what it may be."""
    if name.startswith(UNNAMED):
        raise ConfigError(f"{setting} = {name!r} was made by a script, and only that script can make it again")
    if ":" not in name:
        if name not in table:
            raise ConfigError(
                f'{setting} = {name!r} is unknown; known are {sorted(table)}, or name yours "package.module:Name"'
            )
        return table[name]
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{setting} = {name!r} cannot be found: {error}") from error
    return found


def make(builder: Callable[..., Any], options: Mapping[str, Any], what: str, *given: Any) -> Any:
    """``builder(*given, **options)`` after a look at its signature.

    Raises ConfigError for an option that it does not have, that it needs, or that has the wrong type."""
    try:
        every = list(inspect.signature(builder).parameters.values())
    except ValueError:  # some built-in callables have no signature
        return builder(*given, **options)
    by_order = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(given) > len(by_order) and not any(p.kind is p.VAR_POSITIONAL for p in every):
        raise ConfigError(f"{what} takes {len(by_order)} values, not {len(given)}: too many in {list(given)}")
    parameters = every[len(given) :]
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = sorted(set(options) - set(known))
    if unknown and not takes_any:
        raise ConfigError(f"{what} has no option {unknown}; it has {known}")
    needed = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options]
    if needed:
        raise ConfigError(f"{what} needs {needed}: set them in its options")
    hints = _hints(builder)
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{what}: option {name} = {value!r} must be {_spelled(hints[name])}")
    return builder(*given, **options)


def _hints(builder: Callable[..., Any]) -> dict[str, Any]:
    target = builder.__init__ if inspect.isclass(builder) else builder  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Could ``value``, as it comes from TOML, be meant by ``hint``? Hints that are not plain let everything pass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (tuple, list, Sequence):
        items = [part for part in arguments if part is not Ellipsis]
        is_row = isinstance(value, (list, tuple))
        return is_row and (len(items) != 1 or all(_fits(item, items[0]) for item in value))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return True


def _spelled(hint: Any) -> str:
    """A hint as people read it: "list of int", "str or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_spelled, arguments))
    if origin is typing.Literal:
        return f"one of {list(arguments)}"
    if origin in (tuple, list, Sequence):
        return "a list" + f" of {_spelled(arguments[0])}" * bool(arguments)
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
