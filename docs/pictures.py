"""Make the pictures of the documentation: plots of real runs, and screenshots of the dashboard.

    python docs/pictures.py             # everything, into docs/pictures; about three minutes on two cores
    python docs/pictures.py plots       # curves and a confusion matrix of a run whose ranks are killed (matplotlib)
    python docs/pictures.py dashboard   # screenshots, light and dark (chromium, or the browser in $CHROMIUM)

The runs are made with ``ddl launch`` in a temporary folder. What a missing program would draw is left out, with a
line."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ddl.dashboard import Dashboard

PICTURES = Path(__file__).parent / "pictures"
THEMES = ("light", "dark")
MLP = ("--model.name=mlp", "--train.compiled=off")
KILLED = ("--model.metrics=accuracy,confusion", "--fault.chaos=kill rank 1 at step 150; kill rank 3 at step 420")
COMPARED = [("adam", 0.0005), ("adam", 0.002), ("momentum", 0.01), ("momentum", 0.05), ("rmsprop", 0.001)]


def start(folder: Path, ranks: int, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ddl.launch", "-n", str(ranks), *MLP, f"--run.dir={folder}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def train(folder: Path, ranks: int, *words: str) -> None:
    """Train to the end. Raises RuntimeError."""
    with start(folder, ranks, *words) as job:
        if job.wait(600):
            raise RuntimeError(f"the job in {folder} ended with {job.returncode}")


def plots(runs: Path) -> None:
    """curves.png and confusion.png in both themes; the job itself draws them."""
    words = ("--run.name=digits", "--train.epochs=40", "--metrics.plots=on", "--metrics.plots_theme=both", *KILLED)
    train(runs / "killed", 4, *words)
    for path in sorted((runs / "killed").glob("*.png")):
        shutil.copy(path, PICTURES / path.name)


def dashboard(runs: Path) -> None:
    """A run with kills while it trains, and several runs compared."""
    for name, rate in COMPARED:
        words = f"--run.name={name}-{rate:g}", f"--optim.name={name}", f"--optim.lr={rate}", "--train.epochs=15"
        train(runs / "compared" / f"{name}-{rate:g}", 1, *words)
    screenshots(runs / "compared", "dashboard-compare")
    words = ("--run.name=digits", "--train.epochs=400", *KILLED)
    with start(runs / "live", 4, *words) as job:
        wait_for(lambda: (text := read(runs / "live" / "metrics.jsonl")).count("recovery") > 1 and len(text) > 120_000)
        screenshots(runs / "live", "dashboard")
        job.terminate()


def screenshots(folder: Path, name: str) -> None:
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no {name}.png: there is no chromium (name a browser in CHROMIUM)", file=sys.stderr)
        return
    served = Dashboard(folder)
    threading.Thread(target=served.serve, daemon=True).start()
    try:
        for theme in THEMES:
            picture = PICTURES / f"{name}{'-dark' * (theme == 'dark')}.png"
            flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1400,1340"
            command = [browser, *flags.split(), "--virtual-time-budget=6000", f"--screenshot={picture}"]
            subprocess.run(
                [*command, f"{served.url}?theme={theme}"], check=True, stderr=subprocess.DEVNULL, timeout=180
            )
    finally:
        served.close()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool], limit_s: float = 300.0) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"nothing of it in {limit_s:g} s")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["plots", "dashboard", "all"], default="all")
    wanted = parser.parse_args().what
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        for name, make in {"plots": plots, "dashboard": dashboard}.items():
            if wanted in (name, "all"):
                make(Path(runs))
    print("\n".join(str(path) for path in sorted(PICTURES.glob("*.png"))))


if __name__ == "__main__":
    main()
