"""``ddl sweep`` as a user starts it: killed, started again, and with the results of a sweep that nobody disturbed."""

import csv
import os
import signal
import subprocess
import sys
import time

LIMIT_S = 200
FILE = """
[sweep]
trials = 3
metric = "accuracy"
halving = 2

[space]
optim.lr = {log = [1e-3, 1e-1]}

[job]
model.name = "mlp"
train.epochs = 4
checkpoint.every_epochs = 1
train.compiled = "off"
"""


def command(folder):
    (folder / "s.toml").write_text(FILE)
    return [sys.executable, "-m", "ddl.sweep", "s.toml"]


def rows(folder):
    with open(folder / "sweeps" / "s" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def test_a_killed_sweep_continues_to_the_same_results(tmp_path):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        command(tmp_path / "calm"), cwd=tmp_path / "calm", capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr

    folder = tmp_path / "killed"
    process = subprocess.Popen(command(folder), cwd=folder, stdout=subprocess.DEVNULL)
    metrics, deadline = folder / "sweeps" / "s" / "trials" / "000" / "metrics.jsonl", time.monotonic() + LIMIT_S
    while not (metrics.exists() and b'"epoch"' in metrics.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(LIMIT_S)
    again = subprocess.run(command(folder), cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert again.returncode == 0, again.stdout + again.stderr

    assert rows(folder) == rows(tmp_path / "calm")
    assert {row["status"] for row in rows(folder)} <= {"finished", "stopped"}
    best = max((row for row in rows(folder) if row["status"] == "finished"), key=lambda row: float(row["accuracy"]))
    assert (folder / "sweeps" / "s" / "best").resolve().name == best["folder"].rpartition("/")[2]
    evaluated = [sys.executable, "-m", "ddl.evaluate", "sweeps/s/best"]
    assert subprocess.run(evaluated, cwd=folder, capture_output=True, timeout=LIMIT_S).returncode == 0
