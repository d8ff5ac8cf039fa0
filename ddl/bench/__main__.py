"""``python -m ddl.bench NAME``: measures, prints a table or JSON lines, and draws or saves the rows if asked to.

It starts mpirun itself. Each measurement is defined in the file that has its name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ddl.bench import report, tolerance
from ddl.bench.allreduce import SIZES, tuning_of
from ddl.bench.job import rows
from ddl.bench.models import CASES
from ddl.errors import DdlError, UserError
from ddl.launcher.arguments import Parser
from ddl.output import protect_output
from ddl.wording import instead

# name -> ranks, and the settings of MPI under which it is measured
BENCHES = {
    "allreduce": ("2,4", ("off", "on")),
    "step": ("2", ("on",)),
    "scaling": ("2", ("on",)),
    "torch-ddp": ("2", ()),
    "recovery": ("2,4", ()),
    "pipeline": ("2,3,4", ("on",)),
}
PEERS = {"allreduce": ("gloo",), "step": ("torch_ddp", "torch_ddp_fused"), "recovery": ("torchrun",)}


def parser() -> Parser:
    made = Parser(
        "ddl.bench",
        "Measures and starts mpirun itself. Ours and its peers take turns in one run; figures are medians. "
        "ratio = the peer's time / ours: above 1 ours is faster.",
        epilog="gpu: runs the tests that need a GPU and the step bench on it, and prints one table. answers: how fast "
        "ddl.load answers, here and on one process.",
    )
    made.add_argument("bench", choices=[*BENCHES, "answers", "gpu"])
    made.add_argument(
        "--ranks",
        default="",
        metavar="N[,N]",
        help="rank counts (allreduce, recovery: 2,4; pipeline: 2,3,4; otherwise: 2)",
    )
    made.add_argument("--sizes", default="", metavar="BYTES[,BYTES]", help="allreduce: 1 KiB to 256 MiB")
    made.add_argument(
        "--models", default="", metavar="NAME[,NAME]", help=f"step, scaling, torch-ddp: {', '.join(CASES)}"
    )
    made.add_argument("--seconds", type=float, default=4.0, help="for each size or candidate")
    made.add_argument("--rounds", type=int, default=7, help="recovery: deaths")
    made.add_argument("--threads", type=int, default=1, help="BLAS threads of a rank")
    made.add_argument(
        "--tolerance",
        choices=("on", "off", "both"),
        help="step: fault tolerance on or off; both: alternate between them and print what it costs",
    )
    made.add_argument(
        "--mpirun", default="", metavar="WORDS", help="what starts the ranks, such as 'mpirun --host a:2,b:2'"
    )
    made.add_argument("--against", choices=("torch",), help="measure PyTorch with Gloo as well")
    made.add_argument("--json", action="store_true", help="one object per line instead of a table")
    made.add_argument("--plot", default="", metavar="FILE", help="draw a picture of the figures")
    made.add_argument("--save-tuning", default="", metavar="FILE", help="allreduce: the table for comm.tuning")
    return made


def numbers(text: str, what: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--{what} {text}: not a list of whole numbers") from error


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All requested rows. Raises UserError for invalid options."""
    models = options.models.split(",") if options.models else list(CASES)
    unknown = sorted(set(models) - set(CASES))
    if unknown:
        raise UserError(f"--models has no {unknown[0]}; {instead(unknown[0], CASES, 'there are')}")
    default_ranks, settings = BENCHES[options.bench]
    peers = PEERS.get(options.bench, ()) if options.against else ()
    for ranks in numbers(options.ranks or default_ranks, "ranks"):
        if options.bench == "recovery":
            from ddl.bench import recovery

            yield from (row.to_json() for row in recovery.rows(ranks, peers, options.rounds, options.threads))
            continue
        if options.bench == "step" and options.tolerance == "both":
            yield from tolerance.rows(ranks, models, options.seconds, options.threads, options.mpirun)
            continue
        if options.bench == "torch-ddp":
            from ddl.bench import torch_ddp

            yield from torch_ddp.rows(ranks, models, options.seconds, options.threads, options.mpirun)
            continue
        asked = {
            "bench": options.bench,
            "sizes": numbers(options.sizes, "sizes") if options.sizes else SIZES,
            "models": models,
            "peers": list(peers),
            "seconds": options.seconds,
            "mpirun": options.mpirun,
        }
        wanted = {"both": ("off", "on"), None: settings}.get(options.tolerance, (options.tolerance,))
        for setting in wanted:
            yield from rows(asked, ranks, setting, options.threads)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.bench == "gpu":
        from ddl.bench.gpu import main as on_gpu

        return on_gpu(options.seconds)
    if options.bench == "answers":
        from ddl.bench.answers import main as of_answers

        return of_answers(options.seconds)
    found = []
    try:
        if not options.json:
            print(report.line(report.HEAD), flush=True)
        for row in measured(options):
            print(json.dumps(row) if options.json else report.row_text(row), flush=True)
            found.append(row)
        if options.plot:
            report.plot(found, options.plot)
        if options.save_tuning:
            tuning_of(found).save(options.save_tuning)
    except DdlError as error:
        print(f"ddl.bench: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    protect_output()
    sys.exit(main())
