"""One rank of a bench, started by job.py under mpirun. The leader prints JSON lines: rows, and requests to job.py.

The file named after the bench defines the measurement."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddl.bench import allreduce, pipeline, scaling, step, tolerance
from ddl.bench.measure import Row
from ddl.comm import mpi
from ddl.environment import launched_rank
from ddl.fault.watchdog import start_companion


def main(text: str) -> None:
    options = json.loads(text)
    wanted = options["tolerance"]
    heartbeat = None if wanted == "off" else start_companion(launched_rank())
    group = mpi.start(tolerant=wanted)
    if heartbeat is not None:
        group.waits = heartbeat.wait
    settings = {"settings": "fault-tolerant" if group.tolerant else "default"}
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
        for row in rows(options, group, Path(folder), heartbeat, settings):
            if group.is_leader:
                print(json.dumps(row.to_json() if isinstance(row, Row) else {"block": row}), flush=True)
        group.barrier()
        if group.is_leader:
            print(json.dumps({"end": True}), flush=True)
    if heartbeat is not None:
        heartbeat.close()
    mpi.finish(group, 0)


def rows(options: dict[str, Any], group: Any, folder: Path, heartbeat: Any, settings: dict[str, Any]) -> Iterator[Any]:
    """Rows, or what the tolerance and torch-ddp benches measured in a block."""
    store, seconds, peers = options["store"], options["seconds"], options["peers"]
    beat = nobody_listens if heartbeat is None else heartbeat.beat
    if options["bench"] == "allreduce":
        return allreduce.rows(group, options["sizes"], peers, seconds, store, settings, ask)
    if options["bench"] == "pipeline":
        return pipeline.rows(group, seconds, beat, settings)
    if options["bench"] == "scaling":
        return scaling.rows(group, folder, options["models"], seconds, beat, settings)
    if options["bench"] == "torch-ddp":
        from ddl.bench import torch_ddp

        turns = tolerance.Turns(options["turns"], options["mine"], len(torch_ddp.CANDIDATES))
        return torch_ddp.blocks(group, heartbeat, folder, options["models"][0], options["candidate"], turns, store)
    if options["bench"] == "tolerance":
        turns = tolerance.Turns(options["turns"], options["mine"])
        return tolerance.blocks(group, folder, options["models"][0], turns, beat)
    return step.rows(group, folder, options["models"], peers, seconds, store, beat, settings)


def ask(question: Any) -> float:
    """Called by the leader: returns the seconds that the second mpirun of job.py measured."""
    print(json.dumps({"ask": question}), flush=True)
    return float(json.loads(sys.stdin.readline())["seconds"])


def nobody_listens(step: int, phase: str) -> None:
    """Without failures to survive there is no watchdog."""


if __name__ == "__main__":
    main(sys.argv[1])
