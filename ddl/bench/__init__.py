"""Benchmarks that a user can repeat: allreduce, step, scaling, recovery.

``python -m ddl.bench NAME`` starts mpirun itself and alternates between ours and the peers in the same run."""
