"""The command ``ddl VERB ...``, the same as ``python -m ddl.VERB ...``.

Each verb is a separate module; this one only dispatches."""

from __future__ import annotations

import runpy
import sys

from ddl.output import protect_output
from ddl.version import __version__
from ddl.wording import instead

VERBS = {
    "train": "train a model; under mpirun on all its ranks",
    "evaluate": "loss, metrics and confusion matrix of a trained run",
    "predict": "what a trained run predicts for new samples",
    "export": "a trained run as an ONNX or a safetensors file",
    "compress": "a trained run as a smaller model, measured",
    "launch": "train under supervision: restarts what mpirun does not survive",
    "sweep": "train one job with many settings, side by side",
    "bench": "measure allreduce, step, scaling and recovery",
    "watch": "follow a run in the terminal",
    "dashboard": "follow runs in a browser",
    "audit": "prove that every sample was used exactly once",
    "doctor": "what was found on this machine, and a self-test under mpirun",
}


def usage() -> str:
    lines = [f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items()]
    return "\n".join(["usage: ddl VERB ...    (ddl VERB --help says more)", "", *lines])


def main() -> int:
    """Run the verb's module as a program; its exit status becomes this process's."""
    protect_output()
    verb, rest = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    if verb in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if verb else 2
    if verb in ("-V", "--version", "version"):
        print(f"ddl {__version__}")
        return 0
    if verb not in VERBS:
        print(f"ddl: there is no verb {verb}; {instead(verb, VERBS, 'there are')}", file=sys.stderr)
        return 2
    sys.argv = [f"ddl.{verb}", *rest]
    runpy.run_module(f"ddl.{verb}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
