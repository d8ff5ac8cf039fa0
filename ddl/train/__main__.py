"""The door ``python -m ddl.train [job.toml] [--section.key value ...]``: arguments in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl.output import protect_output


def main(argv: Sequence[str] | None = None) -> int:
    from ddl.config import load_or_exit

    job = load_or_exit(sys.argv[1:] if argv is None else list(argv))
    from ddl.run.runner import run

    return run(job)


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
