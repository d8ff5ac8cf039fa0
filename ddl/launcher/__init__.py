"""Outside the ranks: mpirun, the supervisor, MPI's parameter files, command-line arguments. Works without mpi4py."""
