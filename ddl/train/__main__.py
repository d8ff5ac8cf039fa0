"""The command ``python -m ddl.train [job.toml] [--section.key value ...]``: arguments in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl import early_signals
from ddl.output import protect_output


def main(argv: Sequence[str] | None = None) -> int:
    from ddl.config import load_or_exit
    from ddl.fault import startup

    job = load_or_exit(sys.argv[1:] if argv is None else list(argv))
    # Before NumPy and MPI are imported, which can take long on a cold file system: the other ranks see that it does.
    startup.announce(job.fault.startup_timeout_s, job.run.dir)
    from ddl.run.runner import run

    return run(job)


if __name__ == "__main__":
    protect_output()
    early_signals.install()
    raise SystemExit(main())
