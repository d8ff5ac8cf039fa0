"""From ``[job.toml] [--section.key value ...]`` to a checked Job, without importing MPI or NumPy.

The command line takes precedence over the file, and the file over the defaults. Settings and their types are in
sections.py and values.py; check.py rejects invalid combinations.

Paths: input paths (data, model.from, comm.tuning, checkpoint.resume) are relative to the job file that names them,
or to the current folder when given on the command line, and are stored as absolute paths. Output paths (run.dir,
metrics.trace) are relative to the current folder. ``~`` is expanded in both."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from ddl.config.check import check, check_values
from ddl.config.sections import SECTIONS, Job, public_names
from ddl.config.trust import NAMING, is_of_another_user, refuse_code
from ddl.config.values import ALIASES, find_setting, guess, read_value, read_word, spell, tomllib, types_of
from ddl.environment import launched_rank, refuse
from ddl.errors import ConfigError
from ddl.reading import read_regular
from ddl.version import __version__
from ddl.wording import closest

_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")  # word processors turn -- into these
INPUT_PATHS = (
    "data.path",
    "data.targets",
    "data.validation",
    "data.test",
    "model.from",
    "model.teacher",
    "comm.tuning",
)
OUTPUT_PATHS = ("run.dir", "metrics.trace")
_USAGE = "usage: python -m {} [job.toml] [--section.key value ...]"
_ABOUT = """Trains a model on all ranks that mpirun started; without a job file, a small CNN on the bundled handwritten
digits. The command line takes precedence over the job file, the file over the defaults below. --print_config prints
the resolved settings as a job file."""
_HINTS = """Lists are written as a TOML array or with commas; tables as {key = value} or --model.options.key value.
Your own model, data source, loss, metric or callback is named as "package.module:Name". --trace and --chaos are short
for --metrics.trace and --fault.chaos. --trust runs code that is named in the config.toml of another user's run."""


def load(argv: Sequence[str], ranks: int | None = None) -> Job:
    """The job that a command line describes, checked. Reads no data.

    argv: without the program's name. ranks: as for ``check``. Raises ConfigError, whose message is one line.
    ``--help`` and ``--print_config`` are handled by ``load_or_exit``."""
    path, words = _split([word for word in argv if word != "--trust"])
    values = {} if path is None else _from_file(Path(path))
    if path is not None and "--trust" not in argv and is_of_another_user(Path(path)):
        refuse_code(_changed(Job(), values), NAMING, f"{path}, of another user's run,")
    for name, keys, text in words:
        if not keys:
            values[name] = _located(name, read_word(name, text), Path.cwd())
            continue
        inner = guess(text)
        for key in reversed(keys):
            inner = {key: inner}
        values[name] = _merged(values.get(name, {}), inner)
    return check(_changed(Job(), _implied(values)), ranks)


def load_or_exit(argv: Sequence[str], program: str = "ddl.train") -> Job:
    """``load`` for a command: rank 0 prints an error as one line, and every rank exits with status 2.

    ``--help`` prints every setting, ``--print_config`` the resolved job, ``--version`` the version of ddl; these exit
    with status 0."""
    text = None
    try:
        if any(word in ("-h", "--help") for word in argv):
            text = help_text(program)
        elif "--version" in argv:
            text = f"ddl {__version__}\n"
        else:
            job = load([word for word in argv if word != "--print_config"])
            text = to_toml(job) if "--print_config" in argv else None
    except ConfigError as error:
        refuse(program, error)
        raise SystemExit(error.exit_status) from None
    if text is None:
        return job
    if launched_rank() == 0:
        sys.stdout.write(text)
        sys.stdout.flush()
    raise SystemExit(0)


def help_text(program: str = "ddl.train") -> str:
    """Every setting with its meaning, type and default, no wider than the terminal."""
    width = min(shutil.get_terminal_size().columns, 118)
    lines = [_USAGE.format(program), "", fill(" ".join(_ABOUT.split()), width)]
    for section, kind in SECTIONS.items():
        lines += ["", *wrap(f"[{section}] {str(kind.__doc__).rstrip('.')}", width)]
        for field in fields(kind):
            about = f"{field.metadata['meaning']} ({spell(types_of(kind)[field.name])}; default: {_default(field)})"
            option, indent = f"  --{section}.{field.name.rstrip('_')} ", " " * 28
            text = wrap(about, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
            if len(option) < len(indent):
                text[0] = option.ljust(len(indent)) + text[0].lstrip()
            else:
                text.insert(0, option.rstrip())
            lines += text
    return "\n".join([*lines, "", fill(" ".join(_HINTS.split()), width), ""])


def _default(field: Any) -> str:
    value = None if field.default is MISSING else field.default
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) or "none" if isinstance(value, tuple) else "none" if value in (None, "") else str(value)


def override(job: Job, settings: Mapping[str, Any]) -> Job:
    """A copy of ``job`` with some settings changed: ``override(job, {"train.steps": 5})``. Raises ConfigError."""
    for name in settings:
        if find_setting(name)[2]:
            raise ConfigError(f"{name} is inside a table: give the whole table")
    return check(_changed(job, {name: read_value(name, value) for name, value in settings.items()}))


def _implied(values: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that the given ones imply: data.path means source "files", and a run is named after its data."""
    if values.get("data.path") and "data.source" not in values:
        values["data.source"] = "files"
    source = values.get("data.source", Job().data.source)
    file = re.sub(r"\.(gz|bz2|xz|zip)$", "", str(values.get("data.path", "")))
    name = Path(file).stem if source == "files" else source.rpartition(":")[2]
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return {"run.name": plain or source, **values}


def _changed(job: Job, values: Mapping[str, Any]) -> Job:
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, setting, _ = find_setting(name)
        changes.setdefault(section, {})[public_names(SECTIONS[section])[setting]] = value
    return replace(job, **{name: replace(getattr(job, name), **change) for name, change in changes.items()})


def to_toml(job: Job) -> str:
    """Every setting of ``job``; reading it back gives an equal job."""
    import tomli_w

    values = {}
    for name, section in SECTIONS.items():
        plain = asdict(getattr(job, name))
        values[name] = {key: _plain(plain[field]) for key, field in public_names(section).items()}
    return tomli_w.dumps(values)


def write(job: Job, path: str | Path) -> None:
    """Write config.toml atomically."""
    aside = Path(f"{path}.tmp")
    aside.write_text(to_toml(job), encoding="utf-8")
    os.replace(aside, path)


def read(path: str | Path) -> Job:
    """The job that ``write`` wrote. Only its values are checked again: its input files may have moved since.

    Raises ConfigError."""
    return check_values(_changed(Job(), _from_file(Path(path), read_regular)))


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _split(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, list[str], str]]]:
    """(path of the job file or None, [("section.setting", keys inside its table, text)]). Raises ConfigError."""
    path, settings = None, []
    words: Iterator[str] = iter(argv)
    for word in words:
        option, equals, text = word.partition("=")
        if word.startswith(_DASHES):
            plain = option.lstrip("".join(("-", *_DASHES)))
            raise ConfigError(f"{word} begins with a typographic dash: write --{plain}")
        if not word.startswith("--"):
            if word.startswith("-"):
                raise ConfigError(f"there is no option {word}; settings are given as --section.key value, see --help")
            if path is not None:
                raise ConfigError(f"two job files are named, {path} and {word}")
            path = word
            continue
        section, setting, keys = find_setting(ALIASES.get(option[2:], option[2:]))
        if not equals:
            text = next(words, "--")  # a value may begin with one dash: -1e-3
            if text.startswith("--"):
                raise ConfigError(f"{option} needs a value")
        settings.append((f"{section}.{setting}", keys, text))
    return path, settings


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` updated by ``new``, recursively in tables."""
    both = dict(old)
    for key, value in new.items():
        inside = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if inside else value
    return both


def _from_file(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> dict[str, Any]:
    """The settings of a job file as "section.key" -> value. Raises ConfigError."""
    try:
        text = read(path).decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError as error:
        beside = [one.name for one in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = closest(path.name, beside)
        raise ConfigError(f"there is no job file {path}" + (f"; did you mean {hint!r}?" if hint else "")) from error
    except OSError as error:
        raise ConfigError(f"job file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"job file {path} cannot be read: {error}") from error
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"job file {path} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for section, table in tables.items():
        try:
            if section in SECTIONS and not isinstance(table, dict):
                raise ConfigError(f"{section} is a section: write [{section}] and its settings below")
            for key, value in table.items() if isinstance(table, dict) else [("", table)]:
                name = f"{section}.{key}"
                find_setting(name)
                values[name] = _located(name, read_value(name, value), path.resolve().parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return values


def _located(name: str, value: Any, folder: Path) -> Any:
    """The absolute path of an input file, an output path with ``~`` expanded, or any other ``value`` as it is."""
    is_input = name in INPUT_PATHS or (name == "checkpoint.resume" and value not in ("auto", "none"))
    if not isinstance(value, str) or not value or not (is_input or name in OUTPUT_PATHS):
        return value
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name} = {value!r}: {error}") from error
    if not is_input:
        return str(path) if value.startswith("~") else value
    path = folder / path
    if name == "data.targets" and not path.exists():
        return value  # names of columns in the samples' own file
    return str(path)
