"""``python -m ddl.launch -n 4 job.toml``: supervised training, which restarts when the job itself cannot recover.

The supervisor is in launcher/supervisor.py."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddl import early_signals
from ddl.output import protect_output

if TYPE_CHECKING:  # imported when signals are handled already
    from ddl.launcher.arguments import Parser
    from ddl.launcher.supervisor import Supervisor


# A batch script names the run folder here that its job resumes when it is queued again; settings name another.
RUN_FOLDER = "DDL_RUN_DIR"


def parser() -> Parser:
    from argparse import SUPPRESS

    from ddl.launcher.arguments import Parser

    made = Parser(
        "ddl.launch",
        usage="python -m ddl.launch [-n RANKS] [options] [job.toml] [--section.key value ...]",
        description="Trains under supervision: starts mpirun with fault tolerance, and restarts it from the newest "
        "state if it ends early. Settings are those of ddl.train (python -m ddl.train --help).",
        epilog="Exit status: 0 trained to the end; 75 ended early and can be resumed; 2 invalid input; 1 otherwise.",
    )
    ranks = os.environ.get("SLURM_NTASKS", "")
    made.add_argument(
        "-n", "-np", type=int, default=int(ranks) if ranks.isdecimal() else 4, metavar="RANKS", help="ranks to start"
    )
    made.add_argument("--restarts", type=int, default=10, help="how often to start again")
    made.add_argument("--host", default="", metavar="A[:N],B[:N]", help="hosts, and the ranks on each")
    made.add_argument("--hostfile", default="", metavar="FILE", help="the same, one host per line")
    made.add_argument(
        "--deadline",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds without a step, checkpoint or evaluation after which all is killed and started again; 0: never",
    )
    made.add_argument("--chaos", default="", metavar="SCRIPT", help="faults to inject, the same as --fault.chaos")
    made.add_argument("--verbose", action="store_true", help="show mpirun's own messages too")
    made.add_argument("--sweep", default="", help=SUPPRESS)
    return made


def from_words(argv: Sequence[str]) -> Supervisor:
    """The supervisor for a command line. Raises ConfigError for invalid arguments or settings."""
    from ddl.config import check, load
    from ddl.errors import ConfigError
    from ddl.launcher.hosts import Hosts
    from ddl.launcher.mpirun import find_mpirun, parse_hosts, read_hostfile
    from ddl.launcher.slurm import allocated_hosts, batch_job_id
    from ddl.launcher.supervisor import Supervisor

    arguments = parser()
    options, words = arguments.parse_known_args(argv)
    for word in words:
        option = arguments.option_for(word, 0.85)  # others are settings
        if option is not None:
            raise ConfigError(f"there is no option {word}; did you mean {option}?")
    if options.n < 1:
        raise ConfigError(f"-n {options.n}: at least one rank has to be started")
    if options.restarts < 0 or options.deadline < 0:
        raise ConfigError("--restarts and --deadline are at least 0")
    if options.host and options.hostfile:
        raise ConfigError("--host and --hostfile exclude each other")
    if options.chaos:
        words += ["--fault.chaos", options.chaos]
    job = load(words, ranks=options.n)
    if not job.run.dir and (folder := os.environ.get(RUN_FOLDER)):
        words += ["--run.dir", folder]
        job = load(words, ranks=options.n)
    spares, ranks = job.slurm.spare_nodes, options.n
    known = parse_hosts(options.host, ranks) if options.host else []
    if options.hostfile:
        known = read_hostfile(options.hostfile, ranks)
    in_slurm = not known and bool(batch_job_id())
    if in_slurm:
        known = allocated_hosts(ranks)
        ranks = sum(host.slots for host in known[: len(known) - spares]) if known else ranks
    if spares and in_slurm and not known:
        raise ConfigError(f"slurm.spare_nodes is {spares}, but Slurm does not say on which nodes {ranks} tasks are")
    if spares and len(known) <= spares:
        raise ConfigError(f"slurm.spare_nodes is {spares}, but the job has {len(known)} nodes")
    if ranks != options.n:
        check(job, ranks)
    hosts = Hosts(find_mpirun(), known, spares, in_slurm=in_slurm)
    return Supervisor(
        job,
        words,
        ranks,
        hosts,
        restarts=options.restarts,
        deadline_s=options.deadline,
        verbose=options.verbose,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The door: arguments in, exit status out."""
    from ddl.errors import EX_USAGE, ConfigError
    from ddl.launcher.mpirun import members, sweep
    from ddl.launcher.slurm import BatchJob, batch_job_id

    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--sweep"] and len(argv) in (2, 3):  # LAUNCH [REPLICA], on a host of a launch that is over
        own = set(members(argv[1]))
        sweep(argv[1])
        if len(argv) == 3 and Path(argv[2]).name.startswith("ddl-replica-"):
            shutil.rmtree(argv[2], ignore_errors=True)
        print("swept", len(own))
        return 0
    try:
        made = from_words(argv)
    except ConfigError as error:
        print(f"ddl.launch: {' '.join(str(error).split())}", file=sys.stderr)
        return EX_USAGE
    handlers = {signal.SIGUSR1: made.ask_to_stop, signal.SIGUSR2: made.ask_to_stop}
    handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), made.end)
    for number, handler in handlers.items():
        signal.signal(number, handler)
        if number in early_signals.received:
            handler(number)
    if not (batch := batch_job_id()):
        return made.run()
    with BatchJob(batch, made.job, [*argv, "--run.dir", str(made.folder)]) as job:
        status = made.run()
        return job.finish(status, is_taken_over=made.is_taken_over)


if __name__ == "__main__":
    protect_output()
    early_signals.install()
    raise SystemExit(main())
