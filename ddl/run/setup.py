"""Set-up of a job on all its ranks: choose the run folder, load the newest checkpoint, report the start.

It is repeated when a rank dies during it, and the next leader continues what the previous one began. Settings become
objects in train/build.py; train/loop.py trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod
from textwrap import shorten

from ddl.comm import Group, unconnected
from ddl.comm.library import library_version
from ddl.config import Job
from ddl.data import data_lines
from ddl.environment import REGAINS_VARIABLE, launched_size
from ddl.errors import ConfigError, DdlError, UserError
from ddl.metrics import JobStarted, versions
from ddl.models.blueprint import suited
from ddl.optim.local import Local
from ddl.run.folder import RunFolder
from ddl.run.log import RunLog
from ddl.run.resume import resume
from ddl.train.loop import Loop
from ddl.train.task import Task
from ddl.wording import counted, numbered


def set_up(group: Group, loop: Loop, folder: RunFolder, setting: str, say: Callable[[str], None]) -> DdlError | None:
    """Choose the run folder, acquire its lease and load the newest checkpoint: the leader reads, all receive.

    setting: checkpoint.resume. Returns on every worker why the job cannot begin, or None. Raises PeerLost; this rank's
    state is then unchanged, and the survivors can repeat all of this."""
    log, work = folder.log, loop.work
    problem: DdlError | None = None
    folder.choose(group)
    digests = group.gather_objects(loop.state.parameters_digest())
    state = work.whole_state(group.is_leader)
    if group.is_leader:
        try:
            assert folder.path is not None
            is_resumed = resume(state, loop.task, setting, folder.path, say)
            if loop.task.initial is not None and not is_resumed:
                for line in loop.task.initial(state):
                    say(line)
            others = [rank for rank, own in enumerate(digests) if own != digests[0]]
            if others and not is_resumed:
                drew = f"{numbered('rank', others)} drew other initial parameters than rank 0"
                say(f"{drew}, whose parameters all ranks now have")
            state.progress.total_steps = loop.task.total_steps
            group.probe("setup.claim")
            # Only now that the checkpoint is known to fit: a wrong job must leave the folder as it is.
            folder.claim(group)
            group.probe("setup.claim.done")
            # Identities are the ranks at launch, some of which may have died by now.
            log.first_step = state.progress.step
            log.ranks_started = 1 + max(group.newest_identity, *(member.identity for member in group.members))
        except UserError as error:
            problem = error
        except OSError as error:
            problem = ConfigError(f"run.dir = {str(folder.path)!r} cannot be used: {error}")
    problem = group.gather_objects(problem)[0]
    return problem if problem is not None else work.distribute(group, state)


def _trusted_status(environment: Mapping[str, str] = os.environ) -> str:
    """The command whose exit status is the job's; "" if that is obvious."""
    if REGAINS_VARIABLE in environment:
        return "the exit status of ddl.launch is the job's"
    if launched_size(environment) is None:
        return ""
    return "mpirun's exit status can be 0 for a lost job: trust ddl.launch's, or summary.json"


def _sync_lines(task: Task) -> list[str]:
    if not isinstance(task.optimizer, Local):
        return []
    updates = counted(task.parts, "update")
    return [f"comm.sync is local: {updates} of each rank in a step; the result depends on the number of ranks"]


def announce(loop: Loop, log: RunLog, job: Job, survival: str) -> None:
    """Report the start of this launch, on the leader. survival: why a rank's death is survived, or not."""
    task, group = loop.task, loop.group
    hosts: dict[str, int] = {}
    for member in group.members[: group.size]:
        hosts[member.host] = hosts.get(member.host, 0) + 1
    name = suited(task.train.fields) if job.model.name == "auto" else job.model.name
    survived = "a rank's death is survived" if group.tolerant else "a rank's death ends the job"
    log.started(
        JobStarted(
            name=job.run.name,
            folder=str(log.folder),
            launch=log.launch,
            ranks=group.size,
            spares=len(group.members) - group.size,
            hosts=hosts,
            device=str(loop.work.device),
            model=shorten(name, 60, placeholder=" ..."),
            parameters=sum(prod(shape) for shape, _ in task.model.params.values()),
            samples=task.order.samples,
            shards=task.order.shards,
            global_batch=task.order.global_batch,
            steps=task.total_steps,
            steps_per_epoch=task.order.steps_per_epoch,
            step=loop.state.progress.step,
            tolerance=f"{survived} ({survival})",
            status=_trusted_status(),
            versions=versions(library_version()),
            data=[*data_lines(task.settings.get("knowledge", {}).get("data", {})), *_sync_lines(task)],
        )
    )
    if len(group.members) == 1 and (line := unconnected()):
        log.warn(line)
    if task.order.global_batch > task.order.samples:
        log.warn(
            f"train.global_batch = {task.order.global_batch} is larger than the training data: each step takes all "
            f"{counted(task.order.samples, 'sample')}"
        )
    if group.size > task.order.shards:
        first, last = task.order.shards, group.size - 1
        idle = f"rank {last} has" if first == last else f"ranks {first} to {last} have"
        shards = counted(task.order.shards, "shard")
        log.warn(f"{group.size} ranks for {shards}: {idle} nothing to compute (data.shards)")
