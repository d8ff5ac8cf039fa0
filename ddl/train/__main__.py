"""The door ``python -m ddl.train [job.toml] [--section.key value ...]``: arguments in, exit status out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ddl.launched import ranks_on_node


def limit_blas_threads() -> None:
    """Share the cores among this node's ranks, unless the user said otherwise. Before NumPy is imported."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    if any(name in os.environ for name in names):
        return
    for name in names:
        os.environ[name] = str(max(len(os.sched_getaffinity(0)) // ranks_on_node(), 1))


def main(argv: Sequence[str] | None = None) -> int:
    from ddl.config import load_or_exit

    job = load_or_exit(sys.argv[1:] if argv is None else list(argv))
    limit_blas_threads()
    from ddl.train.run import run

    return run(job)


if __name__ == "__main__":
    raise SystemExit(main())
