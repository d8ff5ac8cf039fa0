"""One rank of a PyTorch job under torchrun that is killed once: the peer of recovery.py.

Trains the digits' network with DDP over Gloo, saves its state after every step and resumes from it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed

from ddl.bench.models import CASES
from ddl.bench.peers import TorchStep
from ddl.bench.step import data_of


def main(folder: Path, steps: int, killed_at: int) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.distributed.init_process_group("gloo")
    step = TorchStep("digits", data_of(CASES["digits"], 1).arrays, CASES["digits"].batch, size)
    saved, done = folder / "state.pt", 0
    if saved.exists():
        state = torch.load(saved)
        step.network.load_state_dict(state["network"])
        step.optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    with open(folder / "steps.jsonl", "a") as told:
        while done < steps:
            if done == killed_at and restarts == 0 and rank == size - 1:
                (folder / "killed").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            step()
            done += 1
            if rank == 0:
                state = {"network": step.network.state_dict(), "optimizer": step.optimizer.state_dict(), "step": done}
                torch.save(state, f"{saved}.part")
                os.replace(f"{saved}.part", saved)
                told.write(json.dumps({"step": done, "time": time.time(), "restarts": restarts}) + "\n")
                told.flush()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
