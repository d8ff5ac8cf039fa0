"""From a TOML value or a command-line word to the value of a setting, checked against the setting's type.

Which settings exist is in sections.py; files, precedence and paths are in load.py."""

from __future__ import annotations

import json
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from ddl.config.sections import SECTIONS, public_names
from ddl.errors import ConfigError
from ddl.wording import closest, instead, listed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALIASES = {"trace": "metrics.trace", "chaos": "fault.chaos"}
_MAIN = {"data": "path or data.source", "metrics": "console_every_s", "checkpoint": "every_s", "train": "epochs"}
_NAMES, _TABLE, _TABLES = tuple[str, ...], dict[str, Any], tuple[dict[str, Any], ...]
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a string"},
    **{_NAMES: "a list of strings", _TABLE: "a table", _TABLES: "a list of tables"},
}


def find_setting(name: str) -> tuple[str, str, list[str]]:
    """(section, setting, keys inside its table) of "section.setting.key"; raises ConfigError with a suggestion."""
    section, *rest = name.split(".")
    if section not in SECTIONS:
        raise ConfigError(f"there is no section [{section}]; {_instead_of_section(section)}")
    known = public_names(SECTIONS[section])
    if not rest:
        main = "name" if "name" in known else _MAIN.get(section, next(iter(known)))
        raise ConfigError(f"{section} is a section of settings, not a setting; did you mean {section}.{main}?")
    is_table = rest[0] in known and type_of(f"{section}.{rest[0]}") == _TABLE
    if rest[0] not in known or (rest[1:] and not is_table):
        whole = ".".join(rest)
        elsewhere = _elsewhere(whole, known)
        hint = f"did you mean {listed(elsewhere)}?" if elsewhere else instead(whole, known, "it has")
        raise ConfigError(f"[{section}] has no setting {whole!r}; {hint}")
    return section, rest[0], rest[1:]


def _instead_of_section(name: str) -> str:
    """What an unknown section was meant to be: a setting whose section was left out, or a misspelled section."""
    homes = _elsewhere(name, SECTIONS)
    return f"did you mean {listed(homes)}?" if homes else instead(name, SECTIONS, "there are")


def _elsewhere(name: str, near: Iterable[str]) -> list[str]:
    """The settings of any section that are called ``name``; or else, if no name ``near`` is like it, alike."""
    settings = {setting for kind in SECTIONS.values() for setting in public_names(kind)}
    return _homes(name) or _homes("" if closest(name, near) else closest(name, settings) or "")


def _homes(setting: str) -> list[str]:
    return [f"{section}.{setting}" for section, kind in SECTIONS.items() if setting in public_names(kind)]


@cache
def types_of(section: type) -> dict[str, Any]:
    """Field -> its type, resolved."""
    return typing.get_type_hints(section)


def type_of(name: str) -> Any:
    """The type of "section.setting"."""
    section, _, key = name.partition(".")
    return types_of(SECTIONS[section])[public_names(SECTIONS[section])[key]]


def read_value(name: str, value: Any) -> Any:
    """A TOML or Python value as its setting's type; a string is never read as anything else. Raises ConfigError."""
    return _checked(name, _shown(value), lambda kind: _convert(kind, value))


def read_word(name: str, text: str) -> Any:
    """A command-line word as its setting's type. Raises ConfigError."""
    return _checked(name, text or '""', lambda kind: _convert_text(kind, text))


def guess(text: str) -> Any:
    """A command-line word for a key inside a table, where no type is declared: a TOML value, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(name: str, shown: str, convert: Callable[[Any], Any]) -> Any:
    section, _, key = name.partition(".")
    kind = type_of(name)
    try:
        return convert(kind)
    except (TypeError, ValueError):
        match = closest(shown, _choices(kind))
        hint = f"; did you mean {match!r}?" if match else ""
        raise ConfigError(f"[{section}] {key} is {shown}: it must be {spell(kind)}{hint}") from None


def _convert(kind: Any, value: Any) -> Any:
    """Raises TypeError if ``value`` is not of type ``kind``."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if _is_union(kind):
        for part in get_args(kind):
            with suppress(TypeError):
                return _convert(part, value)
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], item) for item in value)
    elif isinstance(value, str):
        if kind is str or value in _choices(kind):
            return value
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, dict if kind == _TABLE else bool if kind is bool else ()):
        return value
    elif kind is float and is_number:
        return float(value)
    elif kind is int and is_number and isinstance(value, numbers.Integral):
        return int(value)
    raise TypeError


def _convert_text(kind: Any, text: str) -> Any:
    """Raises TypeError or ValueError where ``text`` cannot be read as ``kind``."""
    if kind is str:
        return text
    if kind is bool and text.lower() in _SWITCH:
        return _SWITCH[text.lower()]
    if kind == _NAMES and not text.startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is float:
        return float(text)  # ".5" and "1." are not TOML, but users write them
    if _is_union(kind) and float in get_args(kind):
        with suppress(ValueError):
            return float(text)
    try:
        return _convert(kind, guess(text))
    except TypeError:
        return _convert(kind, text)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _choices(kind: Any) -> tuple[str, ...]:
    """The words that a type allows: those of a Literal, alone or in a union."""
    parts = get_args(kind) if _is_union(kind) else (kind,)
    return tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))


def spell(kind: Any) -> str:
    """A type in words, as help and errors show it."""
    if _is_union(kind):
        return listed(spell(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return ("one of " if len(get_args(kind)) > 1 else "") + listed(get_args(kind))
    return _WORDS[kind]


def _shown(value: Any) -> str:
    """A value as a job file would write it."""
    return json.dumps(value, default=repr, ensure_ascii=False)
