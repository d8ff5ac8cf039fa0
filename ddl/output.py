"""Printing that cannot fail: a closed, broken or non-UTF-8 stdout never ends a job and never prints a traceback."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class SafeStream:
    """A text stream whose ``write`` and ``flush`` never raise; all else is the wrapped stream's.

    Characters that its encoding lacks are escaped. Once the reader has gone, or the device has failed, output is
    discarded. stream: None if the process was started with this stream closed."""

    def __init__(self, stream: TextIO | None):
        self._stream: Any = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115 - lives on

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        """Point the file descriptor at /dev/null: else the interpreter would fail to flush the stream when it exits."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_past_launcher(line: str) -> None:
    """Print to the stderr of the process that started this one: an mpirun that was interrupted no longer passes on what
    its ranks print."""
    with suppress(OSError):
        stream = os.open(f"/proc/{os.getppid()}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            os.write(stream, f"{line}\n".encode())
        finally:
            os.close(stream)


def protect_output() -> None:
    """Make the stdout and stderr of this program safe to print to. Commands call it first; a library never does."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))
