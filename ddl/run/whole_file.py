"""A file that a user asked for, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ddl.errors import ConfigError


@contextmanager
def whole_file(path: Path, what: str = "") -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place when the block ends without an exception, and else is removed.

    what: begins the ConfigError that an OSError becomes."""
    aside = path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        with open(aside, "wb") as file:
            yield file
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError(f"{what}{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # it does not exist, or cannot
            aside.unlink()
