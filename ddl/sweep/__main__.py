"""``python -m ddl.sweep sweep.toml``: train one job with many settings, side by side, and rank the results.

sweep.py runs the trials; this module reads the file and prints."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddl.config.load import INPUT_PATHS
from ddl.config.values import tomllib
from ddl.environment import complain
from ddl.errors import EX_TEMPFAIL, ConfigError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.sweep.space import RANGES, flattened, words_of
from ddl.sweep.sweep import Sweep
from ddl.wording import counted, instead

OPTIONS = [one.name for one in fields(Sweep) if one.init and one.name not in ("job", "space")]


def read(path: Path, words: Sequence[str] = ()) -> Sweep:
    """The sweep of a file. words: further settings of every trial. Raises ConfigError in one line."""
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    unknown = [name for name in tables if name not in ("sweep", "job", "space")]
    if unknown:
        raise ConfigError(f'{path} has [{unknown[0]}]; its tables are [sweep], [space] and [job], or job = "FILE"')
    for name in ("sweep", "space"):
        if not isinstance(tables.get(name, {}), Mapping):
            raise ConfigError(f"{path}: {name} must be a table, [{name}]")
    options = tables.get("sweep", {})
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(f"{path}: [sweep] has no setting {name!r}; {instead(name, OPTIONS)}")
        wanted = int if type(getattr(Sweep, name)) is int else str
        if type(value) is not wanted:
            kind = "a whole number" if wanted is int else "a text"
            raise ConfigError(f"{path}: [sweep] {name} = {value!r} must be {kind}")
    space = _space(tables.get("space", {}))
    job = [*_job(tables.get("job", {}), path.parent), *words]
    return Sweep(job, space, **{"folder": f"sweeps/{path.stem}", **options})


def _space(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """ "optim.lr" -> its values, written as one key or as nested tables."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        is_nested = isinstance(value, Mapping) and not any(kind in value for kind in RANGES)
        flat |= _space(value, f"{above}{key}.") if is_nested else {above + key: value}
    return flat


def _job(job: Any, folder: Path) -> list[str]:
    """The words of the base job; paths are relative to the file that names them."""
    if isinstance(job, str):
        return [str(folder / job)]
    if not isinstance(job, Mapping):
        raise ConfigError('job must be a table of settings, or the name of a job file: job = "FILE"')
    settings = flattened(job)
    for name in INPUT_PATHS:
        value = settings.get(name)
        if isinstance(value, str) and value and (name != "data.targets" or (folder / value).exists()):
            settings[name] = str(folder / Path(value).expanduser())
    return words_of(settings)


@contextmanager
def _ended_by_signals(sweep: Sweep) -> Iterator[None]:
    """Signals that end programs end the trials of ``sweep`` first; HUP stays ignored where it was (nohup)."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: sweep.end()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "ddl.sweep",
        "Trains one job with many settings, side by side on disjoint cores. A sweep that was ended or killed continues "
        "when it is started again.",
        usage="python -m ddl.sweep sweep.toml [--section.key value ...]",
        epilog="Settings after the file apply to every trial. Exit status: 0 all trials are done; 1 some failed; "
        "2 invalid input; 75 ended early.",
    )
    parser.add_argument("file", help="tables [sweep], [space] and [job], see docs/sweeps.md")
    arguments, words = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        sweep = read(Path(arguments.file), words)
        with _ended_by_signals(sweep):
            results = sweep.run(lambda line: print(line, flush=True))
    except ConfigError as error:
        complain("ddl.sweep", error)
        return error.exit_status
    print("\n".join(["", *sweep.table(), ""]))
    open_ = [one for one in results if one.status in ("waiting", "running")]
    if open_:
        print(f"{counted(len(open_), 'trial')} not done: the same command continues the sweep", flush=True)
        return EX_TEMPFAIL
    best = "" if sweep.best is None else f"; best: {Path(sweep.folder) / 'best'} (trial {sweep.best.number})"
    print(f"{Path(sweep.folder) / 'sweep.csv'}{best}", flush=True)
    return 1 if any(one.status == "failed" for one in results) else 0


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
