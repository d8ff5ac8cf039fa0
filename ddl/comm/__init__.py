"""Communication: groups of ranks over MPI, and over threads of one process.

The only room that imports mpi4py, and only when a group over MPI is started."""

from ddl.comm.group import Group, Member, NodeMemory, Probe, no_probe
from ddl.comm.preflight import EAGER_BYTES, fault_tolerance, unconnected

__all__ = [
    "EAGER_BYTES",
    "Group",
    "Member",
    "NodeMemory",
    "Probe",
    "fault_tolerance",
    "no_probe",
    "unconnected",
]
