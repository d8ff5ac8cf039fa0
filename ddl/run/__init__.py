"""The life of a job around its training loop: run folder, set-up, resume, run log, exit, opening a finished run."""
