"""The beginning of a job, on all its ranks: a run folder, the newest checkpoint, and the first words about it.

May be done again when a rank dies in it: what one leader has begun the next one goes on with. The settings become
objects in build.py; what follows is loop.py's."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import shorten
from typing import Any

import numpy as np

from ddl.arrays import Device
from ddl.comm import Group
from ddl.comm.library import library_version
from ddl.config import Job
from ddl.data import data_lines
from ddl.errors import ConfigError, DdlError, UserError
from ddl.metrics import JobStarted, versions
from ddl.run.folder import RunFolder
from ddl.run.resume import find_checkpoint, restore
from ddl.train.loop import Loop


def set_up(group: Group, loop: Loop, folder: RunFolder, resume: str, say: Callable[[str], None]) -> DdlError | None:
    """Choose the run folder, claim it and load the newest checkpoint: the leader reads, all receive.

    resume: the setting. Returns, on every worker, why the job cannot begin. Raises PeerLost; the state of this rank is
    then what it was, and all of this can be done again by those who are left."""
    journal, state = loop.journal, loop.state
    told: DdlError | dict[str, Any] | None = None
    arrays: dict[str, np.ndarray] | None = None
    folder.choose(group)
    if group.is_leader:
        try:
            assert folder.path is not None
            arrays, meta = find_checkpoint(resume, folder.path, say)
            if loop.task.initial is not None and arrays is None:
                for line in loop.task.initial(state):
                    say(line)
            if arrays is not None:
                restore(state, arrays, meta, loop.task, say)
            group.probe("setup.claim")
            # Only now that the job is known to fit: a wrong one must leave what is in the folder as it is.
            folder.claim(group)
            group.probe("setup.claim.done")
            # Identities are ranks at launch, and some of those may have died by now.
            journal.ranks_started = 1 + max(group.newest_identity, *(member.identity for member in group.members))
            told = loop.meta()
        except UserError as error:
            told = error
        except OSError as error:
            told = ConfigError(f"run.dir = {str(folder.path)!r} cannot be used: {error}")
    told = group.gather_objects(told)[0]
    if isinstance(told, DdlError):
        return told
    # Received aside: should the leader die in this, the next one begins with a state that is whole.
    received = [flat if group.is_leader else flat.copy() for flat in loop.flat_arrays()]
    for flat in received:
        group.broadcast(flat, 0)
    loop.take_over(received, told)
    return None


def announce(loop: Loop, job: Job, where: Device, survival: str) -> None:
    """The leader tells that the job begins, or goes on, in this launch. survival: why a death is survived, or not."""
    task, group, journal = loop.task, loop.group, loop.journal
    hosts: dict[str, int] = {}
    for member in group.members[: group.size]:
        hosts[member.host] = hosts.get(member.host, 0) + 1
    survived = "a rank's death is survived" if group.tolerant else "a rank's death ends the job"
    journal.started(
        JobStarted(
            name=job.run.name,
            folder=str(journal.folder),
            launch=journal.launch,
            ranks=group.size,
            spares=len(group.members) - group.size,
            hosts=hosts,
            device=str(where),
            model=shorten(job.model.name, 60, placeholder=" ..."),
            parameters=loop.state.layout.size,
            samples=task.order.samples,
            shards=task.order.shards,
            global_batch=task.order.global_batch,
            steps=task.total_steps,
            steps_per_epoch=task.order.steps_per_epoch,
            step=loop.state.progress.step,
            tolerance=f"{survived} ({survival})",
            versions=versions(library_version()),
            data=data_lines(task.settings.get("knowledge", {}).get("data", {})),
        )
    )
    if group.size > task.order.shards:
        journal.warn(
            f"{group.size} ranks for {task.order.shards} shards: ranks {task.order.shards} to {group.size - 1} "
            "have nothing to compute (data.shards)"
        )
