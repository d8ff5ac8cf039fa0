"""``python -m ddl.evaluate RUN``: loss, metrics and confusion matrix of a trained run, alone or under mpirun.

The evaluation itself is in train/evaluate.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ddl.environment import complain, refuse
from ddl.errors import ConfigError, DdlError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.wording import counted

if TYPE_CHECKING:
    from ddl.comm import Group
    from ddl.data import Source
    from ddl.run.predictions import Predictions
    from ddl.run.trained import Trained


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "ddl.evaluate",
        "Loss, metrics and confusion matrix of a trained run, exact, alone or under mpirun on all its ranks.",
    )
    parser.add_argument("run", help="the run's folder, as in runs/NAME")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="which samples")
    parser.add_argument("--input", help="a file of other samples with their targets, in any format that training reads")
    parser.add_argument("--targets", default="", help="file or columns of the targets of --input, as in data.targets")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="also the N samples with the largest loss")
    parser.add_argument(
        "--checkpoint",
        default="final",
        help="final (which training evaluated at its end), newest, best, or a checkpoint's folder",
    )
    parser.add_argument("--trust", action="store_true", help="run the code that the run names (package.module:Name)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.worst < 0:
        parser.error(f"--worst is {arguments.worst}, the fewest is 0")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    from ddl.comm import mpi
    from ddl.fault import startup

    try:
        with startup.meeting():
            group = mpi.start()
    except DdlError as error:
        refuse("ddl.evaluate", error)
        return error.exit_status
    status = 0
    try:
        _evaluate(arguments, group)
    except DdlError as error:
        complain("ddl.evaluate", error)
        status = error.exit_status
    mpi.finish(group, status)
    return status


def _evaluate(arguments: argparse.Namespace, group: Group) -> None:
    from ddl.run.trained import Trained, local_rank, together

    say, trust = partial(complain, "ddl.evaluate"), arguments.trust
    trained = together(group, lambda: Trained.open(arguments.run, arguments.checkpoint, local_rank(group), say, trust))
    source = together(group, lambda: _samples(trained, arguments))
    if source.left_out and group.is_leader:
        say(source.left_out)
    found = trained.evaluate(source, group)
    worst = trained.worst(source, group, arguments.worst) if arguments.worst else None
    if group.is_leader:
        show = _as_json if arguments.json else _as_text
        print(show(arguments.input or arguments.split, trained, found, worst), flush=True)


def _samples(trained: Trained, arguments: argparse.Namespace) -> Source:
    if arguments.input:
        return trained.open_inputs(arguments.input, labelled=True, targets=arguments.targets)
    if arguments.targets:
        raise ConfigError("--targets belongs to --input FILE")
    return trained.split(arguments.split)


def _as_json(what: str, trained: Trained, found: Mapping[str, Any], worst: Predictions | None) -> str:
    from ddl.metrics.jsonl import plain

    values = {"split": what, "step": trained.state.progress.step, "checkpoint": trained.checkpoint, **found}
    if "confusion" in found:
        values["classes"] = list(trained.meaning.classes(len(found["confusion"])))
    if worst is not None:
        values["worst"] = list(worst.rows())
    return json.dumps(plain(values))


def _as_text(what: str, trained: Trained, found: Mapping[str, Any], worst: Predictions | None) -> str:
    from ddl.metrics.console import figures
    from ddl.run.tables import confusion, table

    parts = [f"{what} ({trained.checkpoint}), {counted(found['samples'], 'sample')}: {figures(found)}"]
    if "confusion" in found and trained.has_classes:
        parts.append(confusion(found["confusion"], trained.meaning.classes(len(found["confusion"]))))
    if worst is not None:
        parts.append(f"{counted(len(worst), 'sample')} with the largest loss:\n{table(worst)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    protect_output()
    raise SystemExit(main())
