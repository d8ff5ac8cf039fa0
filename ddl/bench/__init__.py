"""Measured claims, each runnable by a user: allreduce, step, scaling, recovery.

``python -m ddl.bench NAME`` starts mpirun itself; peers are measured in the same run, in turns with ours."""
