"""Training: the one place where settings become objects; the step, the loop, evaluation, the run's records.

Imports nothing by itself, so that ``python -m ddl.train --help`` answers at once."""
