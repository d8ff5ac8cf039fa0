"""Following runs from their files alone, while they train and afterwards: ``ddl watch RUN`` in a terminal.

ddl/dashboard serves the same views as a page. Nothing here needs MPI or writes to a run folder."""

from ddl.watch.run import RunView, find_runs

__all__ = ["RunView", "find_runs"]
