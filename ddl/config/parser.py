"""The parser of settings: jsonargparse, told of the sections; what it refuses is said in one line.

Which files and words it gets, and in which order they count, is load.py's."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_loader
from jsonargparse.typing import register_type

from ddl.config.sections import SECTIONS, public_names
from ddl.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALIASES = {"metrics.trace": "--trace", "fault.chaos": "--chaos"}

_ABOUT = """Trains a model on all ranks that mpirun started; without a job file, a small CNN on the bundled handwritten
digits. The command line wins over the job file, the file over the defaults below."""
_HINTS = """Lists are written as a TOML array or with commas; tables as {key = value} or --model.options.key value.
Your own model, data source, loss, metric or callback is named as "package.module:Name"."""


def literal(text: str) -> Any:
    """A word of the command line as a TOML value; raises TOMLDecodeError where it is none."""
    return tomllib.loads(f"value = {text}")["value"]


class Names:
    """For the parser alone, the type of a list of strings: the command line may give it with commas."""


class Table:
    """For the parser alone, the type of a table: what is in it is kept as TOML has it."""


class Tables:
    """For the parser alone, the type of a list of tables."""


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and not value.startswith("["):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return _items(value, str)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"Got value: {value}")
    return value


def _items(value: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, kind) for part in value):
        raise TypeError(f"Got value: {value}")
    return tuple(value)


# A word is TOML, as in a job file; jsonargparse then tries the bare text where the type wants another thing.
set_loader("words", literal, (tomllib.TOMLDecodeError,), json_superset=False)
# jsonargparse would read a string inside a table as a number where it looks like one.
_OWN = {tuple[str, ...]: Names, dict[str, Any]: Table, tuple[dict[str, Any], ...]: Tables}
for _kind, _read in ((Names, _names), (Table, _table), (Tables, lambda value: _items(value, dict))):
    register_type(_kind, list, _read, type_check=lambda value, kind: False)


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise argparse.ArgumentError(None, message)


class _Formatter(DefaultHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=118)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action).replace("default: )", 'default: "")')
        for kind, own in _OWN.items():
            text = text.replace(f"<class '{own.__name__}'>", spell(kind))
        return text


@cache
def parser(program: str = "ddl.train") -> ArgumentParser:
    """One option for every setting, with its type, default and meaning."""
    made = _Parser(
        prog=f"python -m {program}",
        usage=f"python -m {program} [job.toml] [--section.key value ...]",
        description=_ABOUT,
        epilog=_HINTS,
        parser_mode="words",
        formatter_class=_Formatter,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    made.add_argument("job", nargs="?", help="a TOML file of settings, in sections as below")
    made.add_argument("--print_config", action="store_true", help="print the resolved settings as a job file")
    for section, kind in SECTIONS.items():
        group = made.add_argument_group(f"[{section}] {str(kind.__doc__).rstrip('.')}")
        for field in fields(kind):
            name = f"{section}.{field.name.rstrip('_')}"
            options = [f"--{name}", *([ALIASES[name]] if name in ALIASES else [])]
            one = types_of(kind)[field.name]
            default = {} if field.default is MISSING else field.default
            group.add_argument(
                *options,
                type=_OWN.get(one, one),
                default=default,
                help=field.metadata["meaning"],
            )
    return made


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Setting -> value, "job" and "print_config" beside them, as far as ``words`` say. Raises ConfigError."""
    try:
        found = parser().parse_args(list(words), defaults=False)
    except (argparse.ArgumentError, TypeError) as error:
        raise ConfigError(_told(str(error))) from error
    return _flat(found.as_dict())


def parse_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by setting, each as its type. Raises ConfigError; a string is never read as something else."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    try:
        found = _flat(parser().parse_object(nested, defaults=False).as_dict())
    except (argparse.ArgumentError, TypeError) as error:
        raise ConfigError(_told(str(error))) from error
    for name, value in values.items():
        if isinstance(value, str) and not isinstance(found[name], str):
            if str not in get_args(_type_of(name)):
                raise ConfigError(_wrong(name, f'"{value}"'))
            found[name] = value
    return found


def find(name: str) -> tuple[str, str, list[str]]:
    """(section, setting, inner names) of "section.setting.inner"; raises ConfigError that names what there is."""
    section, *rest = name.split(".")
    if section not in SECTIONS:
        raise ConfigError(no_section(section))
    known = public_names(SECTIONS[section])
    setting = rest[0] if rest else ""
    is_table = setting in known and _type_of(f"{section}.{setting}") == dict[str, Any]
    if setting not in known or (rest[1:] and not is_table):
        raise ConfigError(f"[{section}] has no setting {['.'.join(rest)]}; it has {sorted(known)}")
    return section, setting, rest[1:]


def no_section(name: str) -> str:
    """What to say of a section that there is not, and where the setting of that name is."""
    homes = [f"{section}.{name}" for section, kind in SECTIONS.items() if name in public_names(kind)]
    hint = f"; did you mean {' or '.join(homes)}?" if homes else ""
    return f"there is no section [{name}]; there are {sorted(SECTIONS)}{hint}"


@cache
def types_of(section: type) -> dict[str, Any]:
    """Field -> its type, resolved."""
    return typing.get_type_hints(section)


def _type_of(name: str) -> Any:
    section, _, key = name.partition(".")
    return types_of(SECTIONS[section])[public_names(SECTIONS[section])[key]]


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, value in found.items():
        if section in SECTIONS:
            values.update({f"{section}.{key}": inner for key, inner in value.items()})
        else:
            values[section] = value
    return values


def _told(message: str) -> str:
    """A message of jsonargparse's as one line that names the setting as a job file does."""
    first, _, rest = message.partition(":")
    if first.startswith('Parser key "'):
        name = first.split('"')[1]
        for mark in ("Given value: ", "Got value: "):
            if mark in rest:
                return _wrong(".".join(name.split(".")[:2]), rest.partition(mark)[2])
    if message.endswith("expected one argument"):
        return f"{first.split()[1].partition('/')[0]} needs a value"
    if first == "unrecognized arguments":
        word = rest.split()[0]
        if word.startswith("-"):
            return f"there is no option {word}; settings are given as --section.key value, see --help"
        return f"two job files are named, one of them {word}"
    return " ".join(message.split())


def _wrong(name: str, shown: Any) -> str:
    section, _, key = name.partition(".")
    shown, kind = '""' if shown == "" else shown, spell(_type_of(name))
    return f"[{section}] {key} is {shown}: it must be {'one of' if '|' in kind else 'a'} {kind}"


def spell(kind: Any) -> str:
    """A type as people read it in errors."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(spell(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "list of tables" if get_args(kind)[0] is not str else "list of strings"
    if get_origin(kind) is dict:
        return "table"
    return {int: "whole number", float: "number", bool: "true|false", str: "string"}[kind]
