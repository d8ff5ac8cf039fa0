"""From ``[job.toml] [--section.key value ...]`` to a checked Job, without MPI and without NumPy.

What the settings are is sections.py's; reading a word is parser.py's; what may not go together is check.py's.
The command line wins over the file, the file over the defaults.

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
from ddl.config.parser import ALIASES, find, literal, no_section, parse_values, parse_words, parser, tomllib
from ddl.config.sections import SECTIONS, Job, public_names
from ddl.environment import launched_rank, refuse
from ddl.errors import ConfigError

_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")  # word processors make them of --
INPUT_PATHS = ("data.path", "data.targets", "data.validation", "data.test", "model.from", "comm.tuning")


def load(argv: Sequence[str], ranks: int | None = None) -> Job:
    """The job that a command line describes, checked. Raises ConfigError, in one line, and reads no data.

    argv: without the program's name. ranks: as ``check`` takes them. ``--help`` and ``--print_config`` are
    load_or_exit's."""
    words, tables = _tables(argv)
    given = parse_words(words)
    path = given.pop("job", None)
    job = Job() if path is None else _changed(Job(), _from_file(Path(path)))
    job = _changed(job, {name: _located(name, value, Path.cwd()) for name, value in given.items()})
    for (section, setting), inner in tables.items():
        old = getattr(getattr(job, section), setting)
        job = _changed(job, {f"{section}.{setting}": _merged(old, inner)})
    return check(job, ranks)


def load_or_exit(argv: Sequence[str], program: str = "ddl.train") -> Job:
    """``load`` for a door: a mistake is one line from rank 0 and status 2 on every rank.

    ``--help`` explains every setting, ``--print_config`` shows the resolved ones; both end with status 0."""
    if any(word in ("-h", "--help") for word in argv):
        _say(parser(program).format_help())
        raise SystemExit(0)
    show = "--print_config" in argv
    try:
        job = load([word for word in argv if word != "--print_config"])
    except ConfigError as error:
        refuse(program, error)
        raise SystemExit(error.exit_status) from None
    if show:
        _say(to_toml(job))
        raise SystemExit(0)
    return job


def override(job: Job, settings: Mapping[str, Any]) -> Job:
    """A copy of ``job`` with some settings changed: ``override(job, {"train.steps": 5})``. Raises ConfigError."""
    for name in settings:
        if find(name)[2]:
            raise ConfigError(f"{name} is inside a table: give the whole table")
    return check(_changed(job, parse_values(settings)))


def _changed(job: Job, values: Mapping[str, Any]) -> Job:
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, setting, _ = find(name)
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
    """Write config.toml; whole or not at all."""
    aside = Path(f"{path}.tmp")
    aside.write_text(to_toml(job), encoding="utf-8")
    os.replace(aside, path)


def read(path: str | Path) -> Job:
    """The job that ``write`` wrote; not checked again, since the files it was started with may have moved."""
    return _changed(Job(), _from_file(Path(path)))


def _say(text: str) -> None:
    if launched_rank() == 0:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _tables(argv: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], dict[str, Any]]]:
    """The words for the parser, and apart from them those inside tables: --model.options.hidden "[64, 64]".

    Raises ConfigError for a setting that there is not."""
    words: list[str] = []
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option, equals, text = word.partition("=")
        if word.startswith(_DASHES):
            plain = option.lstrip("".join(("-", *_DASHES)))
            raise ConfigError(f"{word} begins with a dash of typography: write --{plain}")
        if not option.startswith("--") or option in ALIASES.values():
            words.append(word)
            continue
        section, setting, inner = find(option[2:])
        if not inner:
            words.append(word)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{option} needs a value")
            text = rest.pop(0)
        try:
            value = literal(text)
        except tomllib.TOMLDecodeError:
            value = text
        for key in reversed(inner):
            value = {key: value}
        table = tables.setdefault((section, setting), {})
        table.update(_merged(table, value))
    return words, tables


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with what ``new`` says, table within table."""
    both = dict(old)
    for key, value in new.items():
        inside = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if inside else value
    return both


def _from_file(path: Path) -> dict[str, Any]:
    """The settings of a job file as "section.key" -> value. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
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
            raise ConfigError(f"{path}: {no_section(section)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} is a section: write [{section}] and its settings below")
        known = public_names(SECTIONS[section])
        if unknown := sorted(set(table) - set(known)):
            raise ConfigError(f"{path}: [{section}] has no setting {unknown}; it has {sorted(known)}")
        for key, value in table.items():
            name = f"{section}.{key}"
            values[name] = _located(name, value, path.resolve().parent)
    return parse_values(values)


def _located(name: str, value: Any, folder: Path) -> Any:
    """``value`` as an absolute path where the setting is a file to read; otherwise as it is."""
    is_file = name in INPUT_PATHS or (name == "checkpoint.resume" and value not in ("auto", "none"))
    if not is_file or not isinstance(value, str) or not value:
        return value
    path = folder / Path(value).expanduser()
    if name == "data.targets" and not path.exists():
        return value  # columns of the samples' own file
    return str(path)
