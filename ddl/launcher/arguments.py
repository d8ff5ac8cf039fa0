"""Arguments of a command: only one rank prints help, and an error is one line and status 2.

ddl/config parses the settings of a job."""

from __future__ import annotations

import argparse
import difflib
import re
from itertools import chain
from typing import IO, NoReturn

from ddl.environment import launched_rank, refuse
from ddl.errors import EX_USAGE
from ddl.wording import closest, listed


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
        refuse(self.program, f"{self._with_suggestion(message)}; see --help")
        raise SystemExit(EX_USAGE)

    def option_for(self, word: str, likeness: float = 0.65) -> str | None:
        """The option that an unknown ``word`` most likely means."""
        shown = [action.option_strings for action in self._actions if action.help != argparse.SUPPRESS]
        return next(iter(difflib.get_close_matches(word.partition("=")[0], list(chain(*shown)), 1, likeness)), None)

    def _with_suggestion(self, message: str) -> str:
        if unknown := re.search(r"unrecognized arguments:.*?(--[^\s=]+)", message):
            option = self.option_for(unknown[1])
            return f"{message}; did you mean {option}?" if option else message
        if choice := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            name, word, text = choice.groups()
            known = [one.strip("' ") for one in text.split(",")]
            match = closest(word, known)
            return f"{name} is {word}: choose {listed(known)}" + (f"; did you mean {match!r}?" if match else "")
        return message


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=118)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default in (None, "", argparse.SUPPRESS) or action.default is False
        return text if has_none else f"{text} (default: %(default)s)"
