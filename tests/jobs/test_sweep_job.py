"""``ddl sweep`` as a user starts it: killed, started again, and with the results of an undisturbed sweep."""

import csv
import os
import signal
import subprocess
import sys
import time

LIMIT_S = 200
FILE = """
[sweep]
trials = 2
metric = "accuracy"
halving = 2

[space]
optim.lr = {log = [1e-3, 1e-1]}

[job]
model.name = "mlp"
train.epochs = 3
checkpoint.every_epochs = 1
train.compiled = "off"
"""


def command(folder):
    (folder / "s.toml").write_text(FILE)
    return [sys.executable, "-m", "ddl.sweep", "s.toml"]


def rows(folder):
    with open(folder / "sweeps" / "s" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def started(folder):
    return subprocess.Popen(command(folder), cwd=folder, stdout=subprocess.DEVNULL)


def test_a_killed_sweep_continues_to_the_same_results(tmp_path):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    calm, folder = started(tmp_path / "calm"), tmp_path / "killed"
    killed = started(folder)
    metrics, deadline = folder / "sweeps" / "s" / "trials" / "000" / "metrics.jsonl", time.monotonic() + LIMIT_S
    while not (metrics.exists() and b'"epoch"' in metrics.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(LIMIT_S)
    assert started(folder).wait(LIMIT_S) == calm.wait(LIMIT_S) == 0

    assert rows(folder) == rows(tmp_path / "calm")
    assert {row["status"] for row in rows(folder)} <= {"finished", "stopped"}
    best = max((row for row in rows(folder) if row["status"] == "finished"), key=lambda row: float(row["accuracy"]))
    assert (folder / "sweeps" / "s" / "best").resolve() == folder / "sweeps" / "s" / best["folder"]
