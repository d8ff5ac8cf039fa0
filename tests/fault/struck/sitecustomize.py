"""Strikes a rank during its start-up: Python imports this module first where its folder is on PYTHONPATH.

TRIAL_STRIKES: lines of "RANK ACT EVENT TEXT". The act is done once per trial, at the first audit event of that name
whose first argument contains the text; "start -" is this import. A file in TRIAL_FOLDER notes that it was done."""

import contextlib
import ctypes
import os
import signal
import sys

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV}


def strike(act):
    if act == "exit":
        os._exit(0)
    if act == "quit":
        raise SystemExit(0)
    if act == "abort":
        library = ctypes.CDLL(None)
        library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        block = library.malloc(1 << 14)
        library.free(block)
        library.free(block)
    os.kill(os.getpid(), SIGNALS[act])


def arm(number, act, event, text):
    def watch(name, arguments):
        if name == event and text in str(arguments[0] if arguments else ""):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(os.path.join(os.environ["TRIAL_FOLDER"], f"struck-{number}"), os.O_CREAT | os.O_EXCL))
                strike(act)

    watch("start", ["-"])
    sys.addaudithook(watch)


for _number, _line in enumerate(os.environ.get("TRIAL_STRIKES", "").splitlines()):
    _rank, _act, _event, _text = _line.split(" ", 3)
    if _rank == os.environ.get("OMPI_COMM_WORLD_RANK"):
        arm(_number, _act, _event, _text)
