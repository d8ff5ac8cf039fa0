"""Every exception that ddl raises on purpose, in one tree.

DdlError                      exit status 1
├── UserError                 2   invalid input by the user: settings, files, shapes
│   ├── ConfigError               a setting is unknown, mistyped or impossible
│   └── DataError                 a file is missing, truncated, mislabelled or does not match
├── PeerLost                  1   a rank died or stopped responding; only ddl/fault catches it
├── CommError                 1   communication failed without a death
├── DifferentCalls            1   a ValueError as well: ranks of a script call different things
├── JobEnded                  n   another rank has ended the job, with status n
├── Stop                      75  the job ended early and can be restarted
│   ├── QuorumLost                this side of a partition may not continue
│   └── LeaseLost                 a newer generation has taken over the run folder
├── CheckpointError           1   no checkpoint could be written or read
├── Diverged                  1   replicas differ, or too many steps in a row were not finite
└── UserCodeError             1   the user's model, loss, data source or callback raised

``exit_status`` is what the process ends with when the error reaches the top.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

EX_USAGE = 2
EX_TEMPFAIL = 75


class DdlError(Exception):
    """The root; ``exit_status`` is the exit status of a process that ends with it."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between ranks as text: the class of this module, the message and the plain attributes.

        A user's subclass may have a constructor, or attributes, that pickle could not restore on another rank."""
        kind = next(base for base in type(self).__mro__ if base.__module__ == __name__)
        plain = {key: value for key, value in self.__dict__.items() if isinstance(value, _PLAIN)}
        return _received, (kind, str(self), {"exit_status": self.exit_status, **plain})


_PLAIN = (str, int, float, list, Path, type(None))


def _received(kind: type[DdlError], message: str, attributes: dict[str, Any]) -> DdlError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class UserError(DdlError):
    """An error in the user's input; the message is one line."""

    exit_status = EX_USAGE


class ConfigError(UserError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class DataError(UserError):
    """A data file is missing, truncated, mislabelled or does not match another.

    ``offset`` is the byte (binary formats) or the line (text formats) where reading failed."""

    def __init__(self, message: str, path: str | Path | None = None, offset: int | None = None, unit: str = "byte"):
        self.path, self.offset = path, offset
        where = "" if path is None else f"{path}" + ("" if offset is None else f", {unit} {offset}") + ": "
        super().__init__(where + message)


class PeerLost(DdlError):
    """A rank died or stopped responding. Parameters still hold the last committed step.

    ``ranks`` may be empty: a network error does not say which rank is lost."""

    def __init__(self, ranks: Iterable[int], generation: int, doing: str):
        self.ranks, self.generation, self.doing = sorted(ranks), generation, doing
        named = (
            f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}" if self.ranks else "an unknown rank"
        )
        super().__init__(f"lost {named} of generation {generation} during {doing}")


class CommError(DdlError):
    """Communication failed although no rank is known to have died."""


class DifferentCalls(DdlError, ValueError):
    """Ranks of a script call different things; raised by all ranks that still call something."""


class JobEnded(DdlError):
    """Another rank has ended the whole job; every rank ends with its status."""

    def __init__(self, exit_status: int):
        self.exit_status = exit_status
        super().__init__(f"another rank has ended the job with status {exit_status}")


class Stop(DdlError):
    """The job ends early; starting it again resumes from its last checkpoint."""

    exit_status = EX_TEMPFAIL


class QuorumLost(Stop):
    """This side of a partition can reach too few ranks of the last generation to continue."""


class LeaseLost(Stop):
    """A newer generation or launch holds the run folder; this process must not write there any more."""


class CheckpointError(DdlError):
    """A checkpoint could not be written or read; earlier ones are untouched."""


class Diverged(DdlError):
    """Replicas differ without a majority, or too many steps in a row were not finite."""


class UserCodeError(DdlError):
    """The user's code raised; carries its traceback as text."""

    def __init__(self, message: str, traceback: str = ""):
        self.traceback = traceback
        super().__init__(message)
