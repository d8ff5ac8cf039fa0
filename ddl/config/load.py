"""From ``[job.toml] [--section.key value ...]`` to a checked Job, in a few milliseconds and without MPI.

What the settings are is sections.py's; what may not go together is check.py's. The command line wins over
the file, the file over the defaults.

Paths: what a job reads (data, model.from, comm.tuning, checkpoint.resume) is relative to the job file where
the file says it, and to the current folder where the command line says it; it is kept as an absolute path.
What a job writes (run.dir, metrics.trace) is relative to the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddl.config.check import check
from ddl.config.convert import convert, literal, tomllib, types_of
from ddl.config.launched import complain, launched_rank
from ddl.config.manual import manual
from ddl.config.sections import SECTIONS, Job, public_names
from ddl.errors import ConfigError

INPUT_PATHS = ("data.path", "data.targets", "data.validation", "data.test", "model.from", "comm.tuning")
ALIASES = {"trace": "metrics.trace", "chaos": "fault.chaos"}


def load(argv: Sequence[str]) -> Job:
    """The job that a command line describes, checked. Raises ConfigError, in one line, and reads no data.

    argv: without the program's name. ``--help`` and ``--print_config`` are load_or_exit's."""
    path, words = _split(argv)
    values: dict[str, Any] = {}
    if path is not None:
        values.update(_from_file(Path(path)))
    for name, text in words:
        _set_word(values, name, text)
    return check(with_settings(Job(), values, checked=False))


def load_or_exit(argv: Sequence[str], program: str = "ddl.train") -> Job:
    """``load`` for a door: a mistake is one line from rank 0 and status 2 on every rank.

    ``--help`` prints the manual, ``--print_config`` the resolved settings; both end with status 0."""
    if any(word in ("-h", "--help") for word in argv):
        _say(manual(program))
        raise SystemExit(0)
    show = "--print_config" in argv
    try:
        job = load([word for word in argv if word != "--print_config"])
    except ConfigError as error:
        complain(program, error)
        raise SystemExit(error.exit_status) from None
    if show:
        _say(to_toml(job))
        raise SystemExit(0)
    return job


def with_settings(job: Job, settings: Mapping[str, Any], checked: bool = True) -> Job:
    """``job`` with some settings changed, named "section.key". Raises ConfigError."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, field = _find(name)
        kind = types_of(SECTIONS[section])[field]
        section_name, _, key = name.partition(".")
        changes.setdefault(section, {})[field] = convert(value, kind, f"[{section_name}] {key}")
    sections = {name: replace(getattr(job, name), **change) for name, change in changes.items()}
    job = replace(job, **sections)
    return check(job) if checked else job


def to_toml(job: Job) -> str:
    """Every setting of ``job``; reading it back gives an equal job."""
    import tomli_w

    values = {}
    for name, section in SECTIONS.items():
        plain = asdict(getattr(job, name))
        values[name] = {key: _plain(plain[field]) for key, field in public_names(section).items()}
    return tomli_w.dumps(values)


def write(job: Job, path: str | Path) -> None:
    """Write config.toml; whole or not at all."""
    aside = Path(f"{path}.tmp")
    aside.write_text(to_toml(job), encoding="utf-8")
    os.replace(aside, path)


def read(path: str | Path) -> Job:
    """The job that ``write`` wrote; not checked again, since the files it was started with may have moved."""
    return with_settings(Job(), _from_file(Path(path)), checked=False)


def _say(text: str) -> None:
    if launched_rank() == 0:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _split(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The job file, if any, and the (name, text) pairs of a command line."""
    path: str | None = None
    words: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            name = ALIASES.get(name, name)
            _find(name)
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"--{name} needs a value")
                text = rest.pop(0)
            words.append((name, text))
        elif word.startswith("-") and word != "-":
            raise ConfigError(f"there is no option {word}; settings are given as --section.key value, see --help")
        elif path is not None:
            raise ConfigError(f"two job files are named: {path} and {word}")
        else:
            path = word
    return path, words


def _find(name: str) -> tuple[str, str]:
    """(section, field) of "section.key" or "section.key.inner"; raises ConfigError where there is none."""
    section, _, key = name.partition(".")
    if section not in SECTIONS:
        raise ConfigError(f"there is no section [{section}]; there are {sorted(SECTIONS)}")
    known = public_names(SECTIONS[section])
    outer = key.partition(".")[0]
    inner_allowed = outer == key or types_of(SECTIONS[section]).get(known.get(outer, ""), None) == dict[str, Any]
    if outer not in known or not inner_allowed:
        raise ConfigError(f"[{section}] has no setting {[key]}; it has {sorted(known)}")
    return section, known[outer]


def _set_word(values: dict[str, Any], name: str, text: str) -> None:
    section, field = _find(name)
    outer, inner = name.split(".")[:2], name.split(".")[2:]
    key = ".".join(outer)
    if inner:  # --model.options.hidden "[64, 64]"
        table = dict(values.get(key, {}))
        spot = table
        for part in inner[:-1]:
            spot[part] = dict(spot.get(part, {}))
            spot = spot[part]
        spot[inner[-1]] = literal(text)
        values[key] = table
        return
    value = convert(text, types_of(SECTIONS[section])[field], f"[{outer[0]}] {outer[1]}", from_text=True)
    values[key] = _located(key, value, Path.cwd())


def _from_file(path: Path) -> dict[str, Any]:
    """The settings of a job file as "section.key" -> value. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no job file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"job file {path} cannot be read: {error}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"job file {path} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: there is no section [{section}]; there are {sorted(SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} is a section: write [{section}] and its settings below")
        known = public_names(SECTIONS[section])
        if unknown := sorted(set(table) - set(known)):
            raise ConfigError(f"{path}: [{section}] has no setting {unknown}; it has {sorted(known)}")
        for key, value in table.items():
            name = f"{section}.{key}"
            values[name] = _located(name, value, path.resolve().parent)
    return values


def _located(name: str, value: Any, folder: Path) -> Any:
    """``value`` as an absolute path where the setting is a file to read; otherwise as it is."""
    is_file = name in INPUT_PATHS or (name == "checkpoint.resume" and value not in ("auto", "none"))
    if not is_file or not isinstance(value, str) or not value:
        return value
    path = folder / Path(value).expanduser()
    if name == "data.targets" and not path.exists():
        return value  # columns of the samples' own file
    return str(path)
