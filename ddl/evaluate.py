"""``python -m ddl.evaluate RUN``: loss and metrics of a trained run, alone or under mpirun.

The evaluation itself is in train/evaluate.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ddl.environment import complain, refuse
from ddl.errors import ConfigError, DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.wording import counted

if TYPE_CHECKING:
    from ddl.data import Source
    from ddl.run.trained import Trained


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("ddl.evaluate", "Loss and metrics of a trained run, exact, alone or under mpirun on all its ranks.")
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="which samples")
    parser.add_argument("--input", help="a file of other samples with their targets, in any format that training reads")
    parser.add_argument("--targets", default="", help="file or columns of the targets of --input, as in data.targets")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a checkpoint's folder")
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from ddl.comm import mpi
    from ddl.fault import startup
    from ddl.run.trained import Trained, local_rank, together

    try:
        with startup.meeting():
            group = mpi.start()
    except DdlError as error:
        refuse("ddl.evaluate", error)
        return error.exit_status
    say, trust = partial(complain, "ddl.evaluate"), arguments.trust
    try:
        trained = together(group, lambda: Trained(arguments.run, arguments.checkpoint, local_rank(group), say, trust))
        source = together(group, lambda: _samples(trained, arguments))
        found = trained.evaluate(source, group)
    except DdlError as error:
        complain("ddl.evaluate", error)
        mpi.finish(group, error.exit_status)
        return error.exit_status
    if group.is_leader:
        from ddl.metrics.console import figures
        from ddl.metrics.jsonl import plain

        what = arguments.input or arguments.split
        step = trained.state.progress.step
        if arguments.json:
            print(json.dumps(plain({"split": what, "step": step, **found})), flush=True)
        else:
            print(f"{what} at step {step}, {counted(found['samples'], 'sample')}: {figures(found)}", flush=True)
    mpi.finish(group, 0)
    return 0


def _samples(trained: Trained, arguments: argparse.Namespace) -> Source:
    if arguments.input:
        return trained.open_inputs(arguments.input, labelled=True, targets=arguments.targets)
    if arguments.targets:
        raise ConfigError("--targets belongs to --input FILE")
    return trained.split(arguments.split)


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
