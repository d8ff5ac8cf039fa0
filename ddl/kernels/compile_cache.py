"""The folder in which Numba caches compiled kernels: its own choice, or one in TMPDIR if it finds none."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

notes: list[str] = []  # one line for the user where the cache is not in its usual place


def prepare(numba: Any) -> bool:
    """Give Numba a cache folder if it would find none; False if no folder can be written.

    Numba looks beside the source file and in the user's cache folder, and raises an error when the package is
    read-only and there is no writable HOME, as in containers that run under an unknown uid."""
    usual = [Path(__file__).parent / "__pycache__"]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~")
    if os.path.isabs(home):  # of a user whom the system does not know it is "~"
        usual.append(Path(home))
    if numba.config.CACHE_DIR or any(map(_is_writable, usual)):
        return True
    try:
        folder = _private_folder()
    except OSError:
        notes.append("kernels are not compiled: Numba can write its cache neither beside the package nor in TMPDIR")
        return False
    numba.config.CACHE_DIR = str(folder)
    notes.append(f"compiled kernels are kept in {folder}: package and HOME are not writable (NUMBA_CACHE_DIR)")
    return True


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _private_folder() -> Path:
    """A folder in TMPDIR that only this user can write: Numba executes what it finds there. Raises OSError."""
    folder = Path(tempfile.gettempdir()) / f"ddl-numba-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    is_ours = status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    return folder if is_ours and _is_writable(folder) else Path(tempfile.mkdtemp(prefix="ddl-numba-"))
