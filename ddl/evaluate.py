"""The door ``python -m ddl.evaluate RUN``: loss and metrics of a trained run, alone or under mpirun.

What evaluation is, is train/evaluate.py's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

from ddl.arguments import Parser
from ddl.errors import DdlError
from ddl.launched import complain


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("ddl.evaluate", "Loss and metrics of a trained run, exact, alone or under mpirun on all its ranks.")
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="which samples")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a checkpoint's folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from ddl.comm import mpi
    from ddl.train.trained import Trained, together

    try:
        group = mpi.start()
    except DdlError as error:
        complain("ddl.evaluate", error)
        return error.exit_status
    try:
        say = partial(complain, "ddl.evaluate")
        trained = together(group, lambda: Trained(arguments.run, arguments.checkpoint, say=say))
        found = trained.evaluate(trained.split(arguments.split), group)
    except DdlError as error:
        complain("ddl.evaluate", error)
        mpi.finish(group, error.exit_status)
        return error.exit_status
    if group.is_leader:
        from ddl.metrics.console import figures
        from ddl.metrics.jsonl import plain

        step = trained.state.progress.step
        if arguments.json:
            print(json.dumps(plain({"split": arguments.split, "step": step, **found})), flush=True)
        else:
            print(f"{arguments.split} at step {step}, {found['samples']} samples: {figures(found)}", flush=True)
    mpi.finish(group, 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
