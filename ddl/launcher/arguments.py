"""Arguments of a command: only one rank prints help, and an error is one line and status 2.

ddl/config parses the settings of a job."""

from __future__ import annotations

import argparse
from typing import IO, NoReturn

from ddl.environment import launched_rank, refuse
from ddl.errors import EX_USAGE


class Parser(argparse.ArgumentParser):
    """program: such as "ddl.evaluate". Help shows the default of every option that has one."""

    def __init__(self, program: str, description: str, usage: str | None = None, epilog: str | None = None):
        super().__init__(
            f"python -m {program}",
            usage,
            description,
            epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.program = program

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        if launched_rank() == 0:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        refuse(self.program, f"{message}; see --help")
        raise SystemExit(EX_USAGE)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=118)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default in (None, "", argparse.SUPPRESS) or action.default is False
        return text if has_none else f"{text} (default: %(default)s)"
