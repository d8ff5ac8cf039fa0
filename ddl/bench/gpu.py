"""One command for users with a GPU: run all tests that need one, then time each network's step against PyTorch.

``python -m ddl.bench gpu``; needs the extras gpu and test, and PyTorch with CUDA."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ddl.arrays import Device
from ddl.arrays.namespace import gpu_count
from ddl.bench import report
from ddl.bench.measure import Row
from ddl.bench.models import CASES
from ddl.bench.step import data_of, make_loop, steps_in_turns
from ddl.comm import threads

TESTS = Path(__file__).resolve().parents[2] / "tests" / "unit"


def main(seconds: float) -> int:
    """Returns the exit status: 0 if the tests passed and the steps were measured, 1 otherwise."""
    if not gpu_count():
        print("ddl.bench gpu: no CUDA device can be used: is cupy-cuda12x installed, and does nvidia-smi list a GPU?")
        return 1
    status = 0
    if TESTS.is_dir():
        status = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]).returncode
    try:
        import torch

        from ddl.bench import peers

        has_torch = torch.cuda.is_available()
    except ImportError:
        has_torch = False
    if not has_torch:
        print("PyTorch with CUDA is not installed: ours is measured alone")
    group = threads.alone()
    print(report.line(report.HEAD))
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
        for name, case in CASES.items():
            loop = make_loop(name, group, Path(folder, name), device=Device(0))
            candidates: dict[str, Callable[[], object]] = {"ours": loop.advance}
            if has_torch:
                candidates["torch"] = peers.TorchStep(name, data_of(case, 1).arrays, case.batch, 1, device="cuda")
            times = steps_in_turns(candidates, group, seconds)
            loop.close()
            loop.log.close()
            middle = {who: statistics.median(found) for who, found in times.items()}
            more = {"samples_per_s": round(case.batch / middle["ours"], 1)}
            peer = "torch" if has_torch else "itself"
            row = Row(
                "step", 1, {"model": name}, "gpu", middle["ours"], peer, middle.get("torch", middle["ours"]), more
            )
            print(report.row_text(row.to_json()), flush=True)
    return int(status != 0)
