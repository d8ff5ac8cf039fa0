"""Settings: frozen sections, read from TOML and the command line, checked before MPI starts.

train/build.py turns them into objects; no other module reads them."""

from ddl.config.check import check
from ddl.config.load import load, load_or_exit, override, read, to_toml, write
from ddl.config.sections import Job, MetricsSettings, OptimSettings

__all__ = [
    "Job",
    "MetricsSettings",
    "OptimSettings",
    "check",
    "load",
    "load_or_exit",
    "override",
    "read",
    "to_toml",
    "write",
]
