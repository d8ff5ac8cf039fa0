"""JAX functions and optimizers of optax in ddl. The rest of ddl does not need JAX, and imports none of this."""

from __future__ import annotations

import os
import sys

if "jax" not in sys.modules:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if os.environ.get("OMP_NUM_THREADS") == "1":  # ddl has shared the cores; XLA would use them all in every rank
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('ddl.jax needs JAX: pip install "ddl-mpi[jax]"', name="jax") from error

from ddl.jax.model import Model
from ddl.jax.optimizer import Optax, translated

__all__ = ["Model", "Optax", "translated"]
