"""``python -m ddl.watch RUN``: follow a run in the terminal, from its files alone."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddl.environment import refuse
from ddl.errors import EX_USAGE, ConfigError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.watch.run import RunView, find_runs
from ddl.watch.terminal import news, screen

HIDE, SHOW, HOME, REST, LINE = "\033[?25l", "\033[?25h", "\033[H", "\033[J", "\033[K"


def main(argv: Sequence[str] | None = None) -> int:
    """Show the run until it has ended; status 0, or 2 if there is no run."""
    parser = Parser("ddl.watch", "Follows a run in the terminal: epochs, ranks and shards, failures, time left.")
    parser.add_argument("run", type=Path, help="the run's folder, as in runs/NAME, or a folder with its runs")
    parser.add_argument("--once", action="store_true", help="print what is known and end")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks")
    options = parser.parse_args(argv)
    try:
        if not math.isfinite(options.every):
            raise ConfigError(f"--every is {options.every}: it must be a finite number")
        run = RunView(newest_run(options.run))
    except ConfigError as error:
        refuse("ddl.watch", error)
        return EX_USAGE
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    run.refresh()
    if options.once:
        columns = shutil.get_terminal_size().columns if is_terminal else 100
        print("\n".join(screen(run, columns, is_terminal)), flush=True)
        return 0
    with suppress(KeyboardInterrupt):  # the run continues without a spectator
        (redraw if is_terminal else follow)(run, max(options.every, 0.1))
    return 0


def newest_run(folder: Path) -> Path:
    """``folder`` itself if it holds a run, or the run below it that was written last. Raises ConfigError."""
    runs = find_runs(folder)
    if not runs:
        what = "there is no such folder" if not folder.is_dir() else "it holds no run (metrics.jsonl)"
        raise ConfigError(f"{str(folder)!r}: {what}")
    return max(runs.values(), key=lambda path: max((file.stat().st_mtime for file in path.glob("*.json*")), default=0))


def redraw(run: RunView, every_s: float) -> None:
    """Rewrite the screen in place; what it shows last stays."""
    print(HIDE + HOME + REST, end="")
    try:
        while True:
            run.refresh()
            columns, rows = shutil.get_terminal_size()
            lines = screen(run, columns, True)[: rows - 1]
            print(HOME + "".join(f"{line}{LINE}\n" for line in lines) + REST, end="", flush=True)
            if run.has_ended:
                return
            time.sleep(every_s)
    finally:
        print(SHOW, end="", flush=True)


def follow(run: RunView, every_s: float) -> None:
    """Print what is known now, then a line for each thing that is new."""
    print("\n".join(screen(run, 100)), flush=True)
    seen: dict[str, int] = {}
    list(news(run, seen))
    while not run.has_ended:
        time.sleep(every_s)
        run.refresh()
        for line in news(run, seen):
            print(line, flush=True)


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
