"""Registry: choose an implementation by name ("package.module:Name" for a user's own) and call it with checked options.

Each room keeps its own table of names; this module only looks names up and checks arguments."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar

from ddl.errors import ConfigError
from ddl.wording import closest, instead, listed

T = TypeVar("T")
UNNAMED = "(python) "
QUALIFIED = re.compile(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*")  # "package.module:Name"


def described(value: Any) -> str:
    """The name recorded in config.toml for an object that a script built. ``resolve`` refuses such a name."""
    text = " ".join(repr(value).split())
    kind = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    if " at 0x" in text or not text.startswith(kind.__name__):
        text = f"{kind.__module__}.{kind.__qualname__}"
    return UNNAMED + (text if len(text) <= 500 else text[:497] + "...")


def resolve(name: str, table: Mapping[str, Any], setting: str, others: Iterable[str] = ()) -> Any:
    """The entry ``name`` of ``table``, or the object that "package.module:Name" imports.

    Modules are imported as by ``python -m``, which includes the current folder. others: names that the caller handles
    itself, offered in the error. Raises ConfigError that names the setting and its valid values."""
    if name.startswith(UNNAMED):
        raise ConfigError(f"{setting} = {name!r} was built by a script, and only that script can build it again")
    if ":" not in name:
        if name not in table:
            hint = instead(name, [*table, *others])
            raise ConfigError(f'{setting} = {name!r} is unknown; {hint} (your own is "package.module:Name")')
        return table[name]
    if not QUALIFIED.fullmatch(name):
        raise ConfigError(f'{setting} = {name!r} must be a known name or "package.module:Name"')
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{setting} = {name!r} cannot be found: {error}") from error
    return value


def instantiate(builder: Callable[..., Any], options: Mapping[str, Any], what: str, *given: Any) -> Any:
    """Call ``builder(*given, **options)`` after checking the arguments against its signature.

    what: names the builder in errors. Raises ConfigError for an unknown, missing or mistyped option."""
    try:
        every = list(inspect.signature(builder).parameters.values())
    except ValueError:  # some built-in callables have no signature
        return builder(*given, **options)
    by_order = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(given) > len(by_order) and not any(p.kind is p.VAR_POSITIONAL for p in every):
        raise ConfigError(f"{what} takes {len(by_order)} values, not {len(given)}: too many in {listed(given, 'and')}")
    parameters = every[len(given) :]
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = sorted(set(options) - set(known))
    if unknown and not takes_any:
        raise ConfigError(f"{what} has no option {unknown[0]!r}; {instead(unknown[0], known, 'it has')}")
    needed = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options]
    if needed:
        raise ConfigError(
            f"{what} needs {listed(needed, 'and')}: set {'it' if len(needed) == 1 else 'them'} in its options"
        )
    hints = _hints(builder)
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            match = closest(value, map(str, typing.get_args(hints[name]))) if isinstance(value, str) else None
            hint = f"; did you mean {match!r}?" if match else ""
            raise ConfigError(f"{what}: option {name} = {value!r} must be {_spelled(hints[name])}{hint}")
    return builder(*given, **options)


def adapter_of(value: Any, table: Mapping[str, str]) -> Callable[..., Any] | None:
    """What makes ddl's own kind of object from one of another framework, found by the names of its base classes.

    table: "module.Class" -> "package.module:Name", which is imported only if it is needed. A class counts like its
    objects. None for any other value."""
    kind = value if inspect.isclass(value) else type(value)
    for base in kind.__mro__:
        name = table.get(f"{base.__module__}.{base.__qualname__}")
        if name is not None:
            adapter: Callable[..., Any] = resolve(name, {}, "adapter")
            return adapter
    return None


TENSORS = {"torch.Tensor": "ddl.torch.objective:array_of"}  # which may need a gradient, or lie on a GPU


def tensor_as_array(value: Any) -> Any:
    """A tensor of another framework as an array of NumPy; any other value as it is."""
    adapter = adapter_of(value, TENSORS)
    return value if adapter is None else adapter(value)


def adapt(value: Any, contract: type[T]) -> T:
    """``value`` as a ``contract``: itself if its class inherits from it, else a wrapper.

    The wrapper has the value's public members, and the contract's defaults for members that the value lacks. Only this
    function asks which members an object has."""
    if isinstance(value, contract):
        return value
    members: dict[str, Any] = {}
    for name in (name for name in dir(contract) if not name.startswith("_") and hasattr(value, name)):
        members[name] = _member(value, name)
    if callable(value):
        members["__call__"] = lambda self, *arguments: value(*arguments)
    adapted: T = type(type(value).__name__, (contract,), members)()
    return adapted


def _hints(builder: Callable[..., Any]) -> dict[str, Any]:
    target = builder.__init__ if inspect.isclass(builder) else builder  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML ``value`` fits the type ``hint``. Hints other than plain types accept everything."""
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
    """A type hint in words: "list of int", "str or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_spelled, arguments))
    if origin is typing.Literal:
        return f"one of {listed(arguments)}"
    if origin in (tuple, list, Sequence):
        return "a list" + f" of {_spelled(arguments[0])}" * bool(arguments)
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _member(value: Any, name: str) -> property:
    """A property that reads ``name`` of ``value``."""
    return property(lambda self: getattr(value, name))
